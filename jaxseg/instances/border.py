"""Objects by three classes: background, interior and border; seeds from the interior, grown over the foreground by a watershed.

The border lies inside the objects, so that the outline is where background begins and touching objects are two borders wide apart.

Source: the three classes: Caicedo et al. 2019 (Cytometry A 95:952), section on U-Net; seeded watershed: Meyer 1991.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy import ndimage
from skimage.segmentation import watershed

from jaxseg.losses import cross_entropy

BACKGROUND, INTERIOR, BORDER = range(3)
BORDER_PX = 2
"""Pixels of an object at most this far (Euclidean, centre to centre) from another object or from background are its border."""

TOUCHING_WEIGHT = 5.0
"""Of border pixels that have another object near: few, and all that separates touching objects. Weights along the outlines to the
background, or of the whole border class, would push the outlines outwards."""

SMALLEST_PX = 20
"""Smaller objects are taken for noise; none of the 17,420 nuclei of dsb2018's training images has fewer than 21 pixels."""


def border_classes(instances: Int[Array, "*n h w"]) -> tuple[Int[Array, "*n h w"], Int[Array, "*n h w"]]:
    """The classes of the pixels, 255 where ignored, and whether another object is near: int32 and bool, from an instance map.

    What lies beyond the image, or is ignored, is no other object and no background.

    >>> print(border_classes(jnp.array([[0, 7, 7, 7, 7, 7, 7]]))[0])
    [[0 2 2 1 1 1 1]]
    """
    h, w = instances.shape[-2:]
    r = BORDER_PX
    around = jnp.pad(instances, [(0, 0)] * (instances.ndim - 2) + [(r, r), (r, r)], constant_values=-1)
    border = touching = jnp.zeros(instances.shape, bool)
    for dy in range(-r, r + 1):
        for dx in range(-r, r + 1):
            if 0 < dy * dy + dx * dx <= r * r:
                other = around[..., r + dy : r + dy + h, r + dx : r + dx + w]
                border |= (other != instances) & (other >= 0)
                touching |= (other != instances) & (other > 0)
    inside = jnp.where(border, BORDER, INTERIOR)
    classes = jnp.where(instances > 0, inside, jnp.where(instances < 0, 255, BACKGROUND))
    return classes.astype(jnp.int32), touching & (instances > 0)


def border_loss(
    logits: Float[Array, "n h w 3"],
    instances: Int[Array, "n h w"],
    *,
    weight: Float[Array, "n h w"] | None = None,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Cross-entropy of the three classes, weighted between objects; made of the map at hand: after augmentation, inside the jitted step."""
    classes, touching = border_classes(instances)
    between = jnp.where(touching, TOUCHING_WEIGHT, 1.0)
    return cross_entropy(logits, classes, weight=between if weight is None else between * weight, axis_name=axis_name)


def border_decode(logits: Float[np.ndarray, "h w 3"]) -> Int[np.ndarray, "h w"]:
    """The label map 1..n: connected interiors grown over the foreground, highest interior probability first.

    Foreground without a seed (objects too thin to have an interior) is an object of its own for each connected piece; holes are filled.
    """
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    probability = shifted / shifted.sum(-1, keepdims=True)
    foreground = np.asarray(ndimage.binary_fill_holes(probability[..., BACKGROUND] < 0.5))
    seeds = _labelled(probability[..., INTERIOR] > 0.5)
    pieces = _labelled(foreground)
    seeded = np.zeros(pieces.max() + 1, bool)
    seeded[pieces[seeds > 0]] = True
    seeds = np.where(seeded[pieces], seeds, np.where(pieces > 0, pieces + seeds.max(), 0))
    return without_small(watershed(-probability[..., INTERIOR], seeds, mask=foreground), SMALLEST_PX)


def without_small(label: Int[np.ndarray, "h w"], smallest_px: int) -> Int[np.ndarray, "h w"]:
    """Objects of fewer pixels become background; the others are numbered 1..n in their old order."""
    counts = np.bincount(label.ravel())
    kept = counts >= smallest_px
    kept[0] = False
    return np.where(kept, np.cumsum(kept), 0).astype(np.int32)[label]


def _labelled(mask: np.ndarray) -> Int[np.ndarray, "h w"]:
    label = np.zeros(mask.shape, np.int32)
    ndimage.label(mask, output=label)
    return label
