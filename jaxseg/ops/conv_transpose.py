"""Transposed convolution, all that torch's ConvTranspose2d can do, with gradients that cost what the convolution costs.

XLA computes the weight gradient of a transposed convolution as a convolution with an image-sized, dilated kernel, 10 to 100 times slower
than need be (jax#31662, xla#34273). A transposed convolution is linear in its input and linear in its kernel, and the transpose of a linear
function is lowered as the function was written. So the derivative in the kernel is written apart, in a form whose transpose is a matrix
product or the weight gradient of a strided convolution. Each form is made of ordinary operations under a `custom_jvp`: forward mode, vmap,
higher derivatives and shard_map work, which a `custom_vjp` or a primitive of our own would forbid.
"""

import functools
import math
import operator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxseg.errors import InputError
from jaxseg.ops.conv import counted
from jaxseg.ops.product_rule import product_rule
from jaxseg.ops.shapes import integer, need_floats, need_image, pair

Pair = tuple[int, int]
Edges = tuple[Pair, Pair]
PAINTED = 1 << 22
"""Values that may be held of what pixels paint, until overlaps are added up. Measured on CPUs."""
COPIED = 1 << 20
"""Values of the cotangent that are copied at a time for a weight gradient, or up to twice as many if these are all. Measured on CPUs."""
PARTS = 8
"""The most parts that are made of a weight gradient: each takes about a tenth of a second to compile."""


def conv_transpose(
    x: Float[Array, "*n h w i"],
    kernel: Float[Array, "kh kw i o"],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] | Literal["SAME", "VALID"] = 0,
    output_padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Float[Array, "*n h2 w2 o"]:
    """Transposed convolution: [..., H, W, I] -> [..., H', W', O]; pixel h, w paints its kernel at rows stride*h - padding + dilation*a.

    y[s*h - p + d*a, s*w - p + d*b, o] = sum over h, w, a, b, i of x[h, w, i] kernel[a, b, i, o], H' = (H-1)*s - 2*p + d*(kh-1) + q + 1.

    Finite numbers are meant: where the kernel is filled up with zeros to whole strides, inf and nan reach further than torch's.

    Args:
      kernel: [kh, kw, I, O / groups], torch's weight by `w.transpose(2, 3, 0, 1)`. `lax.conv_transpose` and `nn.ConvTranspose` take it
        turned about, `kernel[::-1, ::-1]`.
      stride: s; None is the kernel's size, where nothing overlaps and all is one matrix product and a depth to space.
      padding: p rows and columns dropped at every edge, as torch's; or JAX's "SAME" (H' = s*H + q) or "VALID". Not negative: `jnp.pad`
        the result.
      output_padding: q rows more at the bottom and columns at the right, as torch's, of "SAME" and "VALID" too; less than stride or
        dilation.
      dilation: d, the distance of the kernel's taps.
      groups: the channels' groups; I of them make it depthwise.

    Raises:
      InputError: x is not of floats, or shapes or numbers do not fit; the message says which.

    Source: Dumoulin & Visin 2016, section 4; the up-convolution of Ronneberger et al. 2015; torch.nn.ConvTranspose2d.

    >>> y = conv_transpose(jnp.ones((1, 3, 4, 8)), jnp.ones((3, 3, 8, 2)), stride=2, padding=1, output_padding=1)
    >>> y.shape, float(y[0, 0, 0, 0]), float(y[0, 1, 1, 0])
    ((1, 6, 8, 2), 8.0, 32.0)
    """
    need_image("conv_transpose", x.shape)
    need_floats("conv_transpose", x.dtype)
    need_floats("conv_transpose", jnp.promote_types(x.dtype, kernel.dtype))
    groups = integer("conv_transpose", "groups", groups, 1)
    if kernel.ndim != 4 or min(kernel.shape[:2]) < 1 or kernel.shape[2] != x.shape[-1] or x.shape[-1] % groups:
        raise InputError(
            f"conv_transpose: got a kernel of shape {kernel.shape} for input {x.shape} and groups={groups}; required "
            f"[kh, kw, {x.shape[-1]}, O / groups], kh and kw from 1, groups dividing {x.shape[-1]}. "
            "Bring a torch weight [I, O / groups, kh, kw] into this order by transpose(2, 3, 0, 1)."
        )
    taps = (kernel.shape[0], kernel.shape[1])
    steps = pair("conv_transpose", "stride", taps if stride is None else stride, 1)
    holes, more = pair("conv_transpose", "dilation", dilation, 1), pair("conv_transpose", "output_padding", output_padding, 0)
    if any(q and q >= max(s, d) for q, s, d in zip(more, steps, holes, strict=True)):
        raise InputError(
            f"conv_transpose: got stride={stride}, dilation={dilation}, output_padding={output_padding}; required "
            "an output_padding smaller than the stride or the dilation. A larger output is jnp.pad's."
        )
    if any(n == 0 for n in x.shape[-3:-1]):
        raise InputError(f"conv_transpose: got shape {x.shape}; required height and width from one pixel on. Leave out empty images.")
    edges = _edges(padding, taps, steps, holes, more)
    sizes = _size((x.shape[-3], x.shape[-2]), taps, steps, edges, holes)
    if any(n < 1 for n in sizes):
        raise InputError(
            f"conv_transpose: got input {x.shape} and padding={padding}; the output would be {sizes[0]} x {sizes[1]}. Pad less."
        )
    dtype = jnp.promote_types(x.dtype, kernel.dtype)
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    *n, h, w, c = x.shape
    x = x.reshape(math.prod(n), h, w, c)
    apart = edges == ((taps[0] - 1,) * 2, (taps[1] - 1,) * 2) and steps == taps  # no two cells overlap, nothing is cut off
    if apart and holes == (1, 1) and groups == 1:
        y = _cells(x, kernel)
    elif groups == c > 1 and holes == (1, 1):
        each = [_depthwise(x, kernel[..., i], steps, edges) for i in range(kernel.shape[3])]
        y = each[0] if len(each) == 1 else jnp.stack(each, -1).reshape(*each[0].shape[:-1], c * len(each))
    elif groups > 1:
        y = _dilated(x, kernel, steps, edges, holes, groups)
    else:
        y = _general(x, kernel, steps, edges, holes)
    return y.reshape(*n, *y.shape[1:])


def _edges(padding: Any, taps: Pair, stride: Pair, dilation: Pair, output_padding: Pair) -> Edges:
    """Rows and columns of zeros around the dilated input."""
    spans = [d * (k - 1) for d, k in zip(dilation, taps, strict=True)]
    if not isinstance(padding, str):
        given = pair("conv_transpose", "padding", padding, 0, "Enlarge the result by jnp.pad, or take 'SAME' or 'VALID'.")
        lo_hi = [(span - p, span - p) for span, p in zip(spans, given, strict=True)]
    elif padding == "VALID":
        lo_hi = [(span, span + max(s - span - 1, 0)) for span, s in zip(spans, stride, strict=True)]
    elif padding == "SAME":  # H' = s * H, what there is to spare at the top
        lo_hi = []
        for span, s in zip(spans, stride, strict=True):
            total = span + s - 1
            lo = span if s > span else -(-total // 2)
            lo_hi.append((lo, total - lo))
    else:
        raise InputError(f"conv_transpose: got padding={padding!r}; required numbers as torch's, 'SAME' or 'VALID'. Choose one of them.")
    (top, bottom), (left, right) = lo_hi
    return (top, bottom + output_padding[0]), (left, right + output_padding[1])


def _size(size: tuple[int, ...], taps: tuple[int, ...], stride: Pair, edges: Edges, dilation: Pair) -> Pair:
    h, w = ((n - 1) * s + 1 + lo + hi - d * (k - 1) for n, s, (lo, hi), d, k in zip(size, stride, edges, dilation, taps, strict=True))
    return h, w


# kernel == stride.


def _cells_product(x: Array, kernel: Array) -> Array:
    """Each coarse pixel paints a cell of its own: one matrix product and a depth to space."""
    kh, kw, i, o = kernel.shape
    n, h, w, _ = x.shape
    y = jnp.matmul(x, kernel.transpose(2, 0, 1, 3).reshape(i, kh * kw * o))
    return y.reshape(n, h, w, kh, kw, o).swapaxes(2, 3).reshape(n, h * kh, w * kw, o)


def _cells_dilated(x: Array, kernel: Array) -> Array:
    """The same; its transpose in x is a strided convolution, which reads the cotangent as it lies."""
    kh, kw, _, _ = kernel.shape
    return _dilated(x, kernel, (kh, kw), ((kh - 1, kh - 1), (kw - 1, kw - 1)), (1, 1))


def _cells_by_kernel(x: Array, kernel: Array) -> Array:
    """The same; its transpose in the kernel multiplies the pixels with the cotangent's cells, or on GPUs with whole rows of it."""
    (kh, kw, i, o), (n, h, w, _) = kernel.shape, x.shape
    if jax.default_backend() == "cpu":
        cells = _pixels_product(x, kernel.transpose(2, 0, 1, 3).reshape(i, kh * kw * o)).reshape(h, n, w, kh, kw, o)
        return cells.transpose(1, 0, 3, 2, 4, 5).reshape(n, h * kh, w * kw, o)
    return jnp.einsum("nhwi,aic->nhawc", x, kernel.swapaxes(1, 2).reshape(kh, i, kw * o)).reshape(n, h * kh, w * kw, o)


_cells = product_rule(x=_cells_dilated, kernel=_cells_by_kernel)(_cells_product)


# Any kernel, stride, padding and dilation.


def _dilated(x: Array, kernel: Array, stride: Pair, edges: Edges, dilation: Pair, groups: int = 1) -> Array:
    """The convolution of x, zeros put between its pixels and `edges` of them around it, with the kernel turned about."""
    kh, kw, i, o = kernel.shape
    kernel = kernel.reshape(kh, kw, groups, i // groups, o).swapaxes(2, 3).reshape(kh, kw, i // groups, groups * o)
    return lax.conv_general_dilated(
        x,
        kernel[::-1, ::-1],
        (1, 1),
        edges,
        lhs_dilation=stride,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _kernel_as_image(x: Array, kernel: Array, stride: Pair, edges: Edges, dilation: Pair) -> Array:
    """The same as the convolution of the dilated kernel with x turned about and dilated: slow itself, its transpose in the kernel fast."""
    spans = [s * (n - 1) for s, n in zip(stride, x.shape[1:3], strict=True)]
    reach = [d * (k - 1) for d, k in zip(dilation, kernel.shape[:2], strict=True)]
    return lax.conv_general_dilated(
        kernel,
        x[:, ::-1, ::-1],
        (1, 1),
        [(span + lo - r, span + hi - r) for span, r, (lo, hi) in zip(spans, reach, edges, strict=True)],
        lhs_dilation=dilation,
        rhs_dilation=stride,
        dimension_numbers=("HWCN", "OHWI", "CHWN"),
    )


def _sub_pixel(x: Array, kernel: Array, stride: Pair, edges: Edges) -> Array:
    """The same, undilated: on the coarse grid, a convolution for each row of a cell, its channels the columns (Shi et al. 2016)."""
    (sh, sw), o = stride, kernel.shape[3]
    size = _size(x.shape[1:3], kernel.shape[:2], stride, edges, (1, 1))
    blocks = _blocks(kernel, stride).transpose(2, 0, 1, 4, 3, 5)[:, ::-1, ::-1]
    _, th, tw, i, _, _ = blocks.shape
    x = jnp.pad(x, [(0, 0), (th - 1, th - 1), (tw - 1, tw - 1), (0, 0)])
    rows = [
        lax.conv_general_dilated(x, row.reshape(th, tw, i, sw * o), (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        for row in blocks
    ]
    n, h, w, _ = rows[0].shape
    y = jnp.stack([row.reshape(n, h, w * sw, o) for row in rows], 2).reshape(n, h * sh, w * sw, o)
    return _cut(y, kernel.shape[:2], edges, size)


def _by_phase(x: Array, kernel: Array, stride: Pair, edges: Edges) -> Array:
    """The same, undilated: on the coarse grid, a convolution for each place in a cell, of the taps that reach it."""
    taps, (sh, sw) = kernel.shape[:2], stride
    size = _size(x.shape[1:3], taps, stride, edges, (1, 1))
    counts = [-(-n // s) for n, s in zip(size, stride, strict=True)]
    rows, columns = map(_places, taps, stride, edges, x.shape[1:3], counts)
    cells = [
        lax.conv_general_dilated(
            lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), row.padding, column.padding, (0, 0, 0)]),
            kernel[row.taps, column.taps][::-1, ::-1],
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        for row in rows
        for column in columns
    ]
    y = jnp.stack([jnp.stack(cells[i : i + sw], 3) for i in range(0, sh * sw, sw)], 2)
    return y.reshape(x.shape[0], counts[0] * sh, counts[1] * sw, kernel.shape[3])[:, : size[0], : size[1]]


def _by_phase_row(x: Array, kernel: Array, stride: Pair, edges: Edges) -> Array:
    """The same, undilated: on the coarse grid, for each row of a cell, a convolution over the height (or a product, where one row of taps
    reaches it). Its channels are all that a pixel paints of that row; where columns overlap they are added up."""
    (kh, kw, i, o), (sh, sw), (n, h, w, _) = kernel.shape, stride, x.shape
    down, across = (kh - 1) // sh, (kw - 1) // sw  # cells beyond its own that a pixel reaches

    def row_of_cells(row: int) -> Array:
        taps = kernel[row::sh][::-1].swapaxes(1, 2)
        reach = taps.shape[0] - 1
        if reach:
            matrices, padding = taps.reshape(reach + 1, 1, i, kw * o), [(reach, reach), (0, 0)]
            paint = lax.conv_general_dilated(x, matrices, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        else:
            paint = jnp.matmul(x, taps.reshape(i, kw * o))

        def tap(b: int) -> Array:  # what all pixels paint by it, in the cells where it lies
            left = b // sw
            return jnp.pad(paint[..., b * o : (b + 1) * o], [(0, 0), (0, down - reach), (left, across - left), (0, 0)])

        return jnp.stack([functools.reduce(jnp.add, map(tap, range(column, kw, sw))) for column in range(sw)], 3)

    y = jnp.stack([row_of_cells(row) for row in range(sh)], 2).reshape(n, (h + down) * sh, (w + across) * sw, o)
    return _cut(y, (kh, kw), edges, _size((h, w), (kh, kw), stride, edges, (1, 1)))


class _Place(NamedTuple):
    taps: slice
    padding: tuple[int, int, int]


def _places(taps: int, stride: int, edges: Pair, n: int, count: int) -> list[_Place]:
    """For each place in the cells of an axis: the taps that reach it, and the padding of n pixels so that they make `count`."""
    found = []
    for place in range(stride):
        ahead, first = divmod(place + taps - 1 - edges[0], stride)
        found.append(_Place(slice(first, None, stride), (len(range(first, taps, stride)) - 1 - ahead, count + ahead - n, 0)))
    return found


def _general_forward(x: Array, kernel: Array, stride: Pair, edges: Edges, dilation: Pair) -> Array:
    taps = kernel.shape[:2]
    if dilation == (1, 1) and min(stride) > 1:
        known = all(isinstance(n, int) for n in x.shape[:3])  # an export may leave them open
        if known and jax.default_backend() == "cpu" and max(stride) < 4 and all(map(operator.ge, taps, stride)):
            painted = counted(math.prod(x.shape[:3])) * stride[0] * taps[1] * kernel.shape[3]
            worth_it = x.shape[3] >= 8 and math.prod(taps) <= 4 * math.prod(stride)  # else the sums take longer than the products
            return (_by_phase_row if painted <= PAINTED and worth_it else _by_phase)(x, kernel, stride, edges)
        if min(stride) >= 4 or all(k % s == 0 for k, s in zip(taps, stride, strict=True)):
            return _sub_pixel(x, kernel, stride, edges)
    return _dilated(x, kernel, stride, edges, dilation)


def _pixels_product(x: Float[Array, "n h w i"], matrix: Float[Array, "i j"]) -> Float[Array, "h n w j"]:
    """Each pixel times the matrix, as a convolution of one-pixel images: of its transpose in the matrix XLA makes a product of the turned
    pixels with the cotangent as it lies, of `dot_general`'s one of the turned cotangent, which is slower. Rows go first, so that a
    sharded height stays where it is."""
    (n, h, w, i), j = x.shape, matrix.shape[1]
    pixels = x.swapaxes(0, 1).reshape(h * n * w, 1, i)
    return lax.conv_general_dilated(pixels, matrix[None], (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")).reshape(h, n, w, j)


def _by_row(x: Array, kernel: Array, stride: Pair, edges: Edges) -> Array:
    """The same, undilated: all pixels times a row of the kernel, put into whole cells. Its transpose in the kernel multiplies the pixels
    with slices of the cotangent."""
    (kh, kw, i, o), (sh, sw), (n, h, w, _) = kernel.shape, stride, x.shape
    down, across = (kh - 1) // sh, (kw - 1) // sw  # cells beyond its own that a pixel reaches
    cells = [jnp.zeros((h + down, n, (w + across) * sw, o), x.dtype)] * sh  # each row of them
    for a, row in enumerate(kernel):
        painted = _pixels_product(x, row.swapaxes(0, 1).reshape(i, kw * o))
        for b in range(0, kw, sw):
            held = min(sw, kw - b)
            columns = painted[..., b * o : (b + held) * o].reshape(h, n, w, held, o)
            columns = jnp.pad(columns, [*[(0, 0)] * 3, (0, sw - held), (0, 0)]).reshape(h, n, w * sw, o)
            cells[a % sh] += jnp.pad(columns, [(a // sh, down - a // sh), (0, 0), (b, across * sw - b), (0, 0)])
    y = jnp.stack(cells, 1).reshape((h + down) * sh, n, (w + across) * sw, o).swapaxes(0, 1)
    return _cut(y, (kh, kw), edges, _size((h, w), (kh, kw), stride, edges, (1, 1)))


def _by_parts(x: Array, kernel: Array, stride: Pair, edges: Edges) -> Array:
    """The same, some rows of pixels after the others: what is copied of the cotangent is used while it is in the cache, and its memory
    serves the next."""
    (kh, kw, _, o), (n, h, w, _) = kernel.shape, x.shape
    values, size = n * h * w * kh * kw * o, _size((h, w), (kh, kw), stride, edges, (1, 1))
    if values <= 2 * COPIED:
        return _by_row(x, kernel, stride, edges)
    rows = -(-h // min(h, PARTS, -(-values // COPIED)))
    (top, _), y = edges[0], jnp.zeros((), x.dtype)
    for first in range(0, h, rows):
        if first:
            y, kernel = lax.optimization_barrier((y, kernel))  # the transpose: this part's gradient, then those before it
        part = _by_row(x[:, first : first + rows], kernel, stride, ((kh - 1, kh - 1), edges[1]))
        above = first * stride[0] - (kh - 1 - top)
        y += lax.pad(part, jnp.zeros((), x.dtype), [(0, 0, 0), (above, size[0] - above - part.shape[1], 0), (0, 0, 0), (0, 0, 0)])
    return y


def _by_kernel(x: Array, kernel: Array, stride: Pair, edges: Edges, dilation: Pair) -> Array:
    if dilation == (1, 1) and min(stride) > 1:
        known = all(isinstance(n, int) for n in x.shape)
        if known and jax.default_backend() == "cpu":
            return _by_parts(x, kernel, stride, edges)
        if min(stride) >= 4:
            return _sub_pixel(x, kernel, stride, edges)
    return _kernel_as_image(x, kernel, stride, edges, dilation)


_general = product_rule(x=_dilated, kernel=_by_kernel)(_general_forward)


# One filter a channel.


def _depthwise(x: Float[Array, "n h w c"], kernel: Float[Array, "kh kw c"], stride: Pair, edges: Edges) -> Array:
    """Block by block: each of the ceil(k / s)^2 blocks of the kernel weighs a shifted copy of x."""
    (sh, sw), (n, h, w, c) = stride, x.shape
    size = _size((h, w), kernel.shape[:2], stride, edges, (1, 1))
    blocks = _blocks(kernel, stride)
    th, tw = blocks.shape[:2]
    y = jnp.zeros((), x.dtype)
    for i in range(th):
        for j in range(tw):
            shifted = jnp.pad(x, [(0, 0), (i, th - 1 - i), (j, tw - 1 - j), (0, 0)])
            y = y + shifted[:, :, None, :, None] * blocks[i, j][:, None]
    y = y.reshape(n, (h + th - 1) * sh, (w + tw - 1) * sw, c)
    return _cut(y, kernel.shape[:2], edges, size)


def _blocks(kernel: Float[Array, "kh kw *c"], stride: Pair) -> Float[Array, "th tw sh sw *c"]:
    """The kernel, filled up with zeros, in blocks of the stride's size."""
    (kh, kw, *c), (sh, sw) = kernel.shape, stride
    th, tw = -(-kh // sh), -(-kw // sw)
    kernel = jnp.pad(kernel, [(0, th * sh - kh), (0, tw * sw - kw)] + [(0, 0)] * len(c))
    return kernel.reshape(th, sh, tw, sw, *c).swapaxes(1, 2)


def _cut(y: Float[Array, "n h w o"], taps: tuple[int, ...], edges: Edges, size: Pair) -> Float[Array, "n h2 w2 o"]:
    """Of the whole transposed convolution the rows and columns that `edges` leave, zeros where they reach beyond it."""
    lows = [lo - (k - 1) for k, (lo, _) in zip(taps, edges, strict=True)]
    highs = [n - have - low for n, have, low in zip(size, y.shape[1:3], lows, strict=True)]
    return lax.pad(y, jnp.zeros((), y.dtype), [(0, 0, 0), *((lo, hi, 0) for lo, hi in zip(lows, highs, strict=True)), (0, 0, 0)])
