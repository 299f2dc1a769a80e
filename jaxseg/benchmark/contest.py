"""Ours, stock and torch in one contest: they must agree, and are then timed in turn."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxseg.benchmark.measure import Program, alternate, stepper
from jaxseg.benchmark.peers import TorchPeer
from jaxseg.benchmark.rates import Rates

Call = tuple[Program, Callable[[], Any]]
"""A program, and what makes its next step."""


def need_agreement(name: str, errors: Mapping[str, Mapping[str, float]], tolerance: Callable[[str], float]) -> None:
    """A benchmark of different functions would be worthless.

    Args:
      errors: by contestant and by name of a result, the relative difference from ours.
      tolerance: the largest that is allowed, by name of the result.

    Raises:
      RuntimeError: one is larger, or not a number.
    """
    for who, differences in errors.items():
        wrong = {k: f"{v:.1e}" for k, v in differences.items() if not v <= tolerance(k)}
        if wrong:
            raise RuntimeError(f"{name}: ours and {who} do not compute the same, relative differences {wrong}")


def differences(got: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray]) -> dict[str, float]:
    """By name of a result: the largest difference, as a share of our largest value."""
    return {k: float(np.abs(v - ours[k]).max() / np.abs(ours[k]).max()) for k, v in got.items()}


def contest(
    calls: Mapping[str, Call],
    rates: Rates,
    *,
    budget_s: float,
    block_s: float = 0.03,
    images: int | None = None,
    peer: TorchPeer | None = None,
    phase: str = "",
    modes: tuple[str, ...] = (),
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """({contestant: measurement with its "ratio" to ours}, what failed) of one phase; "ours" comes first in `calls`.

    Args:
      images: of one step.
      peer: holds the case; `phase` is its own name for this one, of which it runs `modes`.
    """
    theirs, compile_s, failed = peer.contestants(phase, modes) if peer else ({}, {}, [])
    steps = {who: stepper(call) for who, (_, call) in calls.items()} | theirs
    timings = alternate(steps, budget_s=budget_s, block_s=block_s)
    found = {}
    for who, timing in timings.items():
        if who in calls:
            found[who] = dataclasses.asdict(calls[who][0].measurement(timing, rates, images))
        else:
            found[who] = {"step_ms": timing.step_ms, "spread_ms": timing.spread_ms, "steps": timing.steps, "compile_s": compile_s[who]}
            found[who] |= {"images_per_s": 1e3 * images / timing.step_ms} if images else {}
        found[who]["ratio"] = timing.ratio
    return found, failed
