"""Content-aware reassembly of features (CARAFE): upsampling whose weights are data, one small kernel for each new pixel.

All is shifts, weighted sums and products of small matrices on the coarse grid: no gather, no scatter, and over a sharded height a few
rows travel. The value and its two gradients each have a form which XLA computes fast and of which it does not find the others: it makes
branches of the pads that are the adjoint of shifts, and adds up a sum over the channels number by number. So the two gradients are stated,
and the derivatives are their transposes (`product_rule`).
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.errors import InputError
from jaxseg.ops.pixel_shuffle import depth_to_space, space_to_depth
from jaxseg.ops.product_rule import product_rule
from jaxseg.ops.shapes import integer, need_floats, need_image


def carafe(x: Float[Array, "*n h w c"], weights: Float[Array, "*n rh rw kk"], scale: int = 2) -> Float[Array, "*n rh rw c"]:
    """Each new pixel is a weighted sum of the k x k pixels around its coarse one: [..., H, W, C] -> [..., r*H, r*W, C].

    y[a, b] = sum over i, j of weights[a, b, i*k + j] x[a // r + i - k // 2, b // r + j - k // 2], x being 0 outside the image. The
    products are summed in float32 (float64 for float64); the result has the type of x.

    Args:
      x: the coarse features.
      weights: k x k numbers for each new pixel, row by row, k odd; one kernel for all channels. They are taken as they are: the paper's
        are a softmax over the last axis.
      scale: r.

    Raises:
      InputError: the shapes do not fit, k is not odd, scale is no integer from 1 on, or x is not of floats.

    Source: Wang et al. 2019, eq. 2 and 4 (arXiv 1905.02188); mmcv.ops.carafe of one group, whose masks are [N, k*k, r*H, r*W].

    >>> x = jnp.arange(6.0).reshape(2, 3, 1)
    >>> left = jnp.zeros((4, 6, 9)).at[..., 3].set(1)  # row 1, column 0 of the 3 x 3
    >>> carafe(x, left)[0, :, 0].tolist()
    [0.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    """
    need_image("carafe", x.shape)
    need_floats("carafe", x.dtype)
    scale = integer("carafe", "scale", scale, 1, "Give the factor of enlargement.")
    *n, h, w, c = x.shape
    k = math.isqrt(weights.shape[-1]) if weights.ndim else 0
    if weights.shape != (*n, scale * h, scale * w, k * k) or k % 2 == 0:
        raise InputError(
            f"carafe: got weights of shape {weights.shape} for input {x.shape} and scale {scale}; required "
            f"{(*n, scale * h, scale * w, 'k*k')}, k odd. Bring torch's masks [N, k*k, r*H, r*W] into this order by permute(0, 2, 3, 1)."
        )
    kernels = space_to_depth(weights.astype(x.dtype), scale).reshape(math.prod(n), h, w, scale**2, k * k)
    y = _reassemble(x.reshape(math.prod(n), h, w, c), kernels)
    return depth_to_space(y.reshape(*n, h, w, scale**2 * c), scale)


def _forward(x: Float[Array, "n h w c"], kernels: Float[Array, "n h w p kk"]) -> Float[Array, "n h w p c"]:
    """Shifts, one loop for each of the r*r pixels of a cell: nothing of k*k times the size is made."""
    taps, ks = _window(_wide(x), _width(kernels)), _wide(kernels)
    cell = [[ks[..., p, t, None] * tap for t, tap in enumerate(taps)] for p in range(kernels.shape[-2])]
    return jnp.stack([functools.reduce(jnp.add, terms) for terms in cell], axis=-2).astype(x.dtype)


def _x_gradient(dy: Float[Array, "n h w p c"], kernels: Float[Array, "n h w p kk"]) -> Float[Array, "n h w c"]:
    """What each coarse pixel gave, collected by it: the shifts the other way, of kernels and cotangents."""
    k, cell = _width(kernels), range(kernels.shape[-2])
    given = zip(_window(_wide(kernels), k)[::-1], _window(_wide(dy), k)[::-1], strict=True)
    terms = [ks[..., p, t, None] * g[..., p, :] for t, (ks, g) in enumerate(given) for p in cell]
    return functools.reduce(jnp.add, terms).astype(dy.dtype)


def _kernels_gradient(dy: Float[Array, "n h w p c"], x: Float[Array, "n h w c"], k: int) -> Float[Array, "n h w p kk"]:
    """Inner products over the channels of each cotangent with the k x k pixels of x: a band of a matrix product.

    For each row of the window, the cotangents of b pixels are multiplied with all b + k - 1 pixels which they see. Those that pixel i of
    the b sees begin at column i of its rows; when the product is cut anew, one number later for each pixel, they all begin at column 0.
    """
    n, h, w, p, c = dy.shape
    b = max(4, k - 1)
    blocks, seen = -(-w // b), b + k - 1
    left = jnp.pad(_wide(dy), [(0, 0), (0, 0), (0, blocks * b - w), (0, 0), (0, 0)]).reshape(n, h, blocks, b * p, c)
    right = jnp.pad(_wide(x), [(0, 0), (k // 2, k // 2), (k // 2, (blocks + 1) * b - w - k // 2), (0, 0)])
    right = right.reshape(n, h + k - 1, blocks + 1, b, c)
    right = jnp.concatenate([right[:, :, :-1], right[:, :, 1:, : k - 1]], axis=3)
    rows = []
    for i in range(k):
        product = jnp.matmul(left, right[:, i : i + h].mT).reshape(n, h, blocks, b * p * seen)
        skewed = jnp.pad(product, [(0, 0), (0, 0), (0, 0), (0, b)]).reshape(n, h, blocks, b, p * seen + 1)
        rows.append(skewed[..., :-1].reshape(n, h, blocks * b, p, seen)[:, :, :w, :, :k])
    return jnp.concatenate(rows, axis=-1).astype(dy.dtype)


def _window(x: Array, k: int) -> list[Array]:
    """The k*k shifts of [N, H, W, ...], row by row: pixel h, w of shift i*k + j is pixel h + i - k // 2, w + j - k // 2, 0 outside."""
    h, w = x.shape[1:3]
    x = jnp.pad(x, [(0, 0), (k // 2, k // 2), (k // 2, k // 2)] + [(0, 0)] * (x.ndim - 3))
    rows = [x[:, i : i + h] for i in range(k)]  # of their own, so that over a sharded height k shifts travel and not k*k
    return [row[:, :, j : j + w] for row in rows for j in range(k)]


def _width(kernels: Any) -> int:
    return math.isqrt(kernels.shape[-1])


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _by_x(x: Array, kernels: Array) -> Array:
    y = _forward(x, kernels)  # for its type only, which in shard_map is more than a shape; XLA drops the value
    return jax.linear_transpose(lambda dy: _x_gradient(dy, kernels), y)(x)[0]


def _by_kernels(x: Array, kernels: Array) -> Array:
    y = _forward(x, kernels)  # for its type only, which in shard_map is more than a shape; XLA drops the value
    return jax.linear_transpose(lambda dy: _kernels_gradient(dy, x, _width(kernels)), y)(kernels)[0]


_reassemble = product_rule(x=_by_x, kernel=_by_kernels)(_forward)
