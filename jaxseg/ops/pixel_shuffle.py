"""Depth to space and back: the rearrangements behind pixel shuffle and kernel == stride transposed convolution."""

from jaxtyping import Array, Shaped

from jaxseg.errors import InputError
from jaxseg.ops.shapes import need_image


def depth_to_space(x: Shaped[Array, "*n h w rrc"], scale: int = 2) -> Shaped[Array, "*n rh rw c"]:
    """[..., H, W, r*r*C] -> [..., r*H, r*W, C]; channel (i*r + j)*C + k goes to row i, column j of its r x r cell.

    Raises:
      InputError: the channels are no multiple of r*r.

    Source: Shi et al. 2016, eq. 4, in TensorFlow's channel order (DCR), which keeps C contiguous.
    """
    need_image("depth_to_space", x.shape)
    *n, h, w, c = x.shape
    if c % scale**2:
        raise InputError(f"depth_to_space: got {c} channels; required a multiple of scale^2 = {scale**2}. Widen the layer before it.")
    x = x.reshape(*n, h, w, scale, scale, c // scale**2)
    return x.swapaxes(-4, -3).reshape(*n, h * scale, w * scale, c // scale**2)


def space_to_depth(x: Shaped[Array, "*n rh rw c"], scale: int = 2) -> Shaped[Array, "*n h w rrc"]:
    """The inverse of `depth_to_space`.

    Raises:
      InputError: height or width is no multiple of r.
    """
    need_image("space_to_depth", x.shape)
    *n, h, w, c = x.shape
    if h % scale or w % scale:
        raise InputError(f"space_to_depth: got {h} x {w} pixels; required multiples of scale = {scale}. Pad the image first.")
    x = x.reshape(*n, h // scale, scale, w // scale, scale, c)
    return x.swapaxes(-4, -3).reshape(*n, h // scale, w // scale, scale**2 * c)
