"""The regression check: step times of two runs, each in units of what its machine could do at that moment."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxseg.benchmark.results import Results, read_results
from jaxseg.errors import InputError

SAME = ("platform", "dtype", "size", "batch", "features", "devices", "parallel")
"""Options that must agree for step times to be those of the same work."""


@dataclasses.dataclass(frozen=True)
class Change:
    """How many times as long as before a phase of a case takes, the machines' speeds apart."""

    key: str
    phase: str
    before_ms: float
    now_ms: float
    slowdown: float


def changes(now: Results, before: Results) -> list[Change]:
    """One for every phase that both runs have measured, the slowest-grown first.

    A step time is multiplied by a rate of its machine (matrix product, convolution, copy), measured beside it. `slowdown` is the
    smallest of the three quotients: what any of the yardsticks explains is not ours.

    Raises:
      InputError: the runs did different work, or have no case in common.
    """
    differ = [f"{k} ({before.header.get(k)!r} and {now.header.get(k)!r})" for k in SAME if before.header.get(k) != now.header.get(k)]
    if differ:
        raise InputError(f"{now.path} and {before.path}: measured other work: {', '.join(differ)}. Compare runs of the same options.")
    found = []
    for key in now.cases.keys() & before.cases.keys():
        new, old = now.cases[key], before.cases[key]
        for phase in new["phases"].keys() & old["phases"].keys():
            now_ms, before_ms = (record["phases"][phase]["ours"]["step_ms"] for record in (new, old))
            found.append(Change(key, phase, before_ms, now_ms, now_ms / before_ms * _speed(new["rates"], old["rates"])))
    if not found:
        raise InputError(f"{now.path} and {before.path}: have no case in common. Compare runs of the same models, methods or operators.")
    return sorted(found, key=lambda change: -change.slowdown)


def compare(
    now: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="NOW")],
    before: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="BEFORE")],
    tolerance: float = 0.3,
) -> int:
    """Compare a run with a stored one; the exit code is 1 where something has become slower.

    Args:
      now: results.json, or its folder, of the run in question.
      before: that of the run to compare with.
      tolerance: by which share a step may take longer. Step times on a shared machine vary by a tenth and more.
    """
    if not 0 < tolerance < math.inf:
        raise InputError(f"--tolerance: got {tolerance}; required above 0, such as 0.3.")
    runs = read_results(now), read_results(before)
    found = changes(*runs)
    slower = [change for change in found if change.slowdown > 1 + tolerance]
    print("| case | phase | before ms | now ms | slower by, machine apart |\n| --- | --- | --: | --: | --: |")
    for change in slower or found[:5]:
        print(f"| {change.key} | {change.phase} | {change.before_ms:.3g} | {change.now_ms:.3g} | {change.slowdown:.2f} |")
    gone = sorted(runs[1].cases.keys() - runs[0].cases.keys())
    print(
        f"\n{len(slower)} of {len(found)} slower by more than {tolerance:.0%}" + (f"; not measured now: {', '.join(gone)}" if gone else "")
    )
    return 1 if slower else 0


def _speed(now: Mapping[str, Any], before: Mapping[str, Any]) -> float:
    return min(now[rate] / before[rate] for rate in before)
