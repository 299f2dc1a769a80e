"""Depth to space and back: the rearrangements behind pixel shuffle and kernel == stride transposed convolution; their initialisation."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Shaped

from jaxseg.errors import InputError
from jaxseg.ops.shapes import integer, need_image

Order = Literal["dcr", "crd"]
"""Which of a cell's axes come first in the channels: "dcr" [r, r, C] (TensorFlow, ONNX's default) or "crd" [C, r, r] (torch)."""


def depth_to_space(x: Shaped[Array, "*n h w rrc"], scale: int = 2, *, order: Order = "dcr") -> Shaped[Array, "*n rh rw c"]:
    """[..., H, W, r*r*C] -> [..., r*H, r*W, C]: each pixel's channels become an r x r cell.

    Args:
      scale: r.
      order: row i, column j, channel k of a cell comes from channel (i*r + j)*C + k in "dcr", which keeps C contiguous, and from
        k*r*r + i*r + j in "crd".

    Raises:
      InputError: the channels are no multiple of r*r, scale is no integer from 1 on or the order is unknown.

    Source: Shi et al. 2016, eq. 4; tf.nn.depth_to_space ("dcr"), torch.nn.PixelShuffle ("crd").

    >>> x = jnp.arange(8).reshape(1, 1, 8)
    >>> depth_to_space(x)[..., 0].tolist(), depth_to_space(x, order="crd")[..., 0].tolist()
    ([[0, 2], [4, 6]], [[0, 1], [2, 3]])
    """
    need_image("depth_to_space", x.shape)
    scale = _scale("depth_to_space", scale, order)
    *n, h, w, c = x.shape
    _need_blocks("depth_to_space", c, scale)
    c //= scale**2
    cells = x.reshape(*n, h, w, scale, scale, c) if order == "dcr" else jnp.moveaxis(x.reshape(*n, h, w, c, scale, scale), -3, -1)
    return cells.swapaxes(-4, -3).reshape(*n, h * scale, w * scale, c)


def space_to_depth(x: Shaped[Array, "*n rh rw c"], scale: int = 2, *, order: Order = "dcr") -> Shaped[Array, "*n h w rrc"]:
    """[..., r*H, r*W, C] -> [..., H, W, r*r*C]: the inverse of `depth_to_space` of the same scale and order.

    Raises:
      InputError: height or width is no multiple of r, scale is no integer from 1 on or the order is unknown.

    Source: tf.nn.space_to_depth ("dcr"), torch.nn.PixelUnshuffle ("crd").
    """
    need_image("space_to_depth", x.shape)
    scale = _scale("space_to_depth", scale, order)
    *n, h, w, c = x.shape
    if h % scale or w % scale:
        raise InputError(f"space_to_depth: got {h} x {w} pixels; required multiples of scale = {scale}. Pad the image first.")
    cells = x.reshape(*n, h // scale, scale, w // scale, scale, c).swapaxes(-4, -3)
    if order == "crd":
        cells = jnp.moveaxis(cells, -1, -3)
    return cells.reshape(*n, h // scale, w // scale, scale**2 * c)


def icnr(init: Callable[..., Array], scale: int = 2, order: Order = "dcr") -> Callable[..., Array]:
    """Initialiser of a convolution before `depth_to_space`: as if it were a convolution to C channels, then nearest enlargement.

    The r*r kernels of a cell start as copies of one, drawn by `init`, so that there is no checkerboard at the beginning.

    Args:
      init: draws the kernel of the C channels, called as init(key, [kh, kw, I, C], dtype).
      scale, order: those of the `depth_to_space` that follows.

    Returns:
      (key, shape [..., r*r*C], dtype) -> array, for the `kernel_init` of a Flax module; of a bias too.

    Raises:
      InputError: scale is no integer from 1 on or the order is unknown; when called, the last axis is no multiple of r*r.

    Source: Aitken et al. 2017, "Checkerboard artifact free sub-pixel convolution" (arXiv 1707.02937).

    >>> import jax
    >>> kernel = icnr(jax.nn.initializers.lecun_normal())(jax.random.key(0), (3, 3, 16, 4 * 8))
    >>> kernel.shape, bool((kernel[..., :8] == kernel[..., 8:16]).all())
    ((3, 3, 16, 32), True)
    """
    scale = _scale("icnr", scale, order)

    def initialise(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        *rest, channels = shape
        _need_blocks("icnr", channels, scale)
        kernel = init(key, (*rest, channels // scale**2), dtype)
        copies = jnp.stack([kernel] * scale**2, axis=-2 if order == "dcr" else -1)
        return copies.reshape(shape)

    return initialise


def _scale(who: str, scale: int, order: str) -> int:
    if order not in get_args(Order):
        raise InputError(f'{who}: got order {order!r}; required "dcr" (TensorFlow) or "crd" (torch). Choose one of them.')
    return integer(who, "scale", scale, 1, "Give the factor of enlargement.")


def _need_blocks(who: str, channels: int, scale: int) -> None:
    if channels % scale**2:
        raise InputError(f"{who}: got {channels} channels; required a multiple of scale^2 = {scale**2}. Widen the layer before it.")
