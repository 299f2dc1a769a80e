"""Dense output from a coarse net, by shifting its input (Long, Shelhamer & Darrell 2015, section 3.2; OverFeat, Sermanet et al. 2014)."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.errors import InputError


def shift_and_stitch(
    apply: Callable[[Float[Array, "m h2 w2 c"]], Float[Array, "m h3 w3 k"]], image: Float[Array, "n h w c"], stride: int
) -> Float[Array, "n h w k"]:
    """The net's output at every pixel: all stride^2 shifts of the image, their coarse maps interleaved.

    Pixel (stride i + y, stride j + x) is what `apply` gives at (i + 1, j + 1) of the image behind stride - y rows and stride - x columns of
    zeros, so that no shift loses pixels. It equals the same net with its strides turned into dilation (a trous) wherever the net sees no
    border; at the border the two pad differently, unless the image is mirrored around by the width of a field first. Nothing is learned;
    it costs what stride^2 images do, the early layers being computed again for each shift.

    Args:
      apply: images -> coarse maps of one image for each `stride` x `stride` pixels or, without padding, fewer. It is called once, with a
        batch of all n * stride^2 shifted images, height and width the next multiples of the stride and one stride more. A batch too large
        for the memory can be walked over by `apply` itself: `lambda x: jax.lax.map(f, x, batch_size=16)` with f for one image.
      stride: the output stride of `apply`, and not of one layer of it.

    Returns:
      [N, H, W, K]; of a net without padding fewer, pixel 0 being still the net's first output.

    Raises:
      InputError: no image, a stride below 1, or coarse maps with more pixels than such a stride can give.
    """
    if image.ndim != 4 or 0 in image.shape or stride < 1:
        raise InputError(
            f"shift_and_stitch: got an image of shape {image.shape} and stride {stride}; required [N, H, W, C] without empty axes and a "
            "stride of at least 1."
        )
    n, height, width, _ = image.shape
    rows, columns = -(-height // stride) + 1, -(-width // stride) + 1
    padded = jnp.pad(image, [(0, 0), (stride, rows * stride - 1 - height), (stride, columns * stride - 1 - width), (0, 0)])
    shifts = [(y, x) for y in range(stride) for x in range(stride)]
    coarse = apply(jnp.concatenate([padded[:, y : y + rows * stride, x : x + columns * stride] for y, x in shifts]))
    if coarse.ndim != 4 or coarse.shape[0] != n * stride**2 or coarse.shape[1] > rows or coarse.shape[2] > columns:
        raise InputError(
            f"shift_and_stitch(stride={stride}): for {n * stride**2} images of {rows * stride} x {columns * stride} pixels `apply` gave "
            f"{coarse.shape}; required [{n * stride**2}, at most {rows}, at most {columns}, K]. Pass the net without its enlargement, and "
            "the stride of its whole."
        )
    _, h, w, k = coarse.shape
    fine = coarse.reshape(stride, stride, n, h, w, k).transpose(2, 3, 0, 4, 1, 5).reshape(n, h * stride, w * stride, k)
    return fine[:, stride : stride + height, stride : stride + width]
