"""SLIC superpixels."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxseg.ops.colour import rgb_to_lab
from jaxseg.ops.shapes import integer
from jaxseg.unsupervised.connected import keep_largest
from jaxseg.unsupervised.features import checked, consecutive, need_numbers


def slic(image: Float[Array, "h w c"], *, segments: int = 400, compactness: float = 10.0, iterations: int = 10) -> Int[Array, "h w"]:
    """About `segments` connected superpixels of similar colour and size: [H,W,C] in 0..1 -> int32 [H,W].

    Seeds lie on a regular grid, which cuts the image into cells. A pixel is compared with the nine superpixels whose seeds' cells touch its
    own, by (colour distance)² + (compactness * distance / grid step)², in L*a*b*. At the end each superpixel keeps its largest
    4-connected piece, and the other pixels join the pieces beside them (`keep_largest`). A constant image gives the grid; more segments
    than pixels give one a pixel.

    Args:
      segments: about so many; the scale parameter.
      compactness: units of L*a*b* that a grid step counts for.
      iterations: of assignment and new means.

    Raises:
      InputError: see `jaxseg.unsupervised.features.checked`; segments or iterations is no positive integer,
        or another option is out of its range.

    Source: Achanta et al. 2012, SLIC superpixels compared to state-of-the-art superpixel methods, algorithm 1, without the shift of the
    seeds to the least gradient; their window of 2 S x 2 S around the centre is here the nine cells.
    """
    image = checked("slic", image)
    need_numbers("slic", zero=True, compactness=compactness)
    segments, iterations = integer("slic", "segments", segments, 1), integer("slic", "iterations", iterations, 1)
    return _slic(image, segments, compactness, iterations)


def grid(h: int, w: int, segments: int) -> tuple[int, int]:
    """Rows and columns of about `segments` square cells."""
    step = math.sqrt(h * w / segments)
    return min(h, max(1, round(h / step))), min(w, max(1, round(w / step)))


@functools.partial(jax.jit, static_argnames=("segments", "iterations"))
def _slic(image: Array, segments: int, compactness: float, iterations: int) -> Array:
    lab = rgb_to_lab(image)
    label, bound = superpixels(lab, segments, compactness, iterations)
    return consecutive(label, bound)


def superpixels(lab: Float[Array, "h w 3"], segments: int, compactness: float, iterations: int) -> tuple[Int[Array, "h w"], int]:
    """SLIC's connected labels, which may have gaps, and the bound below which they lie."""
    h, w, _ = lab.shape
    rows, columns = grid(h, w, segments)
    weight = compactness / math.sqrt(h * w / (rows * columns))
    x = jnp.concatenate([lab, weight * jnp.stack(jnp.mgrid[:h, :w], -1)], -1)
    # Of the pixels' centres, so that the mirrored image has the mirrored cells.
    row, column = ((np.arange(n) + 0.5) * cells // n for n, cells in ((h, rows), (w, columns)))
    row, column = row.astype(int), column.astype(int)
    cell = row[:, None] * columns + column

    def means(label: Array) -> tuple[Array, Array]:
        flat = label.reshape(-1)
        size = jnp.zeros(rows * columns).at[flat].add(1)
        return jnp.zeros((rows * columns, 5)).at[flat].add(x.reshape(-1, 5)) / jnp.maximum(size, 1)[:, None], size

    def assign(centres: Array) -> Array:
        near, label = jnp.full((h, w), jnp.inf), jnp.zeros((h, w), jnp.int32)
        square = centres.reshape(rows, columns, 5)
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                r, c = row + dy, column + dx
                inside = ((r >= 0) & (r < rows))[:, None] & ((c >= 0) & (c < columns))
                other = square[r.clip(0, rows - 1)][:, c.clip(0, columns - 1)]
                distance = jnp.where(inside, ((x - other) ** 2).sum(-1), jnp.inf)
                label = jnp.where(distance < near, r[:, None] * columns + c, label)
                near = jnp.minimum(near, distance)
        return label

    def step(_: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
        label, centres = state
        new, size = means(label)
        centres = jnp.where(size[:, None] > 0, new, centres)
        return assign(centres), centres

    start = jnp.asarray(cell, jnp.int32), jnp.zeros((rows * columns, 5))
    label, _ = lax.fori_loop(0, iterations, step, start)
    return keep_largest(label, lab, rows * columns), rows * columns
