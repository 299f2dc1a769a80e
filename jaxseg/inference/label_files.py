"""Label maps larger than memory, written region by region: tiled BigTIFF or Zarr, with the identity of what they were made from."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from jaxtyping import Integer

from jaxseg.pictures import Colours

SIDE = 512
"""Of the file's tiles or chunks, pixels."""

KEY = "jaxseg"


class LabelFile(NamedTuple):
    """`write(n, rows, columns, label [h, w])`, `read(n, rows, columns)`, `sync()` to the disc."""

    write: Callable[[int, slice, slice, Integer[np.ndarray, "h w"]], None]
    read: Callable[[int, slice, slice], Integer[np.ndarray, "h w"]]
    sync: Callable[[], None]


def create_label_file(path: Path, shape: tuple[int, int, int], *, stack: bool, zarr: bool, colours: Colours | None, identity: str) -> None:
    """A file of N x H x W zeros ([H, W] unless `stack`): of classes, which a TIFF file shows in their colours, or of objects, uint32.

    A TIFF file is not compressed, so that any region can be written at any time.
    """
    sides = shape if stack else shape[1:]
    kind = np.uint32 if colours is None else np.uint8 if len(colours) <= 256 else np.uint16
    about: Any = {KEY: identity} if colours is None else {KEY: identity, "colours": [list(map(int, c)) for c in colours]}
    if zarr:
        import zarr as zarr_

        chunks = (1, SIDE, SIDE)[-len(sides) :]
        names = ("z", "y", "x")[-len(sides) :]
        config: Any = {"write_empty_chunks": True}
        zarr_.create_array(str(path), shape=sides, chunks=chunks, dtype=kind, attributes=about, dimension_names=names, config=config)
        return
    look: Any = {"photometric": "minisblack"}
    if colours is not None:
        table = np.zeros((3, 2 ** (8 * np.dtype(kind).itemsize)), np.uint16)
        table[:, : len(colours)] = 257 * np.asarray(colours, np.uint16).T
        look = {"photometric": "palette", "colormap": table}
    look |= {"metadata": None, "description": json.dumps(about)}
    tifffile.imwrite(path, shape=sides, dtype=kind, bigtiff=True, tile=(SIDE, SIDE), **look)


def open_label_file(path: Path, shape: tuple[int, int, int]) -> LabelFile:
    """What `create_label_file` made of that shape."""
    return _zarr(path, shape) if path.is_dir() else _tiff(path, shape)


def identity_of(path: Path) -> str | None:
    """What a label map was made from; None of any other file."""
    try:
        if path.is_dir():
            import zarr

            return str(zarr.open_array(str(path), mode="r").attrs[KEY])
        with tifffile.TiffFile(path) as file:
            return str(json.loads(file.pages.first.description)[KEY])
    except Exception:
        return None


def _zarr(path: Path, shape: tuple[int, int, int]) -> LabelFile:
    import zarr

    config: Any = {"write_empty_chunks": True}
    array: Any = zarr.open_array(str(path), mode="r+", config=config)
    lead = array.ndim - 2

    def write(n: int, rows: slice, columns: slice, label: np.ndarray) -> None:
        array[(n,) * lead + (rows, columns)] = label.astype(array.dtype)

    return LabelFile(write, lambda n, rows, columns: array[(n,) * lead + (rows, columns)], lambda: None)


def _tiff(path: Path, shape: tuple[int, int, int]) -> LabelFile:
    down, across = (-(-n // SIDE) for n in shape[1:])
    with tifffile.TiffFile(path) as file:
        kind: Any = file.pages.first.dtype
        starts = [page.dataoffsets[0] for page in file.pages]

    def tiles(n: int) -> np.memmap:  # made anew each time: what was written would otherwise count as this process's memory
        return np.memmap(path, kind, "r+", starts[n], (down, across, SIDE, SIDE))

    def meeting(rows: slice, columns: slice) -> Iterator[tuple[tuple[int | slice, ...], tuple[slice, slice]]]:
        """Where the region lies in each tile, and where that part lies in the region."""
        for y in range(rows.start // SIDE, -(-rows.stop // SIDE)):
            for x in range(columns.start // SIDE, -(-columns.stop // SIDE)):
                (top, bottom), (left, right) = ((max(k * SIDE, s.start), min((k + 1) * SIDE, s.stop)) for k, s in ((y, rows), (x, columns)))
                tile = y, x, slice(top - y * SIDE, bottom - y * SIDE), slice(left - x * SIDE, right - x * SIDE)
                yield tile, (slice(top - rows.start, bottom - rows.start), slice(left - columns.start, right - columns.start))

    def write(n: int, rows: slice, columns: slice, label: np.ndarray) -> None:
        grid = tiles(n)
        for tile, part in meeting(rows, columns):
            grid[tile] = label[part]

    def read(n: int, rows: slice, columns: slice) -> np.ndarray:
        grid, label = tiles(n), np.empty((rows.stop - rows.start, columns.stop - columns.start), kind)
        for tile, part in meeting(rows, columns):
            label[part] = grid[tile]
        return label

    return LabelFile(write, read, lambda: sync(path))


def sync(path: Path) -> None:
    """What was written to the file is on the disc."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
