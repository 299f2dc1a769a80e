"""Zero insertion, the enlargement underneath max unpooling and transposed convolution."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Shaped

from jaxseg.ops.shapes import integer, need_image


def zero_insert(x: Shaped[Array, "*n h w c"], scale: int = 2) -> Shaped[Array, "*n rh rw c"]:
    """A "bed of nails": each value in the top left corner of its scale x scale cell, zeros elsewhere: [..., H, W, C] -> [..., r*H, r*W, C].

    Its transpose reads every scale-th pixel. `resize(..., "nearest")` fills the cells instead.

    Raises:
      InputError: x is no image, or scale is no integer from 1 on.

    Source: Dosovitskiy et al. 2015, section 3 (unpooling); Long et al. 2015, section 3.3 (fractional strides).

    >>> zero_insert(jnp.ones((1, 2, 1)))[..., 0].tolist()
    [[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    """
    need_image("zero_insert", x.shape)
    scale = integer("zero_insert", "scale", scale, 1, "x[..., ::scale, ::scale, :] reduces.")
    holes = (0, scale - 1, scale - 1)
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0)] * (x.ndim - 3) + [holes, holes, (0, 0, 0)])
