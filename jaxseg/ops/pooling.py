"""Max pooling that stores the positions of its maxima, and its inverse, without scatter or select-and-scatter.

Positions are window-relative: a small integer row * 2 + column in each 2x2 window. Neither direction needs a scatter,
and nothing depends on the image's size, so both shard freely over the height and width.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

from jaxseg.errors import InputError
from jaxseg.ops.shapes import need_image


def max_pool_with_indices(x: Float[Array, "*n h w c"]) -> tuple[Float[Array, "*n h2 w2 c"], Int8[Array, "*n h2 w2 c"]]:
    """2x2 max pooling of stride 2, with the position of each maximum: [..., H, W, C] -> two [..., ceil(H/2), ceil(W/2), C].

    A last odd row or column forms windows of its own ("ceil mode"); crop first for floor mode. Ties take the first maximum in
    row-major order, in the gradient too, as torch does. NaN is a maximum.

    Source: Zeiler & Fergus 2014 (switches); torch.nn.MaxPool2d(2, ceil_mode=True, return_indices=True).

    >>> y, i = max_pool_with_indices(jnp.array([[1., 5.], [7., 7.]])[None, :, :, None])
    >>> float(y[0, 0, 0, 0]), int(i[0, 0, 0, 0])
    (7.0, 2)
    """
    need_image("max_pool_with_indices", x.shape)
    *n, h, w, c = x.shape
    if h % 2 or w % 2:
        x = jnp.pad(x, [(0, 0)] * len(n) + [(0, h % 2), (0, w % 2), (0, 0)], constant_values=-jnp.inf)
    windows = x.reshape(*n, -(-h // 2), 2, -(-w // 2), 2, c).swapaxes(-4, -3).reshape(*n, -(-h // 2), -(-w // 2), 4, c)
    index = jnp.argmax(windows, axis=-2)
    first = index[..., None, :] == jnp.arange(4)[:, None]
    # A masked sum has one term, so it is exact, and its gradient is the mask: no select-and-scatter.
    return jnp.where(first, windows, jnp.zeros((), x.dtype)).sum(axis=-2), index.astype(jnp.int8)


def max_unpool(x: Float[Array, "*n h w c"], indices: Int8[Array, "*n h w c"]) -> Float[Array, "*n 2h 2w c"]:
    """Put each value at the stored position of its 2x2 window, zeros elsewhere: [..., H, W, C] -> [..., 2H, 2W, C].

    Args:
      x: values, the shape of `indices`.
      indices: window-relative positions 0..3 of `max_pool_with_indices`.

    Raises:
      InputError: shapes differ or are not those of images.

    Source: SegNet (Badrinarayanan et al. 2017, figure 3); torch.nn.MaxUnpool2d(2).
    """
    need_image("max_unpool", x.shape)
    if x.shape != indices.shape:
        raise InputError(
            f"max_unpool: values {x.shape} and positions {indices.shape} differ; both must be [..., H, W, C] of one pooling. "
            "Project the values to the pooled map's channels and crop them to its size first."
        )
    *n, h, w, c = x.shape
    spread = [jnp.where(indices == p, x, jnp.zeros((), x.dtype)) for p in range(4)]
    rows = [jnp.stack(spread[2 * i : 2 * i + 2], axis=-2) for i in (0, 1)]  # [..., H, W, 2, C] each
    return jnp.stack(rows, axis=-4).reshape(*n, 2 * h, 2 * w, c)


def max_pool(x: Float[Array, "*n h w c"]) -> Float[Array, "*n h2 w2 c"]:
    """`max_pool_with_indices` without the positions."""
    return max_pool_with_indices(x)[0]


__all__ = ["max_pool", "max_pool_with_indices", "max_unpool"]
