"""K-means on colour, texture and position."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxseg.ops.shapes import integer
from jaxseg.unsupervised.features import checked, consecutive, need_numbers, pixel_features


def kmeans(
    image: Float[Array, "h w c"], *, clusters: int = 8, texture: float = 1.0, position: float = 20.0, iterations: int = 20
) -> Int[Array, "h w"]:
    """Labels 0..n-1, n <= clusters, of Lloyd's algorithm on L*a*b*, texture energy and position: [H,W,C] in 0..1 -> int32 [H,W].

    The seeds are found without chance (`variance_split`). A cluster that loses all its pixels keeps its centre and may get some again; in
    the end empty ones are left out, so more clusters than pixels do no harm. A constant image is cut by position alone: position=0 leaves
    it whole.

    Args:
      clusters: at most; the scale parameter.
      texture: weight of the texture energy, in units of L*, at three scales and four orientations.
      position: weight of the position: units of L*a*b* that the image's longer side counts for.
      iterations: of assignment and new means.

    Raises:
      InputError: see `jaxseg.unsupervised.features.checked`; clusters or iterations is no positive integer,
        or another option is out of its range.
    """
    image = checked("kmeans", image)
    need_numbers("kmeans", zero=True, texture=texture, position=position)
    clusters, iterations = integer("kmeans", "clusters", clusters, 1), integer("kmeans", "iterations", iterations, 1)
    return _kmeans(image, clusters, texture, position, iterations)


@functools.partial(jax.jit, static_argnames=("clusters", "iterations"))
def _kmeans(image: Array, clusters: int, texture: float, position: float, iterations: int) -> Array:
    features = pixel_features(image, texture, position, oriented=True)
    x = features.reshape(-1, features.shape[-1])
    centres = lloyd(x, variance_split(x, clusters), iterations)
    return consecutive(nearest(x, centres).reshape(image.shape[:2]), clusters)


def nearest(x: Float[Array, "n d"], centres: Float[Array, "k d"]) -> Int[Array, "n"]:
    """The centre nearest to each point; the first of equally near ones."""
    return jnp.argmin((centres**2).sum(-1) / 2 - x @ centres.T, axis=-1).astype(jnp.int32)


def lloyd(x: Float[Array, "n d"], centres: Float[Array, "k d"], iterations: int) -> Float[Array, "k d"]:
    """The centres after so many times assigning every point to the nearest and taking means; one without points stays where it is.

    Source: Lloyd 1982, Least squares quantization in PCM.
    """

    def step(_: int, centres: Array) -> Array:
        member = jax.nn.one_hot(nearest(x, centres), len(centres), dtype=x.dtype)
        size = member.sum(0)[:, None]
        return jnp.where(size > 0, member.T @ x / jnp.maximum(size, 1), centres)

    return lax.fori_loop(0, iterations, step, centres)


def variance_split(x: Float[Array, "n d"], k: int) -> Float[Array, "k d"]:
    """k seeds: the cluster with the largest sum of squares is cut in two at its mean across its widest dimension, k - 1 times.

    Without chance, and blind to the order of the points. Points that are all equal are cut into themselves and nothing, so seeds repeat.

    Source: Su & Dy 2007, In search of deterministic methods for initializing K-means and Gaussian mixture clustering (Var-Part).
    """

    def moments(inside: Array) -> tuple[Array, Array]:
        weight = inside.astype(x.dtype) / jnp.maximum(inside.sum(), 1)
        mean = weight @ x
        return mean, jnp.maximum(weight @ (x - mean) ** 2, 0) * inside.sum()

    def cut(i: int, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        label, means, spreads = state
        worst = jnp.argmax(spreads.sum(-1))
        axis = jnp.argmax(spreads[worst])
        inside = label == worst
        above = inside & (x[:, axis] > means[worst, axis])
        # Equal points can all lie above their mean, which is rounded.
        label = jnp.where(above & (above.sum() < inside.sum()), i, label)
        for cluster in (worst, i):
            mean, spread = moments(label == cluster)
            means, spreads = means.at[cluster].set(mean), spreads.at[cluster].set(spread)
        return label, means, spreads

    mean, spread = moments(jnp.ones(len(x), bool))
    means, spreads = (jnp.zeros((k, x.shape[1]), x.dtype).at[0].set(first) for first in (mean, spread))
    label, means, _ = lax.fori_loop(1, k, cut, (jnp.zeros(len(x), jnp.int32), means, spreads))
    empty = jnp.zeros(k, jnp.int32).at[label].add(1) == 0
    return jnp.where(empty[:, None], means[0], means)
