"""Label maps of images larger than memory: read, predicted and written region by region. A killed run goes on where it stopped."""

import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.errors import InputError
from jaxseg.inference.label_files import SIDE, create_label_file, identity_of, open_label_file
from jaxseg.inference.region_files import RegionFile
from jaxseg.inference.tiles import Region
from jaxseg.pictures import Colours, overlay, png_bytes

EVERY = 16
"""Regions after which the journal is written: what a killed run computes again at most."""

SHOWN = 2048
"""Largest side of the overview, pixels."""


def predict_regions(
    regions: Callable[..., Iterator[Region]],
    variables: Any,
    image: RegionFile,
    out: Path,
    shown: Path,
    *,
    colours: Colours,
    identity: str,
) -> None:
    """The label map of all images of a file, as `out` (.zarr, or else TIFF), and a reduced overlay of the middle one as PNG, `shown`.

    The map grows in `out`.part, and `out`.journal says how many of its regions are there; both become `out` at the end. A map of the same
    identity that is finished stays as it is.

    Args:
      regions: of `jaxseg.inference.tiles.tiled_regions`.
      colours: one a class.
      identity: a digest of everything the labels depend on.

    Raises:
      InputError: the part or the finished map at `out` is of something else.
    """
    part, journal = (out.with_name(out.name + suffix) for suffix in (".part", ".journal"))
    there = identity_of(out)
    if there == identity:
        journal.unlink(missing_ok=True)
        return
    if out.is_dir() and there is None:
        raise InputError(f"{out}: is a folder that `jaxseg predict` did not write. Move it away, or choose another --out.")
    shape = image.shape[:3]
    if not journal.exists():  # nothing, or a part whose making was interrupted
        _remove(part)
        create_label_file(part, shape, stack=image.stack, zarr=out.suffix == ".zarr", colours=colours, identity=identity)
        _note(journal, 0)
    if identity_of(part) != identity:
        raise InputError(f"{part}: was begun with another image, model or options. Remove it and {journal.name} to start again.")
    labels, done = open_label_file(part, shape), int(journal.read_text())
    classes = jax.jit(lambda logits: jnp.argmax(logits, -1).astype(jnp.uint16))  # NumPy takes five times as long
    for number, ((n, rows, columns), logits) in enumerate(regions(variables, image, skip=done), done + 1):
        labels.write(n, rows, columns, np.asarray(classes(logits)))  # type: ignore[arg-type]
        if number % EVERY == 0:
            labels.sync()
            _note(journal, number)
    labels.sync()
    shown.write_bytes(png_bytes(overview(image, labels.band, colours)))
    _remove(out)
    os.replace(part, out)
    journal.unlink()


def file_identity(path: Path) -> str:
    """A digest of the names, sizes and times of a file, or of all files in a folder."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    stats = ((p.relative_to(path), p.stat()) for p in files)
    return hashlib.sha256("\n".join(f"{name} {s.st_size} {s.st_mtime_ns}" for name, s in stats).encode()).hexdigest()


def overview(image: RegionFile, band: Callable[[int, int], np.ndarray], colours: Colours) -> np.ndarray:
    """The middle image of a file with its labels' colours over it, by every so many pixels."""
    n, height, width = image.shape[0] // 2, *image.shape[1:3]
    step = math.ceil(max(height, width) / SHOWN)
    # Copies: a view would keep all that it was taken from.
    label = np.concatenate([band(n, k)[-k * SIDE % step :: step, ::step].copy() for k in range(-(-height // SIDE))])
    seen = np.concatenate([image.read(n, slice(y, y + 1), slice(0, width))[:, ::step].copy() for y in range(0, height, step)])
    return overlay(seen, label, colours)


def _note(journal: Path, regions: int) -> None:
    new = journal.with_name(journal.name + ".new")
    new.write_text(f"{regions}\n")
    os.replace(new, journal)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
