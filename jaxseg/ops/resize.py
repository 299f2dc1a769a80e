"""Resizing as shifts and weighted sums, one axis after the other: no gather, no scatter, no matrix of the image's size.

Along an axis, blocks of b input pixels make blocks of a output pixels: from 100 pixels to 150 every 2 make 3. The p-th pixels of all
output blocks, a *phase*, are a weighted sum of a few phases of the input, shifted by whole blocks. The weights are constants, except at
the edges and where no small block fits the two sizes exactly; then they are vectors over the blocks. Shifts fill in zeros, which only
ever meet the weight zero. So everything is pads, slices, products and sums, and its transpose is of the same kind.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Shaped

from jaxseg.errors import InputError
from jaxseg.ops.shapes import need_image

NEAREST = ("nearest", "nearest_exact")
METHODS = (*NEAREST, "bilinear", "bicubic", "bicubic_torch")
MOST_TERMS = 20
"""Sums of more weights than these are products of small matrices. Measured on CPUs."""


def resize(
    x: Shaped[Array, "*n h w c"], size: Sequence[int], method: str = "bilinear", *, align_corners: bool = False
) -> Shaped[Array, "*n h2 w2 c"]:
    """The image at another size: [..., H, W, C] -> [..., *size, C], of the same type.

    Nothing is antialiased when the image shrinks, as in torch: blur it first.

    Args:
      x: floats; any type with the nearest methods.
      size: the new height and width.
      method: one of
        "nearest": pixel floor(i * in / out), torch's 'nearest'. (Torch computes it in float32: in 2 of 100 pairs of sizes it takes the
          pixel before at some places where i * in / out is whole.)
        "nearest_exact": the pixel under the new pixel's centre, torch's 'nearest-exact', `jax.image.resize`'s 'nearest'.
        "bilinear": of both libraries.
        "bicubic": Keys' a = -1/2; at the edges the weights inside are scaled to sum 1. `jax.image.resize`'s 'cubic'.
        "bicubic_torch": a = -3/4, edges clamped; torch's 'bicubic', `jax.image.resize`'s 'cubic-pytorch'.
      align_corners: keep the centres of the corner pixels in place, not the outer edges of the image.

    Raises:
      InputError: an unknown method, a size that is not two positive numbers, align_corners with a nearest method, integers to interpolate.

    Source: torch.nn.functional.interpolate, jax.image.resize(antialias=False); Keys 1981.

    >>> resize(jnp.array([0., 4.])[None, :, None], (1, 4))[0, :, 0].tolist()
    [0.0, 1.0, 3.0, 4.0]
    """
    need_image("resize", x.shape)
    if method not in METHODS:
        raise InputError(f"resize: got method {method!r}; required one of {', '.join(METHODS)}.")
    if len(size) != 2 or not all(isinstance(n, int | np.integer) for n in size) or min(*size, *x.shape[-3:-1]) < 1:
        raise InputError(
            f"resize: got size {tuple(size)} for shape {x.shape}; required a whole height and width, from one pixel on, of both."
        )
    if method in NEAREST and align_corners:
        raise InputError(f"resize: got align_corners=True with method {method!r}; only interpolation has it. Leave it out.")
    if method not in NEAREST and not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(f"resize: got {x.dtype} with method {method!r}; required floats. Convert them, or take 'nearest' for labels.")
    y = x if method in NEAREST else x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # The axis that grows less comes first, so that the other one starts from the smaller image. Of two alike the width comes first:
    # the backward pass then sums whole rows first.
    for axis in sorted((-2, -3), key=lambda axis: size[axis + 3] / x.shape[axis]):
        old, new = x.shape[axis], size[axis + 3]
        if old == new:
            continue
        if old == 1:
            y = jnp.broadcast_to(y, (*y.shape[:axis], new, *y.shape[axis + 1 :]))
        elif method in NEAREST:
            y = selection(y, axis, _grid(old, new, method, False)) if new % old else repeat(y, axis, new // old)
        else:
            y = weighted_sum(y, axis, _grid(old, new, method, align_corners))
    return y.astype(x.dtype)


class Phases(NamedTuple):
    """A sparse linear map along an axis: y[a*j + p] = sum over (p, q, k) of weights[p, q, k][j] * x[b*(j + k) + q], cut to `length`."""

    length: int
    blocks: int
    a: int
    b: int
    weights: dict[tuple[int, int, int], np.ndarray]


def phases(index: np.ndarray, weight: np.ndarray, n: int) -> Phases:
    """The map y[o] = sum over t of weight[o, t] * x[index[o, t]] of n pixels in the blocks that cost least; both arrays [out, taps]."""
    out, used = len(index), weight.ravel() != 0
    o, i, w = (v.ravel()[used] for v in (np.arange(out).repeat(index.shape[1]), index, weight))

    def blocks(a, b):
        return max(-(-out // a), -(-n // b))

    def terms(a, b):
        k = i // b - o // a
        return (o % a * b + i % b) * (2 * (n + out)) + k + (n + out)

    def cost(block):
        count = len(np.unique(terms(*block)))
        return count + 16 * count * blocks(*block) / out, block  # the length of the program, and the work for an output pixel

    sides = {(max(1, rounded(b * out / n)), b) for b in range(1, 33) for rounded in (math.floor, math.ceil)}
    a, b = min({(a, b) for a, b in sides if a <= max(32, -(-out // n))} | {(1, -(-n // out))}, key=cost)
    names, term = np.unique(terms(a, b), return_inverse=True)
    vectors = np.zeros((len(names), blocks(a, b)))
    np.add.at(vectors, (term, o // a), w)
    pq, k = np.divmod(names, 2 * (n + out))
    keys = zip((pq // b).tolist(), (pq % b).tolist(), (k - n - out).tolist(), strict=True)
    return Phases(out, blocks(a, b), a, b, dict(zip(keys, vectors, strict=True)))


def weighted_sum(x: Float[Array, "*n h w c"], axis: int, map_: Phases) -> Float[Array, "*n h2 w2 c"]:
    """Apply a map along axis -3 or -2."""
    *lead, n = x.shape[: x.ndim + axis + 1]
    rest = x.shape[x.ndim + axis + 1 :]
    # XLA's loops run over the last axis: what lies behind this one as one axis is faster.
    parts = _parts(x.reshape(*lead, n, math.prod(rest)), len(lead), map_)
    y = _sums(parts, map_) if len(map_.weights) <= MOST_TERMS else _products(parts, map_)
    y = y.reshape(*lead, map_.blocks * map_.a, math.prod(rest))
    return lax.slice_in_dim(y, 0, map_.length, axis=-2).reshape(*lead, map_.length, *rest)


def selection(x: Shaped[Array, "*n h w c"], axis: int, map_: Phases) -> Shaped[Array, "*n h2 w2 c"]:
    """The same where every new pixel is one old pixel: of any type, and whatever its neighbours are, nan among them."""
    at = x.ndim + axis
    parts = _parts(x, at, map_)
    phase = [jnp.zeros((), x.dtype)] * map_.a
    for (p, q, k), v in map_.weights.items():
        y, mask = _shift(parts[q], k, at), (v != 0).reshape(-1, *[1] * (x.ndim - 1 - at))
        phase[p] = jnp.where(mask, y, phase[p]) if phase[p].ndim else y
    y = _interleave(phase, at)
    return lax.slice_in_dim(y, 0, map_.length, axis=axis)


def _parts(x: Shaped[Array, "*n h r"], at: int, map_: Phases) -> dict[int, Array]:
    """The phases of x: {q: every b-th pixel from q on}, those that are used."""
    n, length = x.shape[at], map_.blocks * map_.b
    if length > n:
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, length - n if d == at else 0, 0) for d in range(x.ndim)])
    if map_.b == 1:
        return {0: x}
    x = x.reshape(*x.shape[:at], map_.blocks, map_.b, *x.shape[at + 1 :])
    return {q: lax.index_in_dim(x, q, at + 1, keepdims=False) for q in sorted({q for _, q, _ in map_.weights})}


def _interleave(phase: list[Array], at: int) -> Array:
    shape = max((y.shape for y in phase), key=len)  # an empty phase, beyond the length that is kept, is a scalar
    y = jnp.stack([jnp.broadcast_to(y, shape) for y in phase], at + 1) if len(phase) > 1 else phase[0]
    return y.reshape(*shape[:at], shape[at] * len(phase), *shape[at + 1 :])


def _shift(x: Array, k: int, at: int) -> Array:
    """y[j] = x[j + k], zero outside."""
    return lax.pad(x, jnp.zeros((), x.dtype), [(-k, k, 0) if d == at else (0, 0, 0) for d in range(x.ndim)]) if k else x


def _sums(parts: dict[int, Float[Array, "*n m r"]], map_: Phases) -> Float[Array, "*n ma r"]:
    first = next(iter(parts.values()))
    at, phase = first.ndim - 2, [jnp.zeros((), first.dtype)] * map_.a
    for (p, q, k), v in map_.weights.items():
        # Weighted, then shifted: the transpose shifts what it reads and weighs that, which XLA fuses into one loop. The weights of what
        # is shifted out are free.
        x, m = parts[q], map_.blocks
        inside = v[max(0, -k) : m - max(0, k)]
        w = inside[0] if np.all(inside == inside[0]) else np.pad(inside, (max(0, k), max(0, -k)))[:, None]
        y = _shift(jnp.multiply(np.asarray(w, x.dtype), x), k, at)
        phase[p] = phase[p] + y if phase[p].ndim else y
    return _interleave(phase, at)


def _products(parts: dict[int, Float[Array, "*n m r"]], map_: Phases) -> Float[Array, "*n ma r"]:
    """One small matrix a block: from many terms on it runs faster than their sums, and compiles much faster."""
    reads = sorted({(k, q) for _, q, k in map_.weights})
    windows = jnp.stack([_shift(parts[q], k, parts[q].ndim - 2) for k, q in reads], -2)
    *lead, m, t, r = windows.shape
    matrices = np.zeros((m, map_.a, t), windows.dtype)
    for (p, q, k), v in map_.weights.items():
        matrices[:, p, reads.index((k, q))] = v
    y = jnp.matmul(jnp.broadcast_to(matrices, (*lead, m, map_.a, t)), windows, precision=lax.Precision.HIGHEST)
    return y.reshape(*lead, m * map_.a, r)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def repeat(x: Shaped[Array, "*n h w c"], axis: int, times: int) -> Shaped[Array, "*n h2 w2 c"]:
    """Every pixel so many times. A broadcast, but with the derivative of `_interleave`, whose transpose is a sum of slices: a broadcast's
    is a reduction, which XLA does slower on CPUs."""
    at = x.ndim + axis
    y = jnp.broadcast_to(jnp.expand_dims(x, at + 1), (*x.shape[: at + 1], times, *x.shape[at + 1 :]))
    return y.reshape(*x.shape[:at], times * x.shape[at], *x.shape[at + 1 :])


@repeat.defjvp
def _repeat_jvp(axis, times, primals, tangents):
    (x,), (dx,) = primals, tangents
    return repeat(x, axis, times), _interleave([dx] * times, x.ndim + axis)


@functools.lru_cache(1024)
def _grid(old: int, new: int, method: str, align_corners: bool) -> Phases:
    """Where the new pixels of an axis lie among the old ones, and what they take from them."""
    o = np.arange(new)
    if method in NEAREST:
        index = o * old // new if method == "nearest" else (2 * o + 1) * old // (2 * new)
        return phases(index[:, None], np.ones((new, 1)), old)
    # In whole numbers, so that a new pixel on an old one reads no other.
    position, unit = (o * (old - 1), max(new - 1, 1)) if align_corners else ((2 * o + 1) * old - new, 2 * new)
    index = position[:, None] // unit + (np.arange(2) if method == "bilinear" else np.arange(-1, 3))
    weight = _kernel(method, np.abs(position[:, None] - unit * index) / unit)
    if method == "bicubic":
        weight = np.where((index >= 0) & (index < old), weight, 0)
        weight /= weight.sum(1, keepdims=True)
    return phases(np.clip(index, 0, old - 1), weight, old)


def _kernel(method: str, distance: np.ndarray) -> np.ndarray:
    if method == "bilinear":
        return 1 - distance
    a = -0.5 if method == "bicubic" else -0.75
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance < 1, near, far)
