"""Convolutions that XLA does slowly on CPUs: wide 3x3 ones by Winograd's minimal filtering, depthwise, 1x1 and narrow ones, and volumes.

There it multiplies directly, and depthwise without vectors; cuDNN and TPUs choose their own algorithm and are left to it.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxseg.ops.product_rule import product_rule
from jaxseg.ops.shapes import cut

Padding = tuple[tuple[int, int], tuple[int, int]]
NARROW = 32
"""Output channels below which XLA's weight gradients are slow. Measured on CPUs."""
_NHWC = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
_NDHWC = lax.ConvDimensionNumbers((0, 4, 1, 2, 3), (4, 3, 0, 1, 2), (0, 4, 1, 2, 3))
_COUNT: ContextVar[Callable[[int], int]] = ContextVar("count", default=lambda pixels: pixels)


@contextlib.contextmanager
def pixels_counted(count: Callable[[int], int]) -> Iterator[None]:
    """What is traced inside chooses its forms as if a layer's batch had `count(pixels)` pixels: in a tile, the whole image's.

    `count` is asked once for each layer that has a choice, in the order of computation. The forms differ in rounding only. Traced
    functions that jit keeps are not traced again.
    """
    before = _COUNT.set(count)
    try:
        yield
    finally:
        _COUNT.reset(before)


def counted(pixels: int) -> int:
    """The pixels by which a form is chosen."""
    return _COUNT.get()(pixels)


def conv_general_dilated(
    x: Float[Array, "n *s i"],
    kernel: Float[Array, "*k i o"],
    window_strides: Sequence[int],
    padding: Any,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
) -> Float[Array, "n *s2 o"]:
    """`lax.conv_general_dilated`, for `nn.Conv(conv_general_dilated=...)`: the same values to rounding, faster on CPUs for most layers of
    stride 1.

    Of float32 without groups and stride 1 where not said otherwise; anything else is handed on:

    * 3x3, from 64 channels in and out and 256 output pixels in the batch (more where the filters are as much work as they): Winograd's
      F(4x4, 3x3) makes each 4x4 cell of outputs of 36 products instead of 144. An output then holds rounding, or nan, of the whole 6x6
      inputs of its cell. With a dilation of up to 4, each of the images of every so many pixels is convolved so.
    * From 128 channels, 3x3 (dilated by up to 4) with fewer pixels and any size with at most a pixel for four output channels: a product
      with the patches.
    * 3x3 with fewer than 32 output channels, undilated: the weight gradient is computed with zeros beside them.
    * 1x1 without padding, of any stride: a matrix product, of one output channel with zeros beside it in the forward pass.
    * One filter a channel, of any size, stride and dilation: a sum of shifted images.
    * Volumes, [N, D, H, W, I], of any stride and dilation: one of the above or a plain convolution of images, the slices that a kernel
      reaches side by side as their channels.

    Source: Lavin & Gray 2016, Fast Algorithms for Convolutional Neural Networks, section 4.
    """
    if _ours(x, kernel, lhs_dilation, dimension_numbers) and precision is None:
        stride, holes = tuple(window_strides), (1,) * (x.ndim - 2) if rhs_dilation is None else tuple(rhs_dilation)
        spans = [d * (k - 1) + 1 for d, k in zip(holes, kernel.shape, strict=False)]
        edges = lax.padtype_to_pads(x.shape[1:-1], spans, stride, padding) if isinstance(padding, str) else padding
        if x.ndim == 5:
            return _slices(x, kernel, stride, edges, holes, feature_group_count)
        h, w = (n + lo + hi - span + 1 for n, (lo, hi), span in zip(x.shape[1:3], edges, spans, strict=True))  # of stride 1
        (top, bottom), (left, right) = edges
        edges = ((top, bottom), (left, right))
        dense = min(h, w) > 0 and feature_group_count == 1 and x.shape[3] == kernel.shape[2]
        if min(h, w) > 0 and kernel.shape[2:] == (1, feature_group_count) and x.shape[3] == feature_group_count > 1:
            return _depthwise(x, kernel[:, :, 0], stride, edges, holes)
        if dense and kernel.shape[:2] == (1, 1) and not any((top, bottom, left, right)):
            return (_one_filter if kernel.shape[3] == 1 else _pixelwise)(x[:, :: stride[0], :: stride[1]], kernel)
        if dense and stride == (1, 1):
            i, o = kernel.shape[2:]
            pixels, three = x.shape[0] * h * w, kernel.shape[:2] == (3, 3)
            if three and min(i, o) >= 64 and max(holes) <= 4 and counted(pixels) >= max(256, i * o // 256):
                return _winograd(x, kernel, edges) if holes == (1, 1) else _every_so_many(x, kernel, edges, holes)
            if min(i, o) >= 128 and ((three and max(holes) <= 4) or counted(pixels) <= o // 4):
                return _patches(x, kernel, edges, holes)
            if three and o < NARROW and holes == (1, 1):
                return _narrow(x, kernel, edges)
    return lax.conv_general_dilated(
        x, kernel, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count, precision=precision
    )


def _ours(x: Array, kernel: Array, lhs_dilation: Sequence[int] | None, dimension_numbers: Any) -> bool:
    """NHWC or NDHWC and float32 on a CPU, of known shape (an export's may be symbols, which do not compare), not on an explicit mesh."""
    return (
        jax.default_backend() == "cpu"
        and x.dtype == kernel.dtype == jnp.float32
        and x.ndim in (4, 5)
        and lax.conv_dimension_numbers(x.shape, kernel.shape, dimension_numbers) in (_NHWC, _NDHWC)
        and all(isinstance(n, int) for n in (*x.shape, *kernel.shape))
        and (lhs_dilation is None or set(lhs_dilation) == {1})
        and jax.sharding.AxisType.Explicit not in jax.typeof(x).sharding.mesh.axis_types
    )


def _slices(
    x: Float[Array, "n d h w i"],
    kernel: Float[Array, "kd kh kw i o"],
    stride: Sequence[int],
    edges: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
) -> Float[Array, "n d2 h2 w2 o"]:
    """One convolution of images, whose channels are those of all slices that the kernel reaches: XLA's of volumes takes 3 to 6 times as
    long."""
    (lo, hi), (k, i), (step, hole) = edges[0], (kernel.shape[0], x.shape[-1]), (stride[0], dilation[0])
    depth = (x.shape[1] + lo + hi - hole * (k - 1) - 1) // step + 1
    if groups > 1 or depth < 1 or min(x.shape) < 1 or kernel.shape[-2] != i:
        return lax.conv_general_dilated(x, kernel, stride, edges, None, dilation, _NDHWC, groups)

    @jax.checkpoint  # what is kept for the gradient is x, and not its copies side by side
    def convolution(x: Array, kernel: Array) -> Array:
        padded = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (lo, hi, 0), *[(0, 0, 0)] * 3])
        slices = [cut(padded, {1: slice(a * hole, a * hole + (depth - 1) * step + 1, step)}) for a in range(k)]
        images = jnp.concatenate(slices, -1).reshape(x.shape[0] * depth, *x.shape[2:4], k * i)
        flat = jnp.moveaxis(kernel, 0, 2).reshape(*kernel.shape[1:3], k * i, kernel.shape[-1])
        y = conv_general_dilated(images, flat, stride[1:], edges[1:], None, dilation[1:], _NHWC)
        return y.reshape(x.shape[0], depth, *y.shape[1:])

    return convolution(x, kernel)


def _pixelwise(x: Float[Array, "n h w i"], kernel: Float[Array, "1 1 i o"]) -> Float[Array, "n h w o"]:
    """One matrix product; its transpose in the kernel takes half as long as a convolution's."""
    n, h, w, i = x.shape
    return jnp.matmul(x.reshape(n * h * w, i), kernel[0, 0]).reshape(n, h, w, kernel.shape[3])


@product_rule(x=_pixelwise, kernel=_pixelwise)
def _one_filter(x: Float[Array, "n h w i"], kernel: Float[Array, "1 1 i 1"]) -> Float[Array, "n h w 1"]:
    """With zeros beside it: the product with a vector XLA rounds by the number of pixels, that with a matrix alike from about 100 on."""
    return _pixelwise(x, jnp.pad(kernel, [*[(0, 0)] * 3, (0, 1)]))[..., :1]


def _direct(x: Float[Array, "n h w i"], kernel: Float[Array, "kh kw i o"], padding: Padding) -> Float[Array, "n h2 w2 o"]:
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=_NHWC)


def _patches(
    x: Float[Array, "n h w i"], kernel: Float[Array, "kh kw i o"], padding: Padding, dilation: Sequence[int] = (1, 1)
) -> Float[Array, "n h2 w2 o"]:
    """One matrix product with the patches side by side: with few pixels the kernel is the work, and it is read as it lies."""
    n, (kh, kw, i, o), (down, across) = x.shape[0], kernel.shape, dilation
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*edge, 0) for edge in padding), (0, 0, 0)])
    h, w = x.shape[1] - down * (kh - 1), x.shape[2] - across * (kw - 1)
    rows, columns = range(0, down * kh, down), range(0, across * kw, across)
    patches = jnp.concatenate([x[:, a : a + h, b : b + w] for a in rows for b in columns], 3)
    return jnp.matmul(patches.reshape(n * h * w, kh * kw * i), kernel.reshape(kh * kw * i, o)).reshape(n, h, w, o)


def _every_so_many(
    x: Float[Array, "n h w i"], kernel: Float[Array, "3 3 i o"], padding: Padding, dilation: Sequence[int]
) -> Float[Array, "n h2 w2 o"]:
    """A dilated convolution sees every so many pixels: they are images of their own, for minimal filtering."""
    (n, _, _, i), (down, across), o = x.shape, dilation, kernel.shape[3]
    h, w = (side + sum(edge) - 2 * d for side, edge, d in zip(x.shape[1:3], padding, dilation, strict=True))
    high, wide = -(-h // down) + 2, -(-w // across) + 2
    ends = (high * down - x.shape[1] - padding[0][0], wide * across - x.shape[2] - padding[1][0])
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (padding[0][0], ends[0], 0), (padding[1][0], ends[1], 0), (0, 0, 0)])
    x = x.reshape(n, high, down, wide, across, i).transpose(0, 2, 4, 1, 3, 5).reshape(n * down * across, high, wide, i)
    y = _winograd(x, kernel, ((0, 0), (0, 0))).reshape(n, down, across, high - 2, wide - 2, o).transpose(0, 3, 1, 4, 2, 5)
    return y.reshape(n, (high - 2) * down, (wide - 2) * across, o)[:, :h, :w]


def _filled_up(x: Array, kernel: Array, padding: Padding) -> Array:
    """The same with more output channels, of zeros: its transpose in the kernel takes a third to three quarters of the time."""
    *sides, o = kernel.shape
    return _direct(x, lax.pad(kernel, jnp.zeros((), kernel.dtype), [*((0, 0, 0) for _ in sides), (0, NARROW - o, 0)]), padding)[..., :o]


@product_rule(x=_direct, kernel=_filled_up)
def _narrow(x: Array, kernel: Array, padding: Padding) -> Array:
    return _direct(x, kernel, padding)


def _depthwise(
    x: Float[Array, "n h w c"], kernel: Float[Array, "kh kw c"], stride: Sequence[int], padding: Any, dilation: Sequence[int]
) -> Float[Array, "n h2 w2 c"]:
    """The sum over the kernel's taps of x, shifted, times the tap. Between barriers: XLA would compute what makes x again for each tap."""
    x = lax.pad(lax.optimization_barrier(x), jnp.zeros((), x.dtype), [(0, 0, 0), *((*edge, 0) for edge in padding), (0, 0, 0)])
    taps = [range(0, d * k, d) for d, k in zip(dilation, kernel.shape, strict=False)]
    h, w = ((n - tap[-1] - 1) // s + 1 for n, tap, s in zip(x.shape[1:3], taps, stride, strict=True))
    shifted = (x[:, a : a + stride[0] * h : stride[0], b : b + stride[1] * w : stride[1]] for a in taps[0] for b in taps[1])
    parts = (part[:, :h, :w] * tap for part, tap in zip(shifted, kernel.reshape(-1, x.shape[3]), strict=True))
    return lax.optimization_barrier(functools.reduce(jnp.add, parts))


# F(4x4, 3x3): a filter and a row of inputs are taken as polynomials, multiplied at five points and infinity, and put together again.
# Of the points tried these round least: their largest error is 7 times that of the direct form, that of 0, +-1, +-2 40 times.

_POINTS = np.array([0, 3 / 4, -3 / 4, 3 / 2, -3 / 2])
_OTHERS = [np.delete(_POINTS, i) for i in range(5)]
_INPUTS = np.array([[*np.poly(others)[::-1], 0] for others in _OTHERS] + [np.poly(_POINTS)[::-1]])  # B'
_FILTER = np.vstack([np.vander(_POINTS, 3, True) / [[np.prod(x - q)] for x, q in zip(_POINTS, _OTHERS, strict=True)], [0, 0, 1]])  # G
_OUTPUTS = np.hstack([np.vander(_POINTS, 4, True).T, [[0], [0], [0], [1]]])  # A'


def _tiles(x: Array, kernel: Array, padding: Padding, turned: bool = False) -> Array:
    """With the kernel turned about and its channels exchanged if `turned`, as gradients need it.

    y = A'[(G k G') * (B' x B)]A for tiles of 6x6 inputs and 4x4 outputs, the sum over input channels as 36 matrix products."""
    n, h, w, i = x.shape
    o = kernel.shape[2] if turned else kernel.shape[3]
    h, w = h + sum(padding[0]) - 2, w + sum(padding[1]) - 2  # of the output
    th, tw = -(-h // 4), -(-w // 4)
    (top, bottom), (left, right) = padding
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (top, bottom + 4 * th - h, 0), (left, right + 4 * tw - w, 0), (0, 0, 0)])
    # All six rows of the tiles at once, column by column. The barriers: XLA would compute the first sums again for each of the second.
    rows = _apart(_sums(_INPUTS, [x[:, a : a + 4 * th - 3 : 4] for a in range(6)]))
    inputs = _sums(_INPUTS, [rows[:, :, :, b : b + 4 * tw - 3 : 4] for b in range(6)])
    rows = _apart(_sums(_FILTER, list(kernel[::-1, ::-1] if turned else kernel)))
    filters = _sums(_FILTER, [rows[:, b] for b in range(3)])
    product = "ati,aoi->ato" if turned else "ati,aio->ato"
    columns = [jnp.einsum(product, v.reshape(6, -1, i), u).reshape(6, n, th, tw, o) for v, u in zip(inputs, filters, strict=True)]
    columns = lax.optimization_barrier(jnp.stack(_sums(_OUTPUTS, columns), 4))
    y = jnp.stack(_sums(_OUTPUTS, list(columns)), 2).reshape(n, 4 * th, 4 * tw, o)
    return y[:, :h, :w]


def _apart(parts: list[Array]) -> Array:
    return lax.optimization_barrier(jnp.stack(parts))


def _sums(weights: np.ndarray, parts: list[Array]) -> list[Array]:
    """The product of a small matrix with a column of arrays."""
    terms = [[jnp.multiply(np.asarray(w, part.dtype), part) for w, part in zip(line, parts, strict=True) if w] for line in weights]
    return [functools.reduce(jnp.add, line) for line in terms]


def _by_input(x: Array, kernel: Array, padding: Padding) -> Array:
    """The transpose of `_tiles` for the convolution that turns cotangents into input gradients, so that its own transpose is that."""
    (top, bottom), (left, right) = padding
    y = _tiles(x, kernel, padding)  # for its type only, which in shard_map is more than a shape; XLA drops the value
    return jax.linear_transpose(lambda y: _tiles(y, kernel, ((2 - top, 2 - bottom), (2 - left, 2 - right)), turned=True), y)(x)[0]


@product_rule(x=_by_input, kernel=_tiles)
def _winograd(x: Array, kernel: Array, padding: Padding) -> Array:
    return _tiles(x, kernel, padding)
