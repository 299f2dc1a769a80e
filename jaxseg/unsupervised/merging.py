"""Regions of a label map merged, the most alike neighbours first."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxseg.errors import InputError
from jaxseg.ops.colour import rgb_to_lab
from jaxseg.ops.shapes import integer
from jaxseg.ops.texture import gaussian, texture_energy
from jaxseg.unsupervised.features import checked, consecutive, need_numbers
from jaxseg.unsupervised.regions import borders, histograms, sizes
from jaxseg.unsupervised.slic import superpixels

MOST = 4096
"""Regions whose pairs are kept in memory, as tables of MOST x MOST numbers."""
# Chosen on 25 of BSDS500's 100 validation images; so are the bins.
_TEXTURE_OFFSET = 0.2
_SIZE_EXPONENT = 0.35


def slic_merge(
    image: Float[Array, "h w c"], *, threshold: float = 0.5, segments: int = 400, compactness: float = 10.0
) -> Int[Array, "h w"]:
    """SLIC superpixels, merged as `merge_regions` does: [H,W,C] in 0..1 -> int32 [H,W], labels 0..n-1, each 4-connected.

    A constant image gives one region.

    Args:
      threshold: cost at which merging stops, from 0; the scale parameter.
      segments: about so many superpixels.
      compactness: theirs, see `slic`.

    Raises:
      InputError: see `jaxseg.unsupervised.features.checked`; segments is no integer in 1..4096, or another option is negative.
    """
    image = checked("slic_merge", image)
    need_numbers("slic_merge", zero=True, threshold=threshold, compactness=compactness)
    segments = integer("slic_merge", "segments", segments, 1)
    if segments > MOST:
        raise InputError(f"slic_merge: got {segments} segments; required at most {MOST}. Merging keeps a table of all pairs.")
    return _slic_merge(image, threshold, segments, compactness)


def merge_regions(image: Float[Array, "h w c"], label: Int[Array, "h w"], *, threshold: float = 0.5) -> Int[Array, "h w"]:
    """The two neighbours of least cost become one region, again and again, until the least cost is above the threshold.

    cost(i, j) = g C (0.2 + T) (n_i n_j / (n_i + n_j) / n)^0.35

    g is the mean contrast along their common border (the gradient of L*a*b* at sigma 2, times 2), C and T are the mean total variation
    distances (0..1) of their histograms of L*, a* and b*, and of the twelve texture energies of L*; n_i and n_j are their pixels, n the
    image's. So small regions are merged before large ones. Regions are merged with those they touch through a side of a pixel only.

    Args:
      image: in 0..1.
      label: 0 to at most 4095; it is read, so it cannot be traced (`slic_merge` can).
      threshold: from 0; larger values give larger regions.

    Raises:
      InputError: see `jaxseg.unsupervised.features.checked`; or the label map or the threshold does not fit.

    Source: the form is Ward's (1963: distance times n_i n_j / (n_i + n_j)) with a smaller exponent, the gradient Di Zenzo's (1986).
    """
    image = checked("merge_regions", image)
    need_numbers("merge_regions", zero=True, threshold=threshold)
    values = np.asarray(label)
    if values.shape != image.shape[:2] or not np.issubdtype(values.dtype, np.integer) or values.min() < 0 or values.max() >= MOST:
        raise InputError(
            f"merge_regions: got a label map {values.dtype} {values.shape} for an image {image.shape}; required integers in "
            f"0..{MOST - 1}, one a pixel. Number the regions anew, e.g. by skimage.segmentation.relabel_sequential."
        )
    return _merge_regions(image, jnp.asarray(values, jnp.int32), int(values.max()) + 1, threshold)


class Regions(NamedTuple):
    """What merging keeps of the regions: tables are symmetric, and region `owner[i]` holds what was region i."""

    owner: Int[Array, "r"]
    size: Float[Array, "r"]
    colour: Float[Array, "r 60"]
    texture: Float[Array, "r 120"]
    length: Float[Array, "r r"]
    contrast: Float[Array, "r r"]


@functools.partial(jax.jit, static_argnames="segments")
def _slic_merge(image: Array, threshold: float, segments: int, compactness: float) -> Array:
    lab = rgb_to_lab(image)
    label, bound = superpixels(lab, segments, compactness, iterations=10)
    owner = merge(describe(lab, label, bound), threshold).owner
    return consecutive(owner[label], bound)


@functools.partial(jax.jit, static_argnames="bound")
def _merge_regions(image: Array, label: Array, bound: int, threshold: float) -> Array:
    owner = merge(describe(rgb_to_lab(image), label, bound), threshold).owner
    return consecutive(owner[label], bound)


def describe(lab: Float[Array, "h w 3"], label: Int[Array, "h w"], bound: int) -> Regions:
    """Histograms, borders and sizes of the regions 0..bound-1."""
    colour = histograms(lab / jnp.array([100.0, 120, 120]) + jnp.array([0, 0.5, 0.5]), label, bound, bins=20)
    texture = histograms(jnp.log2(1 + texture_energy(lab[..., :1])) / 6, label, bound, bins=10)
    dy, dx = gaussian(jnp.moveaxis(lab, -1, 0), 2.0, ((1, 0), (0, 1)))
    yy, xy, xx = (dy * dy).sum(0), (dy * dx).sum(0), (dx * dx).sum(0)
    gradient = jnp.sqrt((yy + xx) / 2 + jnp.sqrt((yy - xx) ** 2 / 4 + xy**2))
    return Regions(jnp.arange(bound), sizes(label, bound), colour, texture, *borders(label, gradient, bound))


def costs(regions: Regions, i: Int[Array, ""]) -> Float[Array, "r"]:
    """Of merging region i with each of the others: infinite with those it does not touch."""
    size = jnp.maximum(regions.size, 1)

    def variation(sums: Array, kinds: int) -> Array:
        shares = sums / size[:, None]
        return jnp.abs(shares - shares[i]).sum(-1) / (2 * kinds)

    length = regions.length[i]
    contrast = regions.contrast[i] / jnp.maximum(length, 1)
    unlike = variation(regions.colour, 3) * (_TEXTURE_OFFSET + variation(regions.texture, 12))
    smallness = (size * size[i] / (size + size[i]) / regions.size.sum()) ** _SIZE_EXPONENT
    return jnp.where(length > 0, contrast * unlike * smallness, jnp.inf)


def merge(regions: Regions, threshold: float) -> Regions:
    """Pairs of least cost merged into the one of smaller number while the cost is at most the threshold."""

    def step(state: tuple[Regions, Array, Array, Array]) -> tuple[Regions, Array, Array, Array]:
        regions, table, i, j = state

        def fold(x: Array) -> Array:
            return x.at[i].add(x[j]).at[j].set(0)

        def fold_both(x: Array) -> Array:
            both = (x[i] + x[j]).at[jnp.array([i, j])].set(0)
            return x.at[i].set(both).at[:, i].set(both).at[j].set(0).at[:, j].set(0)

        owner = jnp.where(regions.owner == j, i, regions.owner)
        regions = Regions(owner, *(fold(x) for x in regions[1:4]), *(fold_both(x) for x in regions[4:]))
        new = costs(regions, i)
        table = table.at[j].set(jnp.inf).at[:, j].set(jnp.inf).at[i].set(new).at[:, i].set(new)
        return regions, table, *least(table)

    def least(table: Array) -> tuple[Array, Array]:
        i, j = jnp.divmod(jnp.argmin(table), len(table))
        return jnp.minimum(i, j), jnp.maximum(i, j)

    table = lax.map(lambda i: costs(regions, i), jnp.arange(len(regions.size)))
    start = regions, table, *least(table)
    return lax.while_loop(lambda state: state[1][state[2], state[3]] <= threshold, step, start)[0]
