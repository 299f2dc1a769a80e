"""Class scores enlarged to the size of the image by one bilinear filter a class, as fully convolutional networks do."""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxseg.errors import InputError
from jaxseg.ops.conv_transpose import conv_transpose
from jaxseg.ops.resize import Phases, phases, weighted_sum
from jaxseg.ops.shapes import Pair, cut, integer, need_floats, need_image, pair


def bilinear_kernel(scale: int) -> np.ndarray:
    """The filter of a transposed convolution of this stride that interpolates bilinearly: float32 [k, k], k = 2 * scale - scale % 2.

    w[i, j] = (1 - |i - c| / f) (1 - |j - c| / f), f = (k + 1) // 2, c = f - 1 for an odd k and f - 1/2 for an even one.

    Raises:
      InputError: scale is no integer from 1 on.

    Source: Long et al. 2015, section 3.3, in the formula of their `surgery.py`.

    >>> bilinear_kernel(2)[0].tolist()
    [0.0625, 0.1875, 0.1875, 0.0625]
    """
    line = _triangle(integer("bilinear_kernel", "scale", scale, 1))
    return np.asarray(line[:, None] * line, np.float32)


def upsample_prediction(
    x: Float[Array, "*n h w c"],
    scale: int,
    *,
    kernel: Float[Array, "k k *c"] | None = None,
    offset: int | None = None,
    size: Pair | None = None,
) -> Float[Array, "*n h2 w2 c"]:
    """Transposed convolution of stride `scale` with one filter a class: [..., H, W, C] -> [..., scale*H, scale*W, C], or [..., *size, C].

    Zeros surround x, so that what is near the border is drawn towards zero; `resize` clamps instead.

    Args:
      kernel: a filter [k, k] for all classes or [k, k, C], k >= scale, to be learned. None is `bilinear_kernel(scale)`, fixed, which is
        separable and costs two weighted sums an axis.
      offset, size: both or neither: the part of the *whole* transposed convolution, scale*(H-1) + k pixels high, that begins at row and
        column `offset`. FCN-32s takes 19, FCN-16s 27 and 5, FCN-8s 31, 9 and 5. Without them the middle is taken, one pixel more being
        dropped at the top and left than at the bottom and right where that is odd.

    Raises:
      InputError: x is not an image of floats, the kernel's shape, a number, or a part that is not inside the whole.

    Source: Long et al. 2015, section 3.3; torch.nn.ConvTranspose2d(C, C, k, scale, ceil((k - scale) / 2), groups=C); Caffe's Crop layer.

    >>> upsample_prediction(jnp.ones((1, 12, 16, 21)), 32, offset=19, size=(375, 500)).shape
    (1, 375, 500, 21)
    """
    need_image("upsample_prediction", x.shape)
    need_floats("upsample_prediction", x.dtype)
    scale = integer("upsample_prediction", "scale", scale, 1)
    *_, h, w, c = x.shape
    if h < 1 or w < 1:
        raise InputError(f"upsample_prediction: got shape {x.shape}; required height and width from one pixel on. Leave out empty images.")
    k = len(_triangle(scale)) if kernel is None else (*kernel.shape, 0)[0]
    if kernel is not None and (k < scale or kernel.shape not in {(k, k), (k, k, c)}):
        raise InputError(
            f"upsample_prediction: got a kernel of shape {kernel.shape} for scale {scale} and {c} classes; required [k, k] or "
            f"[k, k, {c}], k at least {scale}. Begin with bilinear_kernel({scale})."
        )
    whole = scale * (h - 1) + k, scale * (w - 1) + k
    if (offset is None) != (size is None):
        raise InputError(
            f"upsample_prediction: got offset={offset} and size={size}; required both or neither. Leave both out for the middle."
        )
    if offset is None or size is None:
        offset, size = -((scale - k) // 2), (scale * h, scale * w)
    else:
        offset, size = integer("upsample_prediction", "offset", offset, 0), pair("upsample_prediction", "size", size, 1)
    if offset + size[0] > whole[0] or offset + size[1] > whole[1]:
        raise InputError(
            f"upsample_prediction: got offset {offset} and size {size}; the whole has {whole[0]} x {whole[1]} pixels. "
            "Pad the image more before the network, or ask for less."
        )
    if kernel is None and not all(isinstance(side, int) for side in (h, w, *size)):  # an export may leave them open
        kernel = jnp.asarray(bilinear_kernel(scale))
    if kernel is None:
        maps = (_triangles(old, scale, offset, new) for old, new in zip((h, w), size, strict=True))
        return weighted_sum(x.astype(jnp.promote_types(x.dtype, jnp.float32)), *maps).astype(x.dtype)
    filters = jnp.broadcast_to(kernel.reshape(k, k, -1), (k, k, c)).astype(x.dtype)
    y = conv_transpose(x, filters[..., None], scale, groups=c)
    return cut(y, {-3: slice(offset, offset + size[0]), -2: slice(offset, offset + size[1])})


def _triangle(scale: int) -> np.ndarray:
    k = 2 * scale - scale % 2
    half = (k + 1) // 2
    centre = half - 1 if k % 2 else half - 0.5
    return 1 - np.abs(np.arange(k) - centre) / half


@functools.lru_cache(1024)
def _triangles(old: int, scale: int, offset: int, new: int) -> Phases:
    """Each new pixel is under the triangles of two old ones, or of one."""
    triangle = _triangle(scale)
    o = offset + np.arange(new)[:, None]
    index = o // scale - np.arange(2)
    tap = o - scale * index
    inside = (index >= 0) & (index < old) & (tap < len(triangle))
    return phases(np.clip(index, 0, old - 1), np.where(inside, triangle[np.minimum(tap, len(triangle) - 1)], 0), old)
