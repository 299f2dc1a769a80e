"""Objects by their centres: a foreground, and from each of its pixels an arrow to the centroid of its object.

The arrows are learnt relative to the object's size, since that is what tells neighbours apart. To decode, every foreground pixel points to
the pixel at its arrow's head, that one to the next, and so on: between touching objects the arrows are short and uncertain, but they lead
to where they are long and certain, and all chains of an object end in a few pixels about its centre.

Source: pixels that vote for their object's centre: Leibe, Leonardis, Schiele 2008 (IJCV 77:259); learnt by a dense network: Neven et al.
2019 (CVPR, Instance segmentation by jointly optimizing spatial embeddings and clustering bandwidth); a flow followed to its sinks:
Stringer et al. 2021 (Cellpose, Nature Methods 18:100). The chains of pixels are ours.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from scipy import ndimage

from jaxseg.errors import InputError
from jaxseg.instances.border import SMALLEST_PX, without_small

CHANNELS = 3
ARROW_PX = 10.0
"""Pixels that a logit of 1 in the arrow's channels means; about the median radius of a nucleus, so that targets are of order 1."""

NEAR_PX = 1
"""Chains that end at most 2 * NEAR_PX + 1 rows and columns apart are of one object."""


def centre_arrows(instances: Int[Array, "n h w"]) -> tuple[Float[Array, "n h w 2"], Float[Array, "n h w"]]:
    """From each pixel to the centroid of its object, rows then columns, and the object's radius sqrt(area / pi): pixels, float32.

    Any numbers: background and ignored pixels are objects to it. An object counts as far as it is seen.

    >>> arrows, radius = centre_arrows(jnp.array([[[7, 7, 7, 0]]]))
    >>> print(arrows[0, 0, :3, 1], [f"{r:.3f}" for r in radius[0, 0]])
    [ 1.  0. -1.] ['0.977', '0.977', '0.977', '0.564']
    """
    n, h, w = instances.shape
    place = jnp.stack(jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing="ij"), axis=-1).reshape(h * w, 2).astype(jnp.float32)

    def one(numbers: Int[Array, " p"]) -> tuple[Float[Array, "p 2"], Float[Array, " p"]]:
        order = jnp.argsort(numbers)
        ordered = numbers[order]
        rank = jnp.zeros_like(order).at[order].set(jnp.cumsum(jnp.diff(ordered, prepend=ordered[:1]) != 0))
        sums = jax.ops.segment_sum(jnp.column_stack([place, jnp.ones(h * w)]), rank, num_segments=h * w)[rank]
        return sums[:, :2] / sums[:, 2:] - place, jnp.sqrt(sums[:, 2] / jnp.pi)

    arrows, radius = jax.vmap(one)(instances.reshape(n, h * w))
    return arrows.reshape(n, h, w, 2), radius.reshape(n, h, w)


def centre_loss(
    logits: Float[Array, "n h w 3"],
    instances: Int[Array, "n h w"],
    *,
    weight: Float[Array, "n h w"] | None = None,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Mean cross-entropy of the foreground + mean over it of (sqrt(1 + e^2) - 1) / r, e the arrow's error and r the radius in pixels.

    Ignored pixels (negative numbers) reach neither value nor gradient; nothing to learn from gives 0.
    """
    if logits.shape != (*instances.shape, CHANNELS):
        raise InputError(
            f"centre_loss: got logits {logits.shape} and instances {instances.shape}; required [N,H,W,{CHANNELS}] and [N,H,W]: "
            f"give the model {CHANNELS} outputs."
        )
    valid, inside = instances >= 0, instances > 0
    logits = jnp.where(valid[..., None], logits.astype(jnp.float32), 0)
    arrows, radius = centre_arrows(instances)
    foreground = optax.sigmoid_binary_cross_entropy(logits[..., 0], inside)
    missed = jnp.sqrt(1 + jnp.square(ARROW_PX * logits[..., 1:] - arrows).sum(-1)) - 1
    w = jnp.ones(instances.shape, jnp.float32) if weight is None else weight
    return _mean(foreground, jnp.where(valid, w, 0), axis_name) + _mean(missed / radius, jnp.where(inside, w, 0), axis_name)


def centre_decode(logits: Float[np.ndarray, "h w 3"]) -> Int[np.ndarray, "h w"]:
    """The label map 1..n of the foreground (probability above 1/2): pixels whose chains of arrows end near each other are one object."""
    h, w = logits.shape[:2]
    inside = logits[..., 0] > 0
    heads = np.rint(np.indices((h, w)) + ARROW_PX * np.where(inside, np.moveaxis(logits[..., 1:], -1, 0), 0)).astype(np.int64)
    chain = np.ravel_multi_index((heads[0], heads[1]), (h, w), mode="clip").ravel()
    for _ in range(6):  # 64 arrows
        chain = chain[chain]
    ends = np.zeros(h * w, bool)
    ends[chain[inside.ravel()]] = True
    square = np.ones((3, 3), bool)
    near = ndimage.binary_dilation(ends.reshape(h, w), square, iterations=NEAR_PX)
    sinks = np.zeros((h, w), np.int32)
    ndimage.label(near, square, output=sinks)
    return without_small(np.where(inside, sinks.ravel()[chain].reshape(h, w), 0), SMALLEST_PX)


def _mean(value: Float[Array, "n h w"], w: Float[Array, "n h w"], axis_name: str | None) -> Float[Array, ""]:
    total, norm = jnp.sum(value * w), jnp.sum(w)
    if axis_name is not None:
        total, norm = jax.lax.psum((total, norm), axis_name)
    return total / jnp.where(norm > 0, norm, 1)
