"""What jaxseg claims of its speed, each claim held against a run's results."""

import dataclasses
import fnmatch
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxseg.benchmark.results import Results, gradient_speedup, read_results
from jaxseg.errors import InputError

NOISE = 0.95
"""A ratio that counts as equal: medians of two runs of one program differ by as much."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """`figure` of the phases of every case whose key matches; it must be at least `least`, and is None where there is no such peer."""

    text: str
    cases: str
    figure: Callable[[Mapping[str, Any]], float | None]
    least: float


def ratio(phase: str, who: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda phases: phases[phase].get(who, {}).get("ratio")


def worst(who: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda phases: min((found[who]["ratio"] for found in phases.values() if who in found), default=None)


CLAIMS = (
    *(
        Claim(f"gradients of transposed convolution {k} over stock", f"operators/conv_transpose {k},*", gradient_speedup, 10)
        for k in ("2x2/2", "3x3/2", "4x4/2")
    ),
    Claim("gradient of max pooling over stock", "operators/max_pool*", gradient_speedup, 5),
    Claim("bilinear x2 forward over stock", "operators/bilinear x2,*", ratio("fwd", "stock"), 1.5),
    Claim("bilinear x2 forward and gradient over stock", "operators/bilinear x2,*", ratio("both", "stock"), 1.5),
    Claim("fixed bilinear x8 forward and gradient over stock", "operators/fixed bilinear filters x8*", ratio("both", "stock"), 10),
    Claim("no phase slower than stock", "operators/*", worst("stock"), NOISE),
    Claim("forward and gradients at most 1.25 times eager torch's", "operators/*", ratio("both", "torch eager"), 1 / 1.25),
    Claim("U-Net inference over the stock U-Net", "models/unet/transposed", ratio("inference", "stock"), NOISE),
    Claim("U-Net training over the stock U-Net", "models/unet/transposed", ratio("training", "stock"), 2),
    Claim("U-Net inference over eager torch", "models/unet/transposed", ratio("inference", "torch eager"), 0.8),
    Claim("U-Net training over eager torch", "models/unet/transposed", ratio("training", "torch eager"), 0.75),
    Claim("network's inference and training over the same network of eager torch", "networks/*", worst("torch eager"), 0.8),
)


def held(results: Results) -> Iterator[tuple[Claim, str, float]]:
    """(claim, case, measured figure) wherever the run has measured it."""
    for claim in CLAIMS:
        for key, record in results.cases.items():
            if fnmatch.fnmatchcase(key, claim.cases):
                figure = claim.figure(record["phases"])
                if figure is not None:
                    yield claim, key, figure


def claims(run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]) -> int:
    """Hold every claim against a run; the exit code is 1 where one does not hold.

    Args:
      run: results.json of `jaxseg benchmark`, or its folder.
    """
    rows = list(held(read_results(run)))
    if not rows:
        raise InputError(
            f"{run}: has measured nothing that a claim is about. "
            "Run operators, the U-Net with transposed convolution, or models beside torch."
        )
    print("| claim | case | required | measured | holds |\n| --- | --- | --: | --: | --- |")
    for claim, key, figure in rows:
        print(f"| {claim.text} | {key} | {claim.least:.3g} | {figure:.3g} | {'yes' if figure >= claim.least else '**no**'} |")
    return int(any(figure < claim.least for claim, _, figure in rows))
