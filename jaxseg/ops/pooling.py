"""Max pooling that stores the positions of its maxima, and its inverse, without gather, scatter or select-and-scatter.

Positions are window-relative: row * window width + column. Nothing depends on the image's size, so both directions shard freely over
the height and width. `flat_indices` and `window_indices` convert to and from torch's positions. Meant for small windows: each pixel of
a window is a term of its own in the program.
"""

import functools
import itertools
import operator
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Int32

from jaxseg.errors import InputError
from jaxseg.ops.shapes import Pair, cut, need_floats, need_image, pair


class _Axis(NamedTuple):
    """Windows along the height or width: `count` of them, one every `stride` pixels, the first `padding` before the first pixel."""

    size: int
    window: int
    stride: int
    padding: int
    count: int

    def starts(self) -> Any:
        arange = np.arange if isinstance(self.count, int) else jnp.arange  # an export may leave it open
        return arange(self.count, dtype=np.int32) * self.stride - self.padding


def max_pool(
    x: Float[Array, "*n h w c"], window: Pair = 2, stride: Pair | None = None, padding: Pair = 0, *, ceil_mode: bool = True
) -> Float[Array, "*n h2 w2 c"]:
    """`max_pool_with_indices` without the positions, which only derivatives then compute: [..., H, W, C] -> [..., H2, W2, C]."""
    return _pool(x, *_pooling_axes("max_pool", x, window, stride, padding, ceil_mode))


def max_pool_with_indices(
    x: Float[Array, "*n h w c"], window: Pair = 2, stride: Pair | None = None, padding: Pair = 0, *, ceil_mode: bool = True
) -> tuple[Float[Array, "*n h2 w2 c"], Int[Array, "*n h2 w2 c"]]:
    """Max pooling and the position of each maximum in its window: [..., H, W, C] -> two [..., H2, W2, C].

    Ties take the first maximum in row-major order, in the gradient too, as torch does. NaN is a maximum; of several in a window the
    first counts (torch: the last). A position never lies in the padding, not even where all pixels of a window are -inf.

    Args:
      window: its height and width, or one number for both; `stride` and `padding` likewise.
      stride: default the window.
      padding: -inf on all sides, at most half the window.
      ceil_mode: rows and columns left over at the end form windows of their own, unless these would begin behind the last pixel. So
        H2 = ceil(H / 2) by default.

    Returns:
      the maxima, and row * window width + column of each: int8, or int16 where a window has more than 128 pixels.

    Raises:
      InputError: x is not an image of floats, a number is out of its range, or not one window fits.

    Source: Zeiler & Fergus 2014 (switches); torch.nn.MaxPool2d(window, stride, padding, ceil_mode=..., return_indices=True).

    >>> y, i = max_pool_with_indices(jnp.array([[1., 5.], [7., 7.]])[None, :, :, None])
    >>> float(y[0, 0, 0, 0]), int(i[0, 0, 0, 0])
    (7.0, 2)
    """
    rows, columns = _pooling_axes("max_pool_with_indices", x, window, stride, padding, ceil_mode)
    return _pool(x, rows, columns), _argmax(x, rows, columns)


def max_unpool(
    x: Float[Array, "*n h w c"],
    indices: Int[Array, "*n h w c"],
    window: Pair = 2,
    stride: Pair | None = None,
    padding: Pair = 0,
    *,
    size: Pair | None = None,
) -> Float[Array, "*n h2 w2 c"]:
    """Put each value at the stored position of its window, zeros elsewhere: [..., H, W, C] -> [..., H2, W2, C], by default 2H and 2W.

    Where overlapping windows write to one pixel, the last in row-major order wins, and the gradient goes to it alone. torch stores the
    same on a CPU (on a GPU any of the values), but its backward gives the gradient to every window that wrote.

    Args:
      x: values, the shape of `indices`.
      indices: positions from `max_pool_with_indices` with the same numbers. A value is dropped if its position lies outside the window,
        in the padding or outside `size`; those of a pooling never do.
      size: (H2, W2), that of the pooled image: less than a stride from the default (H - 1) * stride - 2 * padding + window.

    Raises:
      InputError: shapes differ or are not those of images, or a number is out of its range.

    Source: SegNet (Badrinarayanan et al. 2017, figure 3); torch.nn.functional.max_unpool2d(..., output_size=size).
    """
    need_image("max_unpool", x.shape)
    if x.shape != indices.shape:
        raise InputError(
            f"max_unpool: values {x.shape} and positions {indices.shape} differ; both must be [..., H, W, C] of one pooling. "
            "Project the values to the pooled map's channels and crop them to its size first."
        )
    rows, columns = axes = _unpooling_axes("max_unpool", indices, size, window, stride, padding)
    if any(a.window > a.stride for a in axes):
        return _overlapping_unpool(x, indices, rows, columns)
    indices = indices.astype(jnp.result_type(indices, _dtype(rows, columns)))
    spread, between = [], (rows.stride - 1, columns.stride - 1)
    for i, j in _positions(rows, columns):
        here = jnp.where(indices == i * columns.window + j, x, 0)
        spread.append(_pad(here, 0, (i, rows.window - 1 - i), (j, columns.window - 1 - j), between))
    whole = functools.reduce(operator.add, spread)  # at most one term of a pixel is not 0
    # Cut off here, not in the pads above: XLA's partitioner aborts the process at a pad that dilates and cuts a sharded axis.
    return _pad(whole, 0, *((-a.padding, a.size + a.padding - n) for a, n in zip(axes, whole.shape[-3:-1], strict=True)))


def flat_indices(
    indices: Int[Array, "*n h w c"], size: Pair, window: Pair = 2, stride: Pair | None = None, padding: Pair = 0
) -> Int32[Array, "*n h w c"]:
    """Window-relative positions as torch's: row * W2 + column in the unpadded image of `size` (H2, W2).

    A position that `max_unpool` drops, such as -1, becomes -1; torch's max_unpool2d refuses it.

    Raises:
      InputError: `indices` are no image, a number is out of its range, or `size` cannot have been pooled to [H, W].

    Source: `return_indices` of torch.nn.MaxPool2d.
    """
    need_image("flat_indices", indices.shape)
    rows, columns = _unpooling_axes("flat_indices", indices, size, window, stride, padding)
    i, j = jnp.divmod(indices.astype(jnp.int32), columns.window)
    row, column = i + rows.starts()[:, None, None], j + columns.starts()[:, None]
    inside = (i >= 0) & (i < rows.window) & (row >= 0) & (row < rows.size) & (column >= 0) & (column < columns.size)
    return jnp.where(inside, row * columns.size + column, -1)


def window_indices(
    flat: Int[Array, "*n h w c"], size: Pair, window: Pair = 2, stride: Pair | None = None, padding: Pair = 0
) -> Int[Array, "*n h w c"]:
    """The inverse of `flat_indices`, with the same errors. A position outside its window becomes -1, which `max_unpool` drops."""
    need_image("window_indices", flat.shape)
    rows, columns = _unpooling_axes("window_indices", flat, size, window, stride, padding)
    row, column = jnp.divmod(flat, columns.size)
    i, j = row - rows.starts()[:, None, None], column - columns.starts()[:, None]
    inside = (i >= 0) & (i < rows.window) & (j >= 0) & (j < columns.window)
    return jnp.where(inside, i * columns.window + j, -1).astype(_dtype(rows, columns))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _pool(x: Array, rows: _Axis, columns: _Axis) -> Array:
    """The maximum of each window; the rule below gives it the derivative of the first maximum, where `jnp.maximum` would halve ties."""
    parts = [(_strided(rows, i), _strided(columns, j)) for i, j in _positions(rows, columns)]
    return functools.reduce(
        jnp.maximum, [_pad(cut(x, {-3: height, -2: width}), -jnp.inf, up, left) for (height, up), (width, left) in parts]
    )


@_pool.defjvp
def _(rows, columns, primals, tangents):
    index = lax.optimization_barrier(_argmax(primals[0], rows, columns))
    # A checkpoint, so that what is kept for the transpose is the index and not the masks made of it.
    read = jax.checkpoint(functools.partial(_read, rows=rows, columns=columns), prevent_cse=False)
    return _pool(primals[0], rows, columns), read(tangents[0], index)


def _argmax(x: Array, rows: _Axis, columns: _Axis) -> Array:
    """The position of the first maximum of each window.

    It reads cells and `_pool` strides: were they to read the same slices, XLA would store all of them for both.
    """
    cells = _cells(lax.stop_gradient(x), rows, columns, -jnp.inf)
    height, width = cells.shape[-5], cells.shape[-3]
    values = []
    for i, j in _positions(rows, columns):
        (u, a), (v, b) = divmod(i - rows.padding, rows.stride), divmod(j - columns.padding, columns.stride)
        one = lax.squeeze(cut(cells, {-4: slice(a, a + 1), -2: slice(b, b + 1)}), (cells.ndim - 4, cells.ndim - 2))
        values.append(_pad(one, -jnp.inf, (-u, rows.count + u - height), (-v, columns.count + v - width)))
    up, left = ((-axis.starts()).clip(0) for axis in (rows, columns))  # the first position of a window that is not in the padding
    dtype = _dtype(rows, columns)  # added up in the program, which would else hold a table of the map's size
    first = jnp.asarray(up * columns.window, dtype)[:, None, None] + jnp.asarray(left, dtype)[:, None]
    best, index = values[0], jnp.broadcast_to(first, values[0].shape)
    for position, value in enumerate(values[1:], 1):
        better = ~(value <= best) & (best == best)  # NaN is better than a number, nothing is better than NaN
        best, index = jnp.where(better, value, best), jnp.where(better, jnp.asarray(position, index.dtype), index)
    return index


def _read(x: Array, index: Array, rows: _Axis, columns: _Axis) -> Array:
    """What x has at the positions: linear in x, and written for its transpose, which becomes one loop over the image."""
    cells = _cells(x, rows, columns, 0)
    height, width = cells.shape[-5], cells.shape[-3]
    read = []
    for (u, v), here in _hits(index, rows, columns):
        found = jnp.where(here, cells, 0).sum((-4, -2))
        read.append(_pad(found, 0, (-u, rows.count + u - height), (-v, columns.count + v - width)))
    return functools.reduce(operator.add, read)


def _overlapping_unpool(x: Array, indices: Array, rows: _Axis, columns: _Axis) -> Array:
    """Of the windows that write to a pixel, the last overwrites the others."""
    indices = jnp.maximum(indices.astype(jnp.int32), -1)  # -2 means something in `_hits`
    cells = jnp.zeros((), x.dtype)
    for (_, here), (_, values) in zip(_hits(indices, rows, columns), _shifted(x, 0, rows, columns), strict=True):
        cells = jnp.where(here, values[..., : here.shape[-5], :, :, :, :], cells)
    *n, height, s, width, t, c = cells.shape
    return cells.reshape(*n, height * s, width * t, c)[..., : rows.size, : columns.size, :]


def _hits(index: Array, rows: _Axis, columns: _Axis) -> Iterator[tuple[tuple[int, int], Array]]:
    """Which pixels, as cells, are at the position of window o, for each (u, v) such that cell o + (u, v) can hold pixels of window o."""
    for (u, v), shifted in _shifted(index, -1, rows, columns):
        i = (u * rows.stride + rows.padding + np.arange(rows.stride))[:, None, None, None]
        j = (v * columns.stride + columns.padding + np.arange(columns.stride))[:, None]
        inside = (i >= 0) & (i < rows.window) & (j >= 0) & (j < columns.window)
        position = np.where(inside, i * columns.window + j, -2).astype(index.dtype)
        yield (u, v), (shifted == position)[..., : -(-rows.size // rows.stride), :, :, :, :]


def _shifted(x: Array, fill: float, rows: _Axis, columns: _Axis) -> Iterator[tuple[tuple[int, int], Array]]:
    """What window o has, at cell o + (u, v): [..., H2, W2, C] -> [..., ceil(H / s) + 0 or 1, 1, ceil(W / t), 1, C], late windows last."""
    us, vs = (range((a.window - 1 - a.padding) // a.stride, -a.padding // a.stride - 1, -1) for a in (rows, columns))
    # Every shift must read padding, hence another row: one that reads none XLA takes from before the padding, computing x again.
    height, width = -(-rows.size // rows.stride) + (len(us) * len(vs) > 1), -(-columns.size // columns.stride)
    x = _pad(x, fill, (us[0], height - rows.count - us[-1]), (vs[0], width - columns.count - vs[-1]))
    for u, v in itertools.product(us, vs):
        shifted = cut(x, {-3: slice(us[0] - u, us[0] - u + height), -2: slice(vs[0] - v, vs[0] - v + width)})
        yield (u, v), jnp.expand_dims(shifted, (-4, -2))


def _positions(rows: _Axis, columns: _Axis) -> Iterable[tuple[int, int]]:
    return itertools.product(range(rows.window), range(columns.window))


def _strided(axis: _Axis, i: int) -> tuple[slice, tuple[int, int]]:
    """The pixels that are the i-th of their window, and how many windows before and behind have theirs in the padding."""
    first = min(axis.count, max(0, -((i - axis.padding) // axis.stride)))
    behind = max(first, min(axis.count, (axis.size - 1 + axis.padding - i) // axis.stride + 1))
    start = first * axis.stride - axis.padding + i
    return slice(start, min(start + (behind - first) * axis.stride, axis.size), axis.stride), (first, axis.count - behind)


def _cells(x: Array, rows: _Axis, columns: _Axis, fill: float) -> Array:
    """[..., H, W, C] -> [..., ceil(H / s), s, ceil(W / t), t, C] for strides s and t."""
    height, width = -(-rows.size // rows.stride), -(-columns.size // columns.stride)
    x = _pad(x, fill, (0, height * rows.stride - rows.size), (0, width * columns.stride - columns.size))
    return x.reshape(*x.shape[:-3], height, rows.stride, width, columns.stride, x.shape[-1])


def _pad(x: Array, fill: float, rows: tuple[int, int], columns: tuple[int, int], between: tuple[int, int] = (0, 0)) -> Array:
    """Pads the height and width (before, behind), cuts off where negative; `between` is the gap between pixels."""
    if not any((*rows, *columns, *between)):
        return x
    return lax.pad(x, jnp.asarray(fill, x.dtype), [(0, 0, 0)] * (x.ndim - 3) + [(*rows, between[0]), (*columns, between[1]), (0, 0, 0)])


def _dtype(rows: _Axis, columns: _Axis) -> Any:
    return jnp.int8 if rows.window * columns.window <= 128 else jnp.int16


def _pooling_axes(who: str, x: Array, window: Pair, stride: Pair | None, padding: Pair, ceil_mode: bool) -> tuple[_Axis, _Axis]:
    need_image(who, x.shape)
    need_floats(who, x.dtype)

    def axis(size: int, k: int, s: int, p: int) -> _Axis:
        count = (size + 2 * p - k + ceil_mode * (s - 1)) // s + 1
        count -= (count - 1) * s >= size + p
        if count < 1:
            raise InputError(f"{who}: got an axis of {size} pixels; required a window of {k} with padding {p}. Choose a smaller window.")
        return _Axis(size, k, s, p, count)

    rows, columns = _numbers(who, window, stride, padding)
    return axis(x.shape[-3], *rows), axis(x.shape[-2], *columns)


def _unpooling_axes(who: str, indices: Array, size: Pair | None, window: Pair, stride: Pair | None, padding: Pair) -> tuple[_Axis, _Axis]:
    counts, numbers = indices.shape[-3:-1], _numbers(who, window, stride, padding)
    whole = [(n - 1) * s - 2 * p + k for n, (k, s, p) in zip(counts, numbers, strict=True)]
    sizes = whole if size is None else pair(who, "size", size, 1)
    if any(abs(a - b) >= s for a, b, (_, s, _) in zip(sizes, whole, numbers, strict=True)):
        raise InputError(
            f"{who}: got size {size} for {counts[0]} x {counts[1]} windows; required less than a stride from {tuple(whole)}. "
            "Give the height and width of the image that was pooled, and the window, stride and padding of that pooling."
        )
    rows, columns = (_Axis(size, *three, n) for size, n, three in zip(sizes, counts, numbers, strict=True))
    return rows, columns


def _numbers(who: str, window: Pair, stride: Pair | None, padding: Pair) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """(window, stride, padding) of the height and of the width."""
    k = pair(who, "window", window, 1)
    s = k if stride is None else pair(who, "stride", stride, 1)
    p = pair(who, "padding", padding, 0)
    if k[0] * k[1] > 2**15:
        raise InputError(f"{who}: got a window of {k}; required at most 32768 pixels. Take the maximum over whole axes instead.")
    if 2 * p[0] > k[0] or 2 * p[1] > k[1]:
        raise InputError(f"{who}: got padding {p} for a window of {k}; required at most half of it. Pad the image first.")
    return (k[0], s[0], p[0]), (k[1], s[1], p[1])
