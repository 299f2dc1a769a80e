"""Label maps larger than memory, written region by region: tiled BigTIFF or Zarr, with the identity of what they were made from."""

import json
import os
from collections.abc import Callable
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
    """`write(n, rows, columns, label [h, w])`; `band(n, k)`: the label's rows from k * SIDE on, SIDE of them; `sync()` to the disc."""

    write: Callable[[int, slice, slice, Integer[np.ndarray, "h w"]], None]
    band: Callable[[int, int], Integer[np.ndarray, "side w"]]
    sync: Callable[[], None]


def create_label_file(path: Path, shape: tuple[int, int, int], *, stack: bool, zarr: bool, colours: Colours, identity: str) -> None:
    """A file of N x H x W zeros ([H, W] unless `stack`).

    A TIFF file is not compressed, so that any region can be written at any time, and shows its classes in their colours.
    """
    sides = shape if stack else shape[1:]
    kind = np.uint8 if len(colours) <= 256 else np.uint16
    about = {KEY: identity, "colours": [list(map(int, c)) for c in colours]}
    if zarr:
        import zarr as zarr_

        chunks = (1, SIDE, SIDE)[-len(sides) :]
        names = ("z", "y", "x")[-len(sides) :]
        config: Any = {"write_empty_chunks": True}
        zarr_.create_array(str(path), shape=sides, chunks=chunks, dtype=kind, attributes=about, dimension_names=names, config=config)
        return
    table = np.zeros((3, 2 ** (8 * np.dtype(kind).itemsize)), np.uint16)
    table[:, : len(colours)] = 257 * np.asarray(colours, np.uint16).T
    options: Any = {"photometric": "palette", "colormap": table, "metadata": None, "description": json.dumps(about)}
    tifffile.imwrite(path, shape=sides, dtype=kind, bigtiff=True, tile=(SIDE, SIDE), **options)


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

    return LabelFile(write, lambda n, k: array[(n,) * lead + (slice(k * SIDE, (k + 1) * SIDE),)], lambda: None)


def _tiff(path: Path, shape: tuple[int, int, int]) -> LabelFile:
    down, across = (-(-n // SIDE) for n in shape[1:])
    with tifffile.TiffFile(path) as file:
        kind: Any = file.pages.first.dtype
        starts = [page.dataoffsets[0] for page in file.pages]

    def tiles(n: int) -> np.memmap:  # made anew each time: what was written would otherwise count as this process's memory
        return np.memmap(path, kind, "r+", starts[n], (down, across, SIDE, SIDE))

    def write(n: int, rows: slice, columns: slice, label: np.ndarray) -> None:
        grid = tiles(n)
        for y in range(rows.start // SIDE, -(-rows.stop // SIDE)):
            for x in range(columns.start // SIDE, -(-columns.stop // SIDE)):
                (top, bottom), (left, right) = ((max(k * SIDE, s.start), min((k + 1) * SIDE, s.stop)) for k, s in ((y, rows), (x, columns)))
                part = label[top - rows.start : bottom - rows.start, left - columns.start : right - columns.start]
                grid[y, x, top - y * SIDE : bottom - y * SIDE, left - x * SIDE : right - x * SIDE] = part

    def band(n: int, k: int) -> np.ndarray:
        return tiles(n)[k].swapaxes(0, 1).reshape(SIDE, -1)[: shape[1] - k * SIDE, : shape[2]].copy()

    def sync() -> None:
        with path.open("rb") as file:
            os.fsync(file.fileno())

    return LabelFile(write, band, sync)
