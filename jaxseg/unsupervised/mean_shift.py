"""Mean shift in colour and position, of superpixels."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxseg.ops.colour import rgb_to_lab
from jaxseg.ops.shapes import integer
from jaxseg.unsupervised.features import checked, consecutive, need_numbers
from jaxseg.unsupervised.regions import region_means, sizes
from jaxseg.unsupervised.slic import superpixels


def mean_shift(
    image: Float[Array, "h w c"], *, bandwidth: float = 12.0, space: float = 0.15, segments: int = 800, iterations: int = 100
) -> Int[Array, "h w"]:
    """The basins of the modes of the density of colour and position: [H,W,C] in 0..1 -> int32 [H,W], labels 0..n-1.

    The points are the means of superpixels, weighted by their pixels, which makes it affordable: every superpixel climbs to the mean of
    those within both bandwidths until none moves. Those whose modes lie within both bandwidths of each other, at once or by way of others,
    are one segment. A constant image gives one segment where `space` is not smaller than the superpixels.

    Args:
      bandwidth: of the colour, units of L*a*b*; the scale parameter.
      space: bandwidth of the position, in units of the image's longer side.
      segments: about so many superpixels.
      iterations: at most.

    Raises:
      InputError: see `jaxseg.unsupervised.features.checked`; segments or iterations is no positive integer,
        or another option is out of its range.

    Source: Comaniciu & Meer 2002, Mean shift: a robust approach toward feature space analysis, section 4.2, with Epanechnikov kernels.
    """
    image = checked("mean_shift", image)
    need_numbers("mean_shift", zero=False, bandwidth=bandwidth, space=space)
    segments, iterations = integer("mean_shift", "segments", segments, 1), integer("mean_shift", "iterations", iterations, 1)
    return _mean_shift(image, bandwidth, space, segments, iterations)


@functools.partial(jax.jit, static_argnames=("segments", "iterations"))
def _mean_shift(image: Array, bandwidth: float, space: float, segments: int, iterations: int) -> Array:
    lab = rgb_to_lab(image)
    h, w, _ = lab.shape
    label, bound = superpixels(lab, segments, compactness=10.0, iterations=10)
    place = jnp.stack(jnp.mgrid[:h, :w], -1) / (max(h, w) * space)
    size = sizes(label, bound)
    points = region_means(jnp.concatenate([lab / bandwidth, place], -1), label, size)
    modes = climb(points, size, iterations)
    linked = _near(modes, modes) & (size > 0) & (size > 0)[:, None]
    return consecutive(linked_sets(linked)[label], bound)


def climb(points: Float[Array, "r 5"], weight: Float[Array, "r"], iterations: int) -> Float[Array, "r 5"]:
    """The mode above each point: the weighted mean of the points within 1 in colour (the first three) and in position, again and again."""

    def shift(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        modes, _, i = state
        inside = _near(modes, points) * weight
        # A mode stays where nothing is near, which rounding alone can bring about.
        total = inside.sum(-1, keepdims=True)
        new = jnp.where(total > 0, inside @ points / jnp.where(total > 0, total, 1), modes)
        return new, jnp.max(jnp.abs(new - modes)), i + 1

    start = points, jnp.array(jnp.inf, points.dtype), jnp.array(0)
    return lax.while_loop(lambda state: (state[1] > 1e-3) & (state[2] < iterations), shift, start)[0]


def linked_sets(linked: Bool[Array, "r r"]) -> Int[Array, "r"]:
    """The least number of the set to which each is linked, at once or by way of others."""

    def spread(state: tuple[Array, Array]) -> tuple[Array, Array]:
        names, _ = state
        new = jnp.minimum(names, jnp.where(linked, names, len(names)).min(-1))
        new = new[new]
        return new, jnp.any(new != names)

    names = jnp.arange(len(linked), dtype=jnp.int32)
    return lax.while_loop(lambda state: state[1], spread, (names, jnp.array(True)))[0]


def _near(a: Float[Array, "n 5"], b: Float[Array, "m 5"]) -> Bool[Array, "n m"]:
    def within(x: Array, y: Array) -> Array:
        return ((x[:, None] - y) ** 2).sum(-1) <= 1

    return within(a[:, :3], b[:, :3]) & within(a[:, 3:], b[:, 3:])
