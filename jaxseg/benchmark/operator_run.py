"""One operator beside its peers: the same values first, then the times of each phase in alternation."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.benchmark import operators
from jaxseg.benchmark.contest import contest, differences, need_agreement
from jaxseg.benchmark.measure import Program, compile_program
from jaxseg.benchmark.peers import TorchPeer
from jaxseg.benchmark.rates import machine_rates

TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
"""Largest difference between two implementations, as a share of the largest value."""

Given = tuple[Program, tuple[jax.Array, ...]]
"""A program and what it is called with."""


def run_case(case: operators.Case, *, dtype: str = "float32", peer: TorchPeer | None = None, budget_s: float = 1.2) -> dict[str, Any]:
    """The record of one case: {"phases": {phase: {contestant: measurement}}, "errors", "rates", "notes"}.

    A measurement of another contestant than ours carries "ratio": its step time over ours, the median over the rounds.

    Args:
      budget_s: seconds of steps, for each phase.

    Raises:
      RuntimeError: ours and another implementation do not compute the same.
    """
    calls = compiled(case, dtype, case.phases)
    errors = agreement(case, calls, dtype, peer)
    rates = machine_rates(dtype)
    record: dict[str, Any] = {"rates": dataclasses.asdict(rates), "errors": errors, "phases": {}, "notes": []}
    theirs = peer if "torch" in errors else None
    for phase in case.phases:
        turn = {who: (made[phase][0], functools.partial(made[phase][0].call, *made[phase][1])) for who, made in calls.items()}
        # A compiled backward always gives all gradients: dx and dw apart are those of eager torch.
        modes = theirs.modes if theirs and phase in ("fwd", "both") else ("eager",)
        found, failed = contest(turn, rates, budget_s=budget_s, peer=theirs, phase=phase, modes=modes)
        record["phases"][phase] = found
        record["notes"] += failed
    if theirs:
        theirs.ask("drop")
    return record


def compiled(case: operators.Case, dtype: str, phases: Sequence[str]) -> dict[str, dict[str, Given]]:
    """By contestant ("ours", "stock") and phase: the program, on the case's own numbers."""

    def cast(a: np.ndarray) -> jax.Array:
        return jnp.asarray(a, dtype if a.dtype == np.float32 else a.dtype)

    x, *w = operators.arrays(case)
    args = {"ours": (case.ours, (cast(x), *map(cast, w)))}
    if case.stock is not None:
        args["stock"] = case.stock, (cast(x), *(cast(case.stock_weights(a)) for a in w))
    g = cast(np.random.default_rng(1).normal(size=jax.eval_shape(case.ours, *args["ours"][1]).shape).astype(np.float32))
    return {
        who: {
            phase: (compile_program(fn, *given), given) for phase, (fn, given) in operators.phase_programs(f, arguments, g, phases).items()
        }
        for who, (f, arguments) in args.items()
    }


def agreement(
    case: operators.Case, calls: dict[str, dict[str, Given]], dtype: str = "float32", peer: TorchPeer | None = None
) -> dict[str, dict[str, float]]:
    """The relative differences of {"stock", "torch"} from ours in y, dx and dw; `peer` holds the case afterwards.

    Raises:
      RuntimeError: one is too large: a benchmark of different functions would be worthless.
    """
    ours = _results(calls["ours"]["both"])
    errors: dict[str, dict[str, float]] = {}
    if "stock" in calls:
        stock = _results(calls["stock"]["both"])
        if "dw" in stock:
            stock["dw"] = case.stock_weights(stock["dw"])
        errors["stock"] = differences(stock, ours)
    if peer is not None and case.torch is not None:
        name, options = case.torch
        g, x, *w = (np.asarray(a, np.float32) for a in calls["ours"]["both"][1])
        data = {"x": x, "g": g, **ours}
        if w:
            data |= {"indices": case.stock_weights(w[0].astype(np.int8))} if case.indices else {"w": w[0]}
        if case.constant is not None:
            data["constant"] = case.constant
        errors["torch"] = peer.build("operator", data, name=name, options=options, dtype=dtype, compiled=len(peer.modes) > 1)
    need_agreement(case.name, errors, lambda _: TOLERANCE[dtype])
    return errors


def _results(call: Given) -> dict[str, np.ndarray]:
    """{"y", "dx"} and "dw" where there are weights, in float32."""
    program, given = call
    y, grads = program.call(*given)
    return {name: np.asarray(value, np.float32) for name, value in zip(("y", "dx", "dw"), (y, *grads), strict=False)}
