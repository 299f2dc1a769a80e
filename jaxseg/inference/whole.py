"""Logits for every pixel of whole images of any size."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxseg.errors import InputError
from jaxseg.models.unet import UNet, input_size, margin


def standardise(image: Float[Array, "n h w c"], mean: Any, std: Any) -> Float[Array, "n h w c"]:
    """(image - mean) / std, channel by channel.

    Raises:
      InputError: as many means as there are channels are required, or a single number.
    """
    if np.ndim(mean) and np.shape(mean) != image.shape[-1:]:
        raise InputError(
            f"preprocessing: got an image of shape {image.shape}, {image.shape[-1]} channels last; the model takes {np.size(mean)}. "
            "Bring it to these channels (grey to RGB: jnp.repeat(image, 3, -1))."
        )
    return (image - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def stretched(image: Any, percentiles: tuple[float, float]) -> Any:
    """Images [N,H,W,C], of NumPy or of JAX, each channel with its two percentiles at 0 and 1: exposures that differ become alike.

    What lies outside them is kept.
    """
    xp: Any = np if isinstance(image, np.ndarray) else jnp
    return between(image, *xp.percentile(image, xp.asarray(percentiles, np.float32), tuple(range(1, image.ndim - 1)), keepdims=True))


def between(image: Any, low: Any, high: Any) -> Any:
    """`image` with `low` at 0 and `high` at 1, which count as 0.0001 apart where they are nearer."""
    return (image - low) / (high - low).clip(np.float32(1e-4))


def check_percentiles(percentiles: tuple[float, float] | None) -> None:
    """Raises InputError unless they are None or two for `stretched`."""
    if percentiles is not None and not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise InputError(f"percentiles: got {percentiles}; required two that rise, from 0 to 100, such as (1, 99.8).")


def predict_whole(
    model: nn.Module,
    variables: Any,
    image: Float[Array, "n *s c"],
    *,
    mean: Any = 0.0,
    std: Any = 1.0,
    resize: float = 1.0,
    percentiles: tuple[float, float] | None = None,
) -> Float[Array, "n *s k"]:
    """Logits [N,H,W,K] for images [N,H,W,C] in 0..1, whatever the size; of volumes [N,D,H,W,C] likewise.

    Unpadded U-Nets get their missing context by reflection at the border (U-Net paper, figure 2). With `resize` != 1 the image is
    resampled by that factor, as in training, and the logits are brought back to H x W bilinearly. With `percentiles` it is first
    `stretched`.

    Raises:
      InputError: an image of other axes, an empty one, or one of other channels than `mean` has.
    """
    if image.ndim not in (4, 5) or any(isinstance(side, int) and side == 0 for side in image.shape[1:]):
        raise InputError(f"predict: got an image of shape {image.shape}; required [N, H, W, C] or [N, D, H, W, C] without empty axes.")
    n, size = image.shape[0], image.shape[1:-1]
    if percentiles is not None:
        image = stretched(image, percentiles)
    if resize != 1.0:
        image = jax.image.resize(image, (n, *resized(size, resize), image.shape[-1]), "linear", antialias=True)
    small = image.shape[1:-1]
    image = standardise(image, mean, std)
    if isinstance(model, UNet) and model.padding == "valid":
        depth = len(model.features) - 1
        for axis, side in enumerate(small, 1):
            image = _reflected(image, axis, margin(depth), input_size(side, depth) - margin(depth) - side)
    logits: Any = model.apply(variables, image)
    logits = logits[:, *map(slice, small)]
    if resize != 1.0:
        logits = jax.image.resize(logits, (n, *size, logits.shape[-1]), "linear")
    return logits


def resized(size: tuple[int, ...], factor: float) -> tuple[int, ...]:
    """Height and width after resampling by `factor`, at least one pixel each."""
    return tuple(max(round(side * factor), 1) for side in size)


def _reflected(image: Float[Array, "*n"], axis: int, before: int, after: int) -> Float[Array, "*m"]:
    """The image with a border by reflection along an axis, also of a size that an export leaves open, which `jnp.pad` refuses."""
    n = image.shape[axis]
    if isinstance(n, int):
        return jnp.pad(image, [(before, after) if d == axis else (0, 0) for d in range(image.ndim)], mode="reflect")
    place = jnp.arange(before + n + after) - before
    return jnp.take(image, abs((place + n - 1) % jnp.maximum(2 * n - 2, 1) - (n - 1)), axis, mode="clip")


Predict = Callable[[Any, Float[Array, "n h w c"]], Float[Array, "n h w k"]]
