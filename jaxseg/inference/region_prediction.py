"""Label maps of images larger than memory: read, predicted and written region by region. A killed run goes on where it stopped."""

import dataclasses
import functools
import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxseg.errors import InputError
from jaxseg.inference.label_files import SIDE, LabelFile, create_label_file, identity_of, open_label_file, sync
from jaxseg.inference.region_files import RegionFile
from jaxseg.inference.tiles import Region
from jaxseg.instances.stitch import Decode, stitch_into, window_count
from jaxseg.pictures import Colours, outlines, overlay, png_bytes
from jaxseg.progress import progress

EVERY, PIXELS = 16, 2**22
"""Regions, or their pixels, after which the journal is written: what a killed run computes again at most, besides two batches of tiles."""

SHOWN = 2048
"""Largest side of the overview, pixels."""

WINDOW, OVERLAP = 2048, 256
"""Of the windows in which objects are decoded, pixels. Within the overlap an object and its neighbours are what all of the image gives."""


def predict_regions(
    regions: Callable[..., Iterator[Region]],
    variables: Any,
    image: RegionFile,
    out: Path,
    shown: Path,
    *,
    colours: Colours,
    identity: str,
    decode: Decode | None = None,
) -> None:
    """The label map of all images of a file, as `out` (.zarr, or else TIFF), and a reduced overlay of the middle one as PNG, `shown`.

    The map grows in `out`.part, and `out`.journal says how many of its regions are there; both become `out` at the end. A map of the same
    identity that is finished stays as it is. Of objects an image's logits are kept in `out`.logits until they are decoded.

    Args:
      regions: of `jaxseg.inference.tiles.tiled_regions`, of classes or, with `decode`, of logits; where they are of volumes, the images
        are a volume's slices.
      colours: one a class.
      identity: a digest of everything the labels depend on.
      decode: of a route to objects; None for classes.

    Raises:
      InputError: the part or the finished map at `out` is of something else, or a folder is in a file's place.
    """
    part, journal, logits = (out.with_name(out.name + suffix) for suffix in (".part", ".journal", ".logits"))
    for file in (journal, logits, *([] if out.suffix == ".zarr" else [part])):
        if file.is_dir():
            raise InputError(f"{file}: is a folder, where a file is written meanwhile. Move it away, or choose another --out.")
    shape, draw = image.shape[:3], outlines if decode else functools.partial(overlay, colours=colours)
    image, sample = sampled(image)
    there = identity_of(out)
    if there == identity:
        if not shown.exists():
            shown.write_bytes(png_bytes(overview(image.shape, sample(), open_label_file(out, shape).read, draw)))
        if not part.exists():  # left by a run that ended at its very end; else they are of another one
            for left in (logits, journal):
                left.unlink(missing_ok=True)
        return
    if out.is_dir() and there is None:
        raise InputError(f"{out}: is a folder that `jaxseg predict` did not write. Move it away, or choose another --out.")
    progressed = _read(journal) if journal.exists() and part.exists() else None
    if progressed is None or (progressed.regions == 0 and identity_of(part) != identity):  # nothing, or nothing to lose
        _remove(part)
        logits.unlink(missing_ok=True)
        kind = None if decode else colours
        create_label_file(part, shape, stack=bool(image.stack), zarr=out.suffix == ".zarr", colours=kind, identity=identity)
        progressed = Progress(0, 0, 0, 0)
        _note(journal, progressed)
    if identity_of(part) != identity:
        raise InputError(f"{part}: was begun with another image, model or options. Remove it and {journal.name} to start again.")
    labels, (done, images, before, size) = open_label_file(part, shape), progressed
    if size and _bytes(logits) != size:  # the image that they were of is done again
        logits.unlink(missing_ok=True)
        done = before
    take, finish = _classes(labels) if decode is None else _objects(labels, decode, logits, shape)

    def note(number: int) -> None:
        labels.sync()
        if logits.exists():
            sync(logits)
        _note(journal, Progress(number, images, before, _bytes(logits)))

    def close(upto: int, number: int) -> None:
        """The images before `upto` are there, with the first `number` regions."""
        nonlocal images, before
        while images < upto:
            finish(images)
            images, before = images + 1, number
            note(number)

    number, unnoted = done, 0
    for number, ((n, rows, columns), values) in enumerate(regions(variables, image, skip=done), done + 1):
        if not isinstance(n, slice):  # of a volume all images end together
            close(n, number - 1)
        take(n, rows, columns, values)  # type: ignore[arg-type]
        unnoted += values.size
        if number % EVERY == 0 or unnoted >= PIXELS:
            note(number)
            unnoted = 0
    close(shape[0], number)
    shown.write_bytes(png_bytes(overview(image.shape, sample(), labels.read, draw)))
    _remove(out)
    os.replace(part, out)
    logits.unlink(missing_ok=True)
    journal.unlink()


class Progress(NamedTuple):
    """What a journal says: so many regions and images are finished, with the first `before` regions; the logits' file has `size` bytes."""

    regions: int
    images: int
    before: int
    size: int


Draw = Callable[[np.ndarray, np.ndarray], np.ndarray]
Take = Callable[[int | slice, slice, slice, np.ndarray], None]
Finish = Callable[[int], None]


def _classes(labels: LabelFile) -> tuple[Take, Finish]:
    """A region's classes go into the map; nothing is left to do for an image."""

    def take(n: int | slice, rows: slice, columns: slice, label: np.ndarray) -> None:
        for k, one in enumerate(label, n.start) if isinstance(n, slice) else [(n, label)]:
            labels.write(k, rows, columns, one)

    return take, lambda n: None


def _objects(labels: LabelFile, decode: Decode, file: Path, shape: tuple[int, int, int]) -> tuple[Take, Finish]:
    """A region's logits are kept in `file`; an image's are decoded window by window."""

    def stored(mode: Any, channels: int) -> Any:  # made anew each time: what was written would otherwise count as this process's memory
        return np.memmap(file, np.float32, mode, shape=(*shape[1:], channels))

    def take(n: int | slice, rows: slice, columns: slice, logits: np.ndarray) -> None:
        stored("r+" if file.exists() else "w+", logits.shape[-1])[rows, columns] = logits

    def finish(n: int) -> None:
        channels = _bytes(file) // (4 * math.prod(shape[1:]))
        windows: Any = {"window": WINDOW, "overlap": OVERLAP}
        with progress("objects", window_count(*shape[1:], **windows)) as advance:

            def decode_one(window: np.ndarray) -> np.ndarray:
                found = decode(window)
                advance(1)
                return found

            read, write = functools.partial(labels.read, n), functools.partial(labels.write, n)
            stitch_into(read, write, decode_one, stored("r", channels), **windows)

    return take, finish


def file_identity(path: Path) -> str:
    """A digest of the names, sizes and times of a file, or of all files in a folder."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    stats = ((p.relative_to(path), p.stat()) for p in files)
    return hashlib.sha256("\n".join(f"{name} {s.st_size} {s.st_mtime_ns}" for name, s in stats).encode()).hexdigest()


def sampled(image: RegionFile) -> tuple[RegionFile, Callable[[], np.ndarray]]:
    """The file, and every so many pixels of its middle image: those that are read meanwhile are kept, the others read then."""
    n, height, width, step = _shown(image.shape)
    kept = np.zeros((-(-height // step), -(-width // step), image.shape[3]), image.dtype)
    there = np.zeros(kept.shape[:2], bool)

    def read(k: int, rows: slice, columns: slice) -> np.ndarray:
        part = image.read(k, rows, columns)
        if k == n:
            y, x = -(-rows.start // step), -(-columns.start // step)
            some = part[y * step - rows.start :: step, x * step - columns.start :: step]
            where = slice(y, y + some.shape[0]), slice(x, x + some.shape[1])
            kept[where], there[where] = some, True
        return part

    def sample() -> np.ndarray:
        for y in np.flatnonzero(~there.all(1)):
            read(n, slice(int(y) * step, int(y) * step + 1), slice(0, width))
        return kept

    return dataclasses.replace(image, read=read), sample


def overview(shape: tuple[int, ...], sample: np.ndarray, read: Callable[[int, slice, slice], np.ndarray], draw: Draw) -> np.ndarray:
    """The middle image of a file [N, H, W, C], `sampled`, with its labels drawn over it."""
    n, height, width, step = _shown(shape)
    bands = [slice(top, min(top + SIDE, height)) for top in range(0, height, SIDE)]
    # Copies: a view would keep all that it was taken from.
    return draw(sample, np.concatenate([read(n, band, slice(0, width))[-band.start % step :: step, ::step].copy() for band in bands]))


def _shown(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Which image an overview shows, its height and width, and each how many pixels."""
    n, height, width = shape[0] // 2, *shape[1:3]
    return n, height, width, math.ceil(max(height, width) / SHOWN)


def _note(journal: Path, progressed: Progress) -> None:
    new = journal.with_name(journal.name + ".new")
    new.write_text(" ".join(map(str, progressed)) + "\n")
    sync(new)
    os.replace(new, journal)


def _read(journal: Path) -> Progress:
    try:
        return Progress(*map(int, journal.read_text().split()))
    except (ValueError, TypeError) as error:
        raise InputError(f"{journal}: is damaged ({error}). Remove it to start again.") from error


def _bytes(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
