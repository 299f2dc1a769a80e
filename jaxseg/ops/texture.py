"""A filter bank for texture: first and second derivatives of Gaussians, steered to orientations, and their energy."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxseg.ops.shapes import need_floats, need_image


def gaussian(x: Float[Array, "*n h w"], sigma: float, orders: Sequence[tuple[int, int]] = ((0, 0),)) -> Float[Array, "o *n h w"]:
    """Smoothed by a Gaussian, or derivatives of that, times sigma ** order: [..., H, W] -> one of them for each of `orders`.

    The kernel reaches 3 sigma to each side; edges are mirrored. The factor makes responses of different sigma comparable.

    Args:
      sigma: standard deviation in pixels.
      orders: 0 to 2, of the derivatives along the height and along the width.
    """
    down = sorted({rows for rows, _ in orders})
    smoothed = dict(zip(down, _along(x.swapaxes(-1, -2), [_taps(sigma, order) for order in down]), strict=True))
    return jnp.stack([_along(smoothed[rows].swapaxes(-1, -2), [_taps(sigma, columns)])[0] for rows, columns in orders])


def oriented_responses(
    x: Float[Array, "*n h w"], sigma: float, orientations: int = 4
) -> tuple[Float[Array, "o *n h w"], Float[Array, "o *n h w"]]:
    """First and second Gaussian derivatives across edges at `orientations` angles: [..., H, W] -> two of [O, ..., H, W].

    Response o is the derivative in the direction (rows, columns) = (sin t, cos t), t = pi o / O: three second and two first derivatives
    give all of them.

    Source: Freeman & Adelson 1991, The design and use of steerable filters, section II.
    """
    dy, dx, dyy, dxy, dxx = gaussian(x, sigma, ((1, 0), (0, 1), (2, 0), (1, 1), (0, 2)))
    turns = [(math.sin(t), math.cos(t)) for t in np.pi * np.arange(orientations) / orientations]
    first = jnp.stack([s * dy + c * dx for s, c in turns])
    return first, jnp.stack([s * s * dyy + 2 * s * c * dxy + c * c * dxx for s, c in turns])


def texture_energy(
    image: Float[Array, "*n h w c"], sigmas: tuple[float, ...] = (1.0, 2.0, 4.0), orientations: int = 4
) -> Float[Array, "*n h w f"]:
    """How much the image varies at each scale and orientation around each pixel: [..., H, W, C] -> [..., H, W, C * scales * orientations].

    Oriented energy, the sum of the squared first and second derivatives' responses, averaged over the surroundings (a Gaussian of 2 sigma),
    and its root: the unit is the image's. Channels are sorted by the image's channel, then sigma, then orientation.

    Raises:
      InputError: the shape is not [..., H, W, C], or the numbers are no floats.

    Source: oriented energy as in Malik, Belongie, Leung & Shi 2001, Contour and texture analysis for image segmentation, section 2.
    """
    need_image("texture_energy", image.shape)
    need_floats("texture_energy", image.dtype)
    x = jnp.moveaxis(image, -1, 0)
    scales = []
    for sigma in sigmas:
        odd, even = oriented_responses(x, sigma, orientations)
        scales.append(jnp.sqrt(jnp.maximum(gaussian(odd**2 + even**2, 2 * sigma)[0], 1e-12)))  # sqrt's slope at 0 is infinite
    energy = jnp.moveaxis(jnp.stack(scales), 2, 0)  # c s o ... h w
    return jnp.moveaxis(energy.reshape(-1, *energy.shape[3:]), 0, -1)


def _taps(sigma: float, order: int) -> np.ndarray:
    """The Gaussian's samples, normalised; derivatives without response to a constant, and exact on the polynomial of their order."""
    t = np.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1)
    g = np.exp(-0.5 * (t / sigma) ** 2)
    g /= g.sum()
    if order == 1:
        g = t * g
        g /= g @ t
    elif order == 2:
        g = (t**2 - g @ t**2) * g
        g *= 2 / (g @ t**2)
    return (g * sigma**order).astype(np.float32)


def _along(x: Float[Array, "*n w"], kernels: Sequence[np.ndarray]) -> list[Float[Array, "*n w"]]:
    """Correlation of each line with equally long kernels, lines mirrored at their ends as often as need be (the last pixel twice).

    A matrix product with a band: on CPUs several times faster than a convolution of one channel, and than a sum of shifted images, which
    XLA takes minutes to compile.
    """
    size, reach = x.shape[-1], len(kernels[0]) // 2
    width = max(64, 2 * reach)
    blocks = -(-size // width)
    lines = jnp.pad(x.reshape(-1, size), ((0, 0), (reach, reach)), mode="symmetric")
    lines = jnp.pad(lines, ((0, 0), (0, (blocks + 1) * width - size - 2 * reach))).reshape(-1, blocks + 1, width)
    seen = jnp.concatenate([lines[:, :-1], lines[:, 1:, : 2 * reach]], axis=-1)
    bands = np.zeros((len(kernels), width + 2 * reach, width))
    for i in range(width):
        bands[:, i : i + 2 * reach + 1, i] = kernels
    return [(seen @ band.astype(x.dtype)).reshape(-1, blocks * width)[:, :size].reshape(x.shape) for band in bands]
