"""Tiles against the whole image, every model: `python benchmarks/tile_exactness.py --out docs/tiles.md`.

For each model of `jaxseg.models.MODELS`, narrow, with random weights, and the unpadded U-Net: 12 sizes of images, primes among them, from a
fraction of a tile to some tiles, in exact tiles of 3 sizes, from about the smallest that the model can have. Counted are the
logits that are not bit for bit the whole image's. Beside them the largest difference of blended tiles (Gaussian), in standard
deviations of the logits. Up to ten minutes a model on 2 cores, most of them of compiling; a model that is in the
file already is not run again. Models whose outputs see 600 pixels and more take up to an hour each: `--images 2 --tiles 1` is a
shorter run.
"""

import contextlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated

import flax.linen as nn
import jax
import numpy as np
import tyro
from export_table import CHANNELS, CLASSES, CONFIG, LARGE, random_run

from jaxseg.cli import script
from jaxseg.config import load_get_config
from jaxseg.errors import InputError
from jaxseg.inference.tiles import tiled
from jaxseg.inference.whole import predict_whole
from jaxseg.models import MODELS, UNet
from jaxseg.progress import progress

SIDES = ((0.3, 1.3), (0.6, 0.6), (1, 1), (1.2, 0.7), (1.1, 1.9), (1.4, 1.4), (1.5, 0.2), (1.7, 1.1), (0.9, 1.6), (2, 1), (1.3, 1), (1, 2.2))
"""Of the images, in smallest tiles; every other one is made a prime."""
TILES = (32, 64, 88, 128, 192, 256, 384, 512, 704, 832, 1216)
"""That are tried for the smallest."""
MORE = (0, 16, 45)
"""Pixels by which the tiles are larger than the smallest."""
UNITS = {"heatmap": 4, "fcn_resnet": 8, "encoder_unet": 32}
"""Models that stretch their map to the image, but of sides that are multiples of these have exact tiles."""
OVERLAPS = (0.25, 0.5)
HEAD = "| model | tiles | images | logits | not the whole's | blended, overlap 0.25 | 0.5 |\n| --- | --- | --- | --: | --: | --: | --: |"


def main(
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.md")], only: tuple[str, ...] = (), images: int = len(SIDES), tiles: int = len(MORE)
) -> None:
    """Compare every model's tiles with the whole and write the table.

    Args:
      out: the table, in Markdown.
      only: these models; all by default.
      images: so many of the sizes, the last ones, for a shorter run.
      tiles: so many of the tiles.
    """
    get_config = load_get_config(CONFIG)
    networks = {name: lambda name=name: get_config(model=name).model(num_classes=CLASSES) for name in MODELS}
    networks |= {"unet, unpadded": lambda: UNet(CLASSES, features=(16, 32, 64))}
    unknown = [name for name in only if name not in networks]
    if unknown:
        raise InputError(f"--only: got {', '.join(unknown)}; there are {'; '.join(networks)}.")
    title = f"# Tiles against the whole\n\n`python benchmarks/tile_exactness.py --out FILE.md`, which says what the columns are.\n\n{HEAD}"
    lines = [*map(str, (out.read_text() if out.exists() else title).rstrip().splitlines())]
    with progress("comparing", len(only or networks)) as advance:
        for name in only or networks:
            if not any(re.match(rf"\| {name}( \||, mult)", line) for line in lines):
                lines.append(row(name, networks[name](), images, tiles))
                out.write_text("\n".join(lines) + "\n")
            advance(1, note=name)
    print("\n".join(lines))


def row(name: str, network: nn.Module, images: int, tiles: int) -> str:
    """A line of the table."""
    variables = random_run(network, 224 if name in LARGE else 64).variables
    whole = jax.jit(lambda v, x: predict_whole(network, v, x[None])[0])
    unit = UNITS.get(name, 1)
    refused = ""
    for least in TILES:
        shapes = list(sizes(least, unit))[-images:]
        try:
            need_plans(tiled(network.apply, tile=least), variables, shapes)
            break
        except InputError as error:
            refused = str(error).partition(": ")[2].partition(". ")[0]
    else:
        return f"| {name} | {refused} | | | | | |"
    exact = [tiled(network.apply, tile=least + more) for more in MORE[:tiles]]
    blends = [] if "unpadded" in name else [tiled(network.apply, tile=least, blend="gaussian", overlap=overlap) for overlap in OVERLAPS]
    logits, wrong, seams = 0, 0, np.zeros(len(OVERLAPS))
    for size in shapes:
        image = np.random.default_rng(size[0]).random((*size, CHANNELS), np.float32)
        expected = np.asarray(whole(variables, image))
        for predict in exact:
            logits += expected.size
            wrong += int((predict(variables, image) != expected).sum())
        for k, predict in enumerate(blends):
            seams[k] = max(seams[k], np.abs(predict(variables, image) - expected).max() / expected.std())
    sides = ", ".join(str(least + more) for more in MORE[:tiles])
    blended = " | ".join(f"{seam:.1e}" for seam in seams) if blends else "refused | refused"
    smallest, largest = (pick(shapes, key=lambda size: size[0] * size[1]) for pick in (min, max))
    name += f", multiples of {unit} pixels" * (unit > 1)
    span = f"{len(shapes)}, {smallest[0]} x {smallest[1]} to {largest[0]} x {largest[1]}"
    return f"| {name} | {sides} | {span} | {logits:,} | {wrong:,} | {blended} |"


def need_plans(predict: Callable, variables: dict, shapes: Iterable[tuple[int, int]]) -> None:
    """Raises InputError where an image of one of these sizes cannot have exact tiles; nothing is computed."""
    for size in shapes:
        with contextlib.suppress(_ReadError):
            predict(variables, _Unread((*size, CHANNELS)))


class _ReadError(Exception):
    """A tile is about to be read: the plan stands."""


class _Unread:
    def __init__(self, shape: tuple[int, ...]):
        self.shape = shape

    def __getitem__(self, where: object) -> np.ndarray:
        raise _ReadError


def sizes(tile: int, unit: int) -> Iterator[tuple[int, int]]:
    """Of the images; multiples of `unit`."""
    for k, pair in enumerate(SIDES):
        sides = (max(round(part * tile), 1) for part in pair)
        height, width = (-(-(_prime(side) if k % 2 else side) // unit) * unit for side in sides)
        yield height, width


def _prime(n: int) -> int:
    """The next one from n on."""
    return next(p for p in itertools.count(max(n, 2)) if all(p % d for d in range(2, int(p**0.5) + 1)))


if __name__ == "__main__":
    script(main)
