"""3x3 convolution of stride 1, by Winograd's minimal filtering where that is faster: wide layers on CPUs.

XLA on CPUs multiplies directly; cuDNN and TPUs choose their own algorithm and are left to it.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxseg.ops.product_rule import product_rule

Padding = tuple[tuple[int, int], tuple[int, int]]
_NHWC = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))


def conv_general_dilated(
    x: Float[Array, "n h w i"],
    kernel: Float[Array, "kh kw i o"],
    window_strides: Sequence[int],
    padding: Any,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
) -> Float[Array, "n h2 w2 o"]:
    """`lax.conv_general_dilated`, for `nn.Conv(conv_general_dilated=...)`: the same values to rounding, faster for wide 3x3 layers on CPUs.

    Winograd's F(2x2, 3x3) makes each 2x2 cell of outputs of 16 products instead of 36. Used for float32, stride 1, without dilation and
    groups, from 128 channels in and out and 256 cells in the batch; anything else is handed on.

    Source: Lavin & Gray 2016, Fast Algorithms for Convolutional Neural Networks, section 4.1.
    """
    nhwc = x.ndim == 4 and lax.conv_dimension_numbers(x.shape, kernel.shape, dimension_numbers) == _NHWC
    plain = (
        nhwc
        and precision is None
        and feature_group_count == 1
        and all(set(d or (1,)) == {1} for d in (window_strides, lhs_dilation, rhs_dilation))
    )
    wide = kernel.shape[:2] == (3, 3) and min(kernel.shape[2:]) >= 128 and x.dtype == kernel.dtype == jnp.float32
    if plain and wide and jax.default_backend() == "cpu":
        edges = lax.padtype_to_pads(x.shape[1:3], (3, 3), (1, 1), padding) if isinstance(padding, str) else padding
        (top, bottom), (left, right) = edges
        if x.shape[0] * (x.shape[1] + top + bottom - 2) * (x.shape[2] + left + right - 2) >= 1024:
            return _winograd(x, kernel, ((top, bottom), (left, right)))
    return lax.conv_general_dilated(
        x, kernel, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count, precision=precision
    )


def _tiles(x: Array, kernel: Array, padding: Padding, turned: bool = False) -> Array:
    """With the kernel turned about and its channels exchanged if `turned`, as gradients need it.

    y = A'[(G k G') * (B' x B)]A for tiles of 4x4 inputs and 2x2 outputs, the sum over input channels as 16 matrix products."""
    n, h, w, i = x.shape
    o = kernel.shape[2] if turned else kernel.shape[3]
    h, w = h + sum(padding[0]) - 2, w + sum(padding[1]) - 2  # of the output
    th, tw = -(-h // 2), -(-w // 2)
    zero = jnp.zeros((), x.dtype)
    x = lax.pad(x, zero, [(0, 0, 0), (padding[0][0], padding[0][1] + h % 2, 0), (padding[1][0], padding[1][1] + w % 2, 0), (0, 0, 0)])
    rows = _inputs([x[:, a : a + 2 * th - 1 : 2] for a in range(4)])
    inputs = [_inputs([row[:, :, b : b + 2 * tw - 1 : 2] for b in range(4)]) for row in rows]
    filters = [[u.T if turned else u for u in _filter(row)] for row in _filter(kernel[::-1, ::-1] if turned else kernel)]
    products = [
        [(v.reshape(-1, i) @ u).reshape(n, th, tw, o) for v, u in zip(*pair, strict=True)] for pair in zip(inputs, filters, strict=True)
    ]
    columns = [_outputs([products[a][b] for a in range(4)]) for b in range(4)]
    cells = [_outputs([columns[b][a] for b in range(4)]) for a in range(2)]
    y = jnp.stack([jnp.stack(pair, 3) for pair in cells], 2).reshape(n, 2 * th, 2 * tw, o)
    return y[:, :h, :w]


def _inputs(d: Sequence[Array]) -> list[Array]:
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _filter(g: Any) -> list[Array]:
    even, odd = (g[0] + g[2]) / 2, g[1] / 2
    return [g[0], even + odd, even - odd, g[2]]


def _outputs(m: Sequence[Array]) -> list[Array]:
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _by_input(x: Array, kernel: Array, padding: Padding) -> Array:
    """The transpose of `_tiles` for the convolution that turns cotangents into input gradients, so that its own transpose is that."""
    (top, bottom), (left, right) = padding
    y = _tiles(x, kernel, padding)  # for its type only, which in shard_map is more than a shape; XLA drops the value
    return jax.linear_transpose(lambda y: _tiles(y, kernel, ((2 - top, 2 - bottom), (2 - left, 2 - right)), turned=True), y)(x)[0]


@product_rule(x=_by_input, kernel=_tiles)
def _winograd(x: Array, kernel: Array, padding: Padding) -> Array:
    return _tiles(x, kernel, padding)
