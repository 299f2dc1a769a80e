"""Connected components of label maps, and labels made connected."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int


def components(label: Int[Array, "h w"]) -> Int[Array, "h w"]:
    """The 4-connected pieces of equal labels, each named by its first pixel's number row by row.

    Every pixel takes the least name around it, then that name's own name (pointer jumping), until nothing changes.
    """
    h, w = label.shape
    names = jnp.arange(h * w, dtype=jnp.int32).reshape(h, w)
    same = [_shifted(label, d, -1) == label for d in _AROUND]

    def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
        names, _ = state
        least = names
        for d, alike in zip(_AROUND, same, strict=True):
            least = jnp.where(alike, jnp.minimum(least, _shifted(names, d, h * w)), least)
        # A hook on the name's own pixel brings the news to the whole piece at once.
        roots = names.reshape(-1).at[names.reshape(-1)].min(least.reshape(-1))
        least = roots[least]
        return least, jnp.any(least != names)

    return lax.while_loop(lambda state: state[1], step, (names, jnp.array(True)))[0]


def keep_largest(label: Int[Array, "h w"], lab: Float[Array, "h w c"], bound: int) -> Int[Array, "h w"]:
    """Each label (0..bound-1) keeps its largest 4-connected piece; the other pixels join the pieces beside them.

    Round by round, a pixel without a label takes that of the labelled one of its four neighbours whose colour is nearest to its own. Of
    pieces equally large the first stays. So every label stays one connected piece, and none is lost.
    """
    names = components(label)
    size = jnp.zeros(label.size, jnp.int32).at[names].add(1)[names]
    largest = jnp.zeros(bound, jnp.int32).at[label].max(size)
    first = jnp.full(bound, label.size, jnp.int32).at[label].min(jnp.where(size == largest[label], names, label.size))
    apart = jnp.stack([((_shifted(lab, d, jnp.inf) - lab) ** 2).sum(-1) for d in _AROUND])

    def grow(state: tuple[Array, Array]) -> tuple[Array, Array]:
        label, known = state
        near = jnp.where(jnp.stack([_shifted(known, d, False) for d in _AROUND]), apart, jnp.inf)
        beside = jnp.stack([_shifted(label, d, 0) for d in _AROUND])
        joined = jnp.take_along_axis(beside, jnp.argmin(near, 0)[None], 0)[0]
        reached = ~known & (near.min(0) < jnp.inf)
        return jnp.where(reached, joined, label), known | reached

    return lax.while_loop(lambda state: ~jnp.all(state[1]), grow, (label, names == first[label]))[0]


_AROUND = ((1, 0), (-1, 0), (0, 1), (0, -1))


def _shifted(x: Array | Bool[Array, "h w"], by: tuple[int, int], fill: object) -> Array:
    """Pixel (y, x) of the result is (y, x) - by; `fill` comes in at the edge."""
    h, w = x.shape[:2]
    pads = [(max(d, 0), max(-d, 0)) for d in by] + [(0, 0)] * (x.ndim - 2)
    padded = jnp.pad(x, pads, constant_values=jnp.asarray(fill, x.dtype))
    return jax.lax.slice(padded, [max(-d, 0) for d in by] + [0] * (x.ndim - 2), [max(-by[0], 0) + h, max(-by[1], 0) + w, *x.shape[2:]])
