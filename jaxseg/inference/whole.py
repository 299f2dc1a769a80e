"""Logits for every pixel of whole images of any size."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.models.unet import UNet, legal_sizes, margin, output_size


def standardise(image: Float[Array, "n h w c"], mean: Any, std: Any) -> Float[Array, "n h w c"]:
    """(image - mean) / std, channel by channel."""
    return (image - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def predict_whole(
    model: nn.Module, variables: Any, image: Float[Array, "n h w c"], *, mean: Any = 0.0, std: Any = 1.0, resize: float = 1.0
) -> Float[Array, "n h w k"]:
    """Logits [N,H,W,K] for images [N,H,W,C] in 0..1, whatever the size.

    Unpadded U-Nets get their missing context by reflection at the border (U-Net paper, figure 2). With `resize` != 1 the image is
    resampled by that factor, as in training, and the logits are brought back to H x W bilinearly.
    """
    n, h, w, _ = image.shape
    if resize != 1.0:
        image = jax.image.resize(image, (n, *resized((h, w), resize), image.shape[-1]), "linear", antialias=True)
    small_h, small_w = image.shape[1:3]
    image = standardise(image, mean, std)
    if isinstance(model, UNet) and model.padding == "valid":
        depth = len(model.features) - 1
        image = jnp.pad(image, [(0, 0), _border(small_h, depth), _border(small_w, depth), (0, 0)], mode="reflect")
    logits: Any = model.apply(variables, image)
    logits = logits[:, :small_h, :small_w]
    if resize != 1.0:
        logits = jax.image.resize(logits, (n, h, w, logits.shape[-1]), "linear")
    return logits


def resized(size: tuple[int, int], factor: float) -> tuple[int, int]:
    """Height and width after resampling by `factor`, at least one pixel each."""
    return max(round(size[0] * factor), 1), max(round(size[1] * factor), 1)


def _border(side: int, depth: int) -> tuple[int, int]:
    before = margin(depth)
    whole = legal_sizes(side + 2 * before, depth)[1]
    assert (output_size(whole, depth) or 0) >= side
    return before, whole - before - side


Predict = Callable[[Any, Float[Array, "n h w c"]], Float[Array, "n h w k"]]
