"""Enlarging by 2 as broadcasts and weighted sums: no gather, no scatter in the gradient, no dense matrix."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jaxseg.ops.shapes import need_image


def nearest_x2(x: Shaped[Array, "*n h w c"]) -> Shaped[Array, "*n 2h 2w c"]:
    """Each pixel becomes 2x2: [..., H, W, C] -> [..., 2H, 2W, C]. Equals torch's 'nearest' and 'nearest-exact' at factor 2."""
    need_image("nearest_x2", x.shape)
    *n, h, w, c = x.shape
    return jnp.broadcast_to(x[..., :, None, :, None, :], (*n, h, 2, w, 2, c)).reshape(*n, 2 * h, 2 * w, c)


def bilinear_x2(x: Float[Array, "*n h w c"]) -> Float[Array, "*n 2h 2w c"]:
    """Bilinear enlargement by 2, half-pixel centres, edges clamped: [..., H, W, C] -> [..., 2H, 2W, C].

    Along each axis the two new pixels are 0.25 a + 0.75 b and 0.75 b + 0.25 c of neighbours a, b, c. Equals
    `jax.image.resize(..., "bilinear")` and torch's 'bilinear' with align_corners=False.
    """
    need_image("bilinear_x2", x.shape)
    return _axis_x2(_axis_x2(x, x.ndim - 3), x.ndim - 2)


def _axis_x2(x: Array, axis: int) -> Array:
    n = x.shape[axis]
    ends = [slice(None)] * x.ndim

    def part(start, stop):
        return x[(*ends[:axis], slice(start, stop), *ends[axis + 1 :])]

    before = jnp.concatenate([part(0, 1), part(0, n - 1)], axis)
    after = jnp.concatenate([part(1, n), part(n - 1, n)], axis)
    pair = jnp.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], axis + 1)
    return pair.reshape(*x.shape[:axis], 2 * n, *x.shape[axis + 1 :])
