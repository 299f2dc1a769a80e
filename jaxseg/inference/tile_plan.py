"""Where tiles lie so that each pixel's logits are the whole image's: numbers only, from the traced field of the model.

Two things decide. The fields repeat after a period, 2^depth for a U-Net, four times that where Winograd's cells are coarsest; tiles lie at
multiples of it, so that poolings and cells stay in step. And an output is the whole image's if all that it sees lies in the tile; where the
tile's edge is the image's edge both have the same padding there.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxseg.errors import InputError
from jaxseg.receptive_field import Lines, fields

REMAINDERS = 128
"""Periods of fields mostly divide it: models' strides, times 4 of Winograd's cells."""

Apply = Callable[[Float[Array, "n *s c"]], Float[Array, "n *s2 k"]]


class Reach(NamedTuple):
    """Along one axis, away from the border: output i sees the pixels from i + first[i % period] to i + last[i % period]."""

    first: Int[np.ndarray, " period"]
    last: Int[np.ndarray, " period"]
    shrink: int
    """Pixels that the output is smaller than the image, 0 for a padded model."""

    def right(self, side: int) -> tuple[int, int]:
        """From which and before which output a tile that is cut out of an image at both ends gives what the image gives."""
        i = np.arange(max(side - self.shrink, 0))
        early = np.flatnonzero(i + self.first[i % len(self.first)] < 0)
        late = np.flatnonzero(i + self.last[i % len(self.last)] >= side)
        return (int(early[-1]) + 1 if len(early) else 0), (int(late[0]) if len(late) else len(i))


class Tiling(NamedTuple):
    """Along one axis: tile k reads `side` pixels from offsets[k] - border on and writes the pixels edges[k] to edges[k + 1].

    Pixel q is output q - offsets[k] of tile k. What lies outside the image is read by reflection.
    """

    side: int
    border: int
    offsets: tuple[int, ...]
    edges: tuple[int, ...]

    @property
    def whole(self) -> int:
        """The side of the image, with its border, that the tiles are of."""
        return self.offsets[-1] + self.side


def exact_tiling(length: int, tile: int, reach: Reach, legal: Callable[[int], int]) -> Tiling:
    """Tiles whose logits are, pixel by pixel, those of the whole.

    The whole is the image or, for a model that shrinks it, the image reflected at its border to the next legal side. Sides of tiles have
    the remainder that the whole's leaves by the period, so that the last tile ends where the whole does. If a model shrinks all that sees
    a tile's end, nothing depends on it, and all sizes of images have tiles of one side.

    Args:
      length: pixels of the image.
      tile: the largest side of a tile; `exact_tiling` may take a smaller one.
      legal: the smallest side from a given one on that the model takes.

    Raises:
      InputError: a tile has no outputs, or too few, that see only the tile.
    """
    period, shrink = len(reach.first), reach.shrink
    whole = legal(length + shrink) if shrink else length
    side = whole - max(-(-(whole - tile) // period), 0) * period
    if shrink and reach.right(largest := _largest(tile, legal)) == (0, largest - shrink):
        longer = largest + -(-max(length + shrink - largest, 0) // period) * period
        cells = legal(whole + 1) - whole < period  # of layers, in which rounding lies: they must end where the whole's do
        if longer == whole or not cells:
            whole, side = longer, largest
    start, end = reach.right(side)
    step = (end - start) // period * period
    if whole > side and (side <= 0 or step <= 0):
        least = next(t for t in itertools.count(tile + 1) if _outputs(reach, t - t % period + whole % period) >= period)
        raise InputError(
            f"exact tiles: of a tile of {tile} pixels (side {max(side, 0)} at an image of {length}) no {period} outputs in a row see the "
            f"tile alone: an output sees up to {int((reach.last - reach.first).max()) + 1} pixels, and tiles must lie at multiples of "
            f"{period}. Take a tile of at least {least + period}, or blend='gaussian' (--blend gaussian; of volumes 'crop')."
        )
    offsets = (*range(0, whole - side, step), whole - side) if whole > side else (0,)
    edges = [min(o + start, length) if o else 0 for o in offsets] + [length]
    kept = [k for k in range(len(offsets)) if edges[k] < edges[k + 1]]
    return Tiling(side, shrink // 2, tuple(offsets[k] for k in kept), (*(edges[k] for k in kept), length))


def _outputs(reach: Reach, side: int) -> int:
    start, end = reach.right(side)
    return end - start


def _largest(tile: int, legal: Callable[[int], int]) -> int:
    side = next((t for t in range(tile, max(tile - 64, 0), -1) if legal(t) == t), None)
    if side is None:
        raise InputError(f"exact tiles: the model takes no side near {tile}; the smallest from there is {legal(tile)}. Take that.")
    return side


def blended_tiling(length: int, tile: int, overlap: float, part: int = 8) -> Tiling:
    """Tiles that share `overlap` of their side or more with the next, at multiples of 32, most models' strides.

    Small tiles lie at multiples of the power of two below tile / `part`.

    Their side is the largest up to `tile` at which the last one ends where the image does.
    """
    period = min(1 << max((tile // part).bit_length() - 1, 0), 32)
    side = length - max(-(-(length - tile) // period), 0) * period
    step = max(int(side * (1 - overlap)) // period, 1) * period
    offsets = (*range(0, length - side, step), length - side)
    return Tiling(side, 0, offsets, (*offsets, length))


def cropped_tiling(length: int, tile: int, overlap: float) -> Tiling:
    """Tiles as `blended_tiling`'s, each of which gives what lies before the middle of its overlap with the next."""
    tiling = blended_tiling(length, tile, overlap, part=4)
    middles = [(before + tiling.side + after) // 2 for before, after in itertools.pairwise(tiling.offsets)]
    return tiling._replace(edges=(0, *middles, length))


def legal_side(apply: Apply, side: int, channels: int, axes: int = 2) -> int:
    """The smallest side from `side` on that the model takes."""
    refused = None
    for longer in range(side, side + 257):
        try:
            jax.eval_shape(apply, jax.ShapeDtypeStruct((1, *(longer,) * axes, channels), jnp.float32))
            return longer
        except InputError as error:
            refused = refused or error
    raise InputError(f"tiles: the model takes no side from {side} to {side + 256}. {refused}") from refused


def find_reach(apply: Apply, channels: int, tile: int, size: tuple[int, ...], modulus: int = REMAINDERS) -> tuple[Reach, ...]:
    """Of rows and columns (and slices, before them), from the traced model; the period is taken to show in the fields, as a U-Net's does.

    Args:
      size: of the image. Small ones are traced, of sides that leave the same remainders by `modulus`, since a padding may lie otherwise
        where the remainder by the period is another. A `modulus` that is no multiple of the periods is made one.

    Raises:
      InputError: no output of a tile is free of the tile's edge, because it sees all of any image or more than the tile.
    """
    base = legal_side(apply, max(tile // 2, 32), channels, len(size))
    while True:
        sides = tuple(base + (length - base) % modulus for length in size)
        lines = _lines(apply, sides, channels)
        reach = [_regular(lo, hi, side) for (lo, hi), side in zip(lines, sides, strict=True)]
        known = tuple(r for r in reach if r is not None)
        if len(known) == len(reach):
            periods = math.lcm(*(len(r.first) for r in known))
            if modulus % periods == 0:
                return known
            modulus = math.lcm(modulus, periods)
            continue
        if base >= 2 * tile:
            break
        base *= 2
    widest = max(int((hi - lo).max()) + 1 for lo, hi in lines)
    everything = all((hi - lo == side - 1).all() for (lo, hi), side in zip(lines, sides, strict=True))
    why = (
        f"every output of {' x '.join(map(str, sides))} pixels depends on all of them: by an instance or group norm, a global mean or "
        f"attention, which no tile can give, or by so wide a field, for which tiles of {tile} are too small"
        if everything
        else f"outputs depend on up to {widest} of {min(sides)} pixels, or do not lie pixel on pixel, so tiles of {tile} are too small"
    )
    blend, whole = ("gaussian", "predict the image whole") if len(size) == 2 else ("crop", "a tile that holds the whole volume")
    raise InputError(f"exact tiles: {why}. Take blend='{blend}' (--blend {blend}), whose seams are an approximation, or {whole}.")


def _lines(apply: Apply, sides: tuple[int, ...], channels: int) -> tuple[Lines, ...]:
    """What each output line sees; of volumes axis by axis, the other sides as small as they can be."""
    if len(sides) == 2:
        return fields(apply, (1, *sides, channels))
    least = legal_side(apply, 1, channels, len(sides))
    shapes = [(1, *(side if k == axis else least for k, side in enumerate(sides)), channels) for axis in range(len(sides))]
    return tuple(fields(apply, shape)[axis] for axis, shape in enumerate(shapes))


def _regular(lo: Int[np.ndarray, " h"], hi: Int[np.ndarray, " h"], side: int) -> Reach | None:
    """From the middle half of the outputs, if it sees no border and shows three periods."""
    index = np.arange(len(lo) // 4, 3 * len(lo) // 4)
    if not len(index) or lo[index].min() <= 0 or hi[index].max() >= side - 1:
        return None
    first, last = lo[index] - index, hi[index] - index
    for period in range(1, len(index) // 3 + 1):
        if (first[period:] == first[:-period]).all() and (last[period:] == last[:-period]).all():
            phase = np.argsort(index[:period] % period)
            return Reach(first[:period][phase], last[:period][phase], side - len(lo))
    return None
