"""What is known of the regions of a label map, and the borders between them."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def region_means(values: Float[Array, "h w f"], label: Int[Array, "h w"], size: Float[Array, "r"]) -> Float[Array, "r f"]:
    """The means of the values over the regions, of `sizes` pixels each; 0 of a region without any."""
    sums = jnp.zeros((len(size), values.shape[-1]), values.dtype).at[label.reshape(-1)].add(values.reshape(label.size, -1))
    return sums / jnp.maximum(size, 1)[:, None]


def sizes(label: Int[Array, "h w"], bound: int) -> Float[Array, "r"]:
    """Pixels of each of the regions 0..bound-1."""
    return jnp.zeros(bound).at[label.reshape(-1)].add(1)


def borders(label: Int[Array, "h w"], strength: Float[Array, "h w"], bound: int) -> tuple[Float[Array, "r r"], Float[Array, "r r"]]:
    """Length of the border between every two regions, in pairs of 4-neighbours, and the strength summed along it.

    A pair's strength is the larger of its two pixels'. Both are symmetric, and 0 on the diagonal.
    """
    length, total = jnp.zeros((bound, bound)), jnp.zeros((bound, bound))
    for here, there in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        ahead, behind, edge = label[here], label[there], jnp.maximum(strength[here], strength[there])
        apart = (ahead != behind).astype(length.dtype)
        length = length.at[ahead, behind].add(apart)
        total = total.at[ahead, behind].add(apart * edge)
    return length + length.T, total + total.T


def histograms(values: Float[Array, "h w c"], label: Int[Array, "h w"], bound: int, bins: int) -> Float[Array, "r cb"]:
    """Of each channel in each of the regions 0..bound-1: pixels in `bins` equal parts of 0..1, what lies outside in the outermost."""
    c = values.shape[-1]
    part = jnp.clip(values * bins, 0, bins - 1).astype(jnp.int32)
    counts = jnp.zeros((bound, c, bins)).at[label[..., None], jnp.arange(c), part].add(1)
    return counts.reshape(bound, c * bins)
