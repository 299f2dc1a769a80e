"""Label maps of images too large to decode at once: windows are decoded one by one, and every object is taken from one of them."""

import itertools
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import ndimage

from jaxseg.errors import InputError

Decode = Callable[[Float[np.ndarray, "h w k"]], Int[np.ndarray, "h w"]]

Read = Callable[[slice, slice], Int[np.ndarray, "h w"]]
Write = Callable[[slice, slice, Int[np.ndarray, "h w"]], None]


def stitched(decode: Decode, logits: Any, *, window: int = 2048, overlap: int = 256) -> Int[np.ndarray, "h w"]:
    """`decode(logits)` window by window, int32 [H,W] numbered 1..n: objects that cross a window's border come out once and whole.

    The windows' inner parts, `overlap / 2` from their borders, divide the image; an object is taken from the window in whose inner part
    the centre of its bounding box lies. One at most `overlap` pixels high and wide is whole there, and is what `decode` of all logits
    gives, up to its number, provided that its neighbours beyond the window's border do not change it: `overlap` must hold an object and a
    neighbour on either side, or the pixels where they touch may go to the other one (under a watershed more: a neighbour that is cut may
    lose its seed).
    Pieces of larger objects are joined where they overlap.

    Args:
      logits: [H,W,K], of which windows are read: an array, a memory map, or whatever can be sliced.
      window: side of the square windows, pixels.
      overlap: of neighbouring windows, pixels; even.

    Raises:
      InputError: `logits` has not three axes, or window and overlap leave no inner part.
    """
    if len(logits.shape) != 3:
        raise InputError(f"stitched: got logits of shape {tuple(logits.shape)}; required [H,W,K]: give one image at a time.")
    label = np.zeros(logits.shape[:2], np.int32)
    stitch_into(lambda *at: label[at], lambda *at: label.__setitem__(at[:2], at[2]), decode, logits, window=window, overlap=overlap)
    return label


def stitch_into(read: Read, write: Write, decode: Decode, logits: Any, *, window: int = 2048, overlap: int = 256) -> int:
    """The same into a label map that is read and written by rows and columns, such as one in a file; returns the number of objects."""
    if overlap < 0 or overlap % 2 or window <= overlap:
        raise InputError(f"stitched: got window={window}, overlap={overlap}; required an even overlap from 0, less than the window.")
    height, width = logits.shape[:2]
    cuts = [[slice(low, min(low + window, side)) for low in range(0, side, window)] for side in (height, width)]
    for rows, columns in itertools.product(*cuts):
        write(rows, columns, np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.int32))
    joined = array("i", [0])  # of each number the one that it is joined to; a chain ends in itself
    cut = array("b", [False])
    for rows, columns in itertools.product(_windows(height, window, overlap), _windows(width, window, overlap)):
        seen = decode(np.asarray(logits[rows[0], columns[0]]))
        at = np.array(read(rows[0], columns[0]), np.int32)
        for number, box in enumerate(ndimage.find_objects(seen), 1):
            if box is None or not all(_centred(box[i], inner) for i, (_, inner) in enumerate((rows, columns))):
                continue
            mask, under = seen[box] == number, at[box]
            new = len(joined)
            joined.append(new)
            cut.append(_cut(box[0], rows[0], height) or _cut(box[1], columns[0], width))
            if cut[new]:
                for old in np.unique(under[mask & (under > 0)]):
                    if cut[old]:
                        joined[_end(joined, old)] = new
            under[mask] = new
        write(rows[0], columns[0], at)
    ends = np.array([_end(joined, number) for number in range(len(joined))], np.int32)
    used = np.zeros(len(ends), bool)
    for rows, columns in itertools.product(*cuts):
        used[ends[np.asarray(read(rows, columns), np.int32)]] = True
    used[0] = False
    numbers = np.where(used, np.cumsum(used), 0).astype(np.int32)[ends]  # without gaps
    for rows, columns in itertools.product(*cuts):
        write(rows, columns, numbers[np.asarray(read(rows, columns), np.int32)])
    return int(used.sum())


def window_count(height: int, width: int, *, window: int = 2048, overlap: int = 256) -> int:
    """How often `stitch_into` decodes."""
    return len(_windows(height, window, overlap)) * len(_windows(width, window, overlap))


def _windows(side: int, window: int, overlap: int) -> list[tuple[slice, slice]]:
    """Windows along one axis, and the inner part of each in its own pixels; the first and the last reach to the image's border."""
    step = window - overlap
    starts = range(0, max(side - overlap, 1), step)
    parts = []
    for start in starts:
        stop = min(start + window, side)
        first = 0 if start == 0 else overlap // 2
        last = stop - start if start == starts[-1] else step + overlap // 2
        parts.append((slice(start, stop), slice(first, last)))
    return parts


def _centred(box: slice, inner: slice) -> bool:
    """Whether the middle of the box lies in the inner part."""
    return 2 * inner.start <= box.start + box.stop < 2 * inner.stop


def _cut(box: slice, window: slice, side: int) -> bool:
    """Whether the box touches a border of the window that is not the image's."""
    return (box.start == 0 and window.start > 0) or (box.stop == window.stop - window.start and window.stop < side)


def _end(joined: Sequence[int], number: int) -> int:
    while joined[number] != number:
        number = joined[number]
    return number
