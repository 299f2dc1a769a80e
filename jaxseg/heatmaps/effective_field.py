"""Effective receptive fields: how much each pixel within the theoretical field counts."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxseg.errors import InputError
from jaxseg.heatmaps.layers import layer_map


class EffectiveSize(NamedTuple):
    """In pixels: the side of a square of the area above the threshold, and the standard deviations along rows and columns."""

    side: float
    sigma_rows: float
    sigma_columns: float


def effective_field(
    apply: Callable[[Any, Float[Array, "n h w c"]], Float[Array, "n h2 w2 k"]],
    variables: Any,
    image: Float[Array, "n h w c"],
    *,
    layer: str = "output",
    at: tuple[int, int] | None = None,
) -> Float[Array, "h w"]:
    """|d output / d pixel| of one place in a layer's map, its channels summed, averaged over the images: [N,H,W,C] -> [H,W].

    Pure; under jit, `layer` and `at` are static. The derivatives by an image's channels are added as absolute values.

    Args:
      apply: (variables, image) -> logits, such as `model.apply` or `run.predict`; images must not influence one another.
      layer: a name of `layers(apply)`.
      at: row and column in the layer's map; by default its middle.

    Raises:
      InputError: no such layer, or a place outside its map.

    Source: Luo, Li, Urtasun & Zemel 2016, Understanding the Effective Receptive Field in Deep Convolutional Neural Networks, section 2.
    """
    chosen = layer_map(apply, layer)
    height, width = jax.eval_shape(chosen, variables, image).shape[1:3]
    row, column = at or (height // 2, width // 2)
    if not (0 <= row < height and 0 <= column < width):
        raise InputError(f"effective_field: got the place {at} in layer {layer}; required one within its {height} x {width} map.")
    gradient = jax.grad(lambda image: chosen(variables, image)[:, row, column].sum())(image)
    return jnp.abs(gradient).sum(-1).mean(0)


def effective_size(field: Float[np.ndarray, "h w"]) -> EffectiveSize:
    """How far an effective field reaches: a pixel belongs to it above 4.55 % of the largest value, what two deviations leave out.

    Raises:
      InputError: the field is 0 everywhere: no pixel counts, such as behind a ReLU that is never positive.

    Source: Luo et al. 2016, section 3: 1 - 95.45 % of the centre's value; the largest is taken here, for trained nets peak beside it.

    >>> effective_size(np.ones((5, 5))).side
    5.0
    """
    field = np.asarray(field, np.float64)
    if field.ndim != 2 or not field.max(initial=0) > 0:
        raise InputError(f"effective_size: got a field of shape {field.shape} without a value above 0; required [H, W] with some.")
    share = field / field.sum()

    def sigma(line: np.ndarray) -> float:
        place = np.arange(len(line))
        return math.sqrt(line @ (place - line @ place) ** 2)

    side = math.sqrt((field > (1 - 0.9545) * field.max()).sum())
    return EffectiveSize(side, sigma(share.sum(1)), sigma(share.sum(0)))
