"""Resizing as shifts and weighted sums: no gather, no scatter, no matrix of the image's size.

Along an axis, blocks of b input pixels make blocks of a output pixels: from 100 pixels to 150 every 2 make 3. The p-th pixels of all
output blocks, a *phase*, are a weighted sum of a few phases of the input, shifted by whole blocks. The weights are constants, except at
the edges and where no small block fits the two sizes exactly; then they are vectors over the blocks. Shifts fill in zeros, which only
ever meet the weight zero. So everything is pads, slices, products and sums, and its transpose is of the same kind.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Shaped

from jaxseg.errors import InputError
from jaxseg.ops.shapes import Pair, need_floats, need_image, pair

NEAREST = ("nearest", "nearest_exact")
METHODS = (*NEAREST, "bilinear", "bicubic", "bicubic_torch")
AT_ONCE = 16
"""So many weights, rows' times columns', make one sum over both axes, which reads and writes the image once. Measured on CPUs."""
MOST_TERMS = 20
"""More weights than these on an axis are multiplied as matrices, one a block, if at least half of their entries are not zero."""
BARRIERS = jax.__version_info__ >= (0, 11, 1)
"""Whether XLA keeps an optimization_barrier on CPUs; those before fuse across it."""

_NOTE: ContextVar[Callable[[tuple[bool, bool]], None]] = ContextVar("note", default=lambda stretched: None)


@contextlib.contextmanager
def stretching_noted(note: Callable[[tuple[bool, bool]], None]) -> Iterator[None]:
    """`note` is told by each `resize` traced inside whether it stretches rows and columns: by no whole factor, or from corner to corner.

    Where it does, what becomes of a pixel depends on the size of its image: a tile of it would be stretched otherwise.
    """
    before = _NOTE.set(note)
    try:
        yield
    finally:
        _NOTE.reset(before)


def resize(
    x: Shaped[Array, "*n h w c"], size: Pair, method: str = "bilinear", *, align_corners: bool = False
) -> Shaped[Array, "*n h2 w2 c"]:
    """The image at another size: [..., H, W, C] -> [..., *size, C], of the same type.

    Nothing is antialiased when the image shrinks, as in torch: blur it first. Made for enlarging: shrinking by a factor that is not
    whole is right, and slower than `jax.image.resize`.

    Args:
      x: floats; any type with the nearest methods.
      size: the new height and width, or one number for both.
      method: one of
        "nearest": pixel floor(i * in / out), torch's 'nearest'.
        "nearest_exact": the pixel under the new pixel's centre, torch's 'nearest-exact'; `jax.image.resize`'s 'nearest' to rounding.
          (Torch computes both in float32: for a few pairs of sizes, 2 of 100 with "nearest" and 1 of 200 with "nearest_exact", it takes
          the pixel before at some places where the exact position is whole.)
        "bilinear": of both libraries.
        "bicubic": Keys' a = -1/2; at the edges the weights inside are scaled to sum 1. `jax.image.resize`'s 'cubic'.
        "bicubic_torch": a = -3/4, edges clamped; torch's 'bicubic', `jax.image.resize`'s 'cubic-pytorch'.
      align_corners: keep the centres of the corner pixels in place, not the outer edges of the image.

    Raises:
      InputError: an unknown method, a size that is not one or two positive integers, align_corners with a nearest method, or integers to
        interpolate.

    Source: torch.nn.functional.interpolate, jax.image.resize(antialias=False); Keys 1981.

    >>> resize(jnp.array([0., 4.])[None, :, None], (1, 4))[0, :, 0].tolist()
    [0.0, 1.0, 3.0, 4.0]
    """
    need_image("resize", x.shape)
    if method not in METHODS:
        raise InputError(f"resize: got method {method!r}; required one of {', '.join(METHODS)}.")
    size = pair("resize", "size", size, 1, "Give the new height and width.")
    if any(n < 1 for n in x.shape[-3:-1]):
        raise InputError(f"resize: got shape {x.shape}; required height and width from one pixel on. Leave out empty images.")
    if method in NEAREST and align_corners:
        raise InputError(f"resize: got align_corners=True with method {method!r}; only interpolation has it. Leave it out.")
    if method not in NEAREST:
        need_floats("resize", x.dtype, "Convert the image first, e.g. x.astype(jnp.float32), or take 'nearest' for labels.")
    *n, h, w, c = x.shape
    known = all(isinstance(side, int) for side in (h, w, *size))  # an export may leave them open
    if known:
        rows, columns = (old != new and (align_corners or 0 not in (old % new, new % old)) for old, new in zip((h, w), size, strict=True))
        _NOTE.get()((rows, columns))
    # An axis of one pixel is left for the broadcast at the end.
    if method in NEAREST:
        times = tuple(1 if old == 1 or new % old else new // old for old, new in zip((h, w), size, strict=True))
        y = x
        for at, old, new, whole in ((x.ndim - 2, w, size[1], times[1]), (x.ndim - 3, h, size[0], times[0])):
            y = selection(y, at, _grid(old, new, method, False)) if whole == 1 and old not in (1, new) else y
        y = repeat(y, *times)
    elif known:
        maps = (None if old in (1, new) else _grid(old, new, method, align_corners) for old, new in zip((h, w), size, strict=True))
        y = weighted_sum(x.astype(jnp.promote_types(x.dtype, jnp.float32)), *maps).astype(x.dtype)
    else:
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        y = _gathered(_gathered(y, x.ndim - 2, size[1], method, align_corners), x.ndim - 3, size[0], method, align_corners).astype(x.dtype)
    return jnp.broadcast_to(y, (*n, *size, c))


class Phases(NamedTuple):
    """A sparse linear map of an axis: y[a*j + p] = sum over (p, q, k) of weights[p, q, k][j] * x[b*(j + k) + q], cut to `length`."""

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


def weighted_sum(x: Float[Array, "*n h w c"], rows: Phases | None, columns: Phases | None) -> Float[Array, "*n h2 w2 c"]:
    """Apply a map to the height and one to the width, None being the identity."""
    *n, h, w, c = x.shape
    if rows and columns:
        if len(rows.weights) * len(columns.weights) <= AT_ONCE:
            return _at_once(x, rows, columns)
        return _one_after_the_other(x, rows, columns)
    if rows:  # XLA's loops run over the last axis: the width and the channels as one are faster
        y = _products(x.reshape(*n, h, w * c), rows) if _dense(rows) else _sums(x.reshape(*n, h, 1, w * c), rows, _identity(1))
        return y.reshape(*n, rows.length, w, c)
    if columns:
        return _products(x, columns) if _dense(columns) else _sums(x, _identity(h), columns)
    return x


def _one_after_the_other(x: Float[Array, "*n h w c"], rows: Phases, columns: Phases) -> Float[Array, "*n h2 w2 c"]:
    # The axis that grows less first: the other one then starts from the smaller image. Of two alike the width, so that the backward
    # pass sums whole rows first. The barrier: XLA would fuse the two, and compute in the backward pass the first for each of the
    # second's terms.
    maps = ((None, columns), (rows, None))
    first, second = maps if columns.length * x.shape[-3] <= rows.length * x.shape[-2] else maps[::-1]
    return weighted_sum(lax.optimization_barrier(weighted_sum(x, *first)), *second)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _at_once(x: Float[Array, "*n h w c"], rows: Phases, columns: Phases) -> Float[Array, "*n h2 w2 c"]:
    """Both axes as one sum, which writes the result once. Where both double, its bits are alike in images of any shape from three pixels a
    side on (`_powers`). Its transpose reads each pixel of the cotangent in four places, which on CPUs takes three times as long where the
    cotangent is not in the cache: the derivative is written as one axis after the other."""
    return _sums(x, rows, columns._replace(weights={at: _powers(v) for at, v in columns.weights.items()}))


@_at_once.defjvp
def _at_once_jvp(rows, columns, primals, tangents):
    (x,), (dx,) = primals, tangents
    apart = BARRIERS and jax.default_backend() == "cpu"
    return _at_once(x, rows, columns), (_one_after_the_other if apart else _sums)(dx, rows, columns)


def _identity(n: int) -> Phases:
    return Phases(n, n, 1, 1, {(0, 0, 0): np.ones(n)})


def _reads(map_: Phases) -> list[tuple[int, int]]:
    return sorted({(k, q) for _, q, k in map_.weights})


def _dense(map_: Phases) -> bool:
    return len(map_.weights) > MOST_TERMS and 2 * len(map_.weights) >= map_.a * len(_reads(map_))


def selection(x: Shaped[Array, "*n h w c"], at: int, map_: Phases) -> Shaped[Array, "*n h2 w2 c"]:
    """Apply a map in which every new pixel is one old pixel: of any type, and whatever its neighbours are, nan among them."""
    parts, phase = _parts(x, at, map_), [jnp.zeros((), x.dtype)] * map_.a
    for (p, q, k), v in map_.weights.items():
        y, mask = _shift(parts[q], {at: k}), (v != 0).reshape(-1, *[1] * (x.ndim - 1 - at))
        phase[p] = jnp.where(mask, y, phase[p]) if phase[p].ndim else y
    return lax.slice_in_dim(_interleave(phase, at), 0, map_.length, axis=at)


def _parts(x: Shaped[Array, "*n"], at: int, map_: Phases) -> dict[int, Array]:
    """The phases of x along an axis: {q: every b-th pixel from q on}, those that are read."""
    n, length = x.shape[at], map_.blocks * map_.b
    if length > n:
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, length - n if d == at else 0, 0) for d in range(x.ndim)])
    if map_.b == 1:
        return {0: x}
    x = x.reshape(*x.shape[:at], map_.blocks, map_.b, *x.shape[at + 1 :])
    return {q: lax.index_in_dim(x, q, at + 1, keepdims=False) for q in sorted({q for _, q, _ in map_.weights})}


def _interleave(phase: list[Array], at: int) -> Array:
    shape = max((y.shape for y in phase), key=len)  # an empty phase, beyond the length that is kept, is a scalar
    y = jnp.stack([jnp.broadcast_to(y, shape) for y in phase], at + 1)
    return y.reshape(*shape[:at], shape[at] * len(phase), *shape[at + 1 :])


def _shift(x: Array, by: dict[int, int]) -> Array:
    """y[j] = x[j + by], zero outside, along the axes named."""
    return lax.pad(x, jnp.zeros((), x.dtype), [(-by.get(d, 0), by.get(d, 0), 0) for d in range(x.ndim)]) if any(by.values()) else x


def _powers(weight: np.ndarray) -> np.ndarray:
    """Two powers of two that add up to the weights, [2, blocks], where there are such; or the weights. A product with a power of two is
    exact, so that it is one whether XLA adds it in one rounding or in two, which changes with the shape of the image."""
    if weight.min() < 0 or not weight.any():
        return weight
    low = np.where(weight > 0, 2.0 ** np.floor(np.log2(weight[weight > 0].min())), 0)
    parts = np.stack([low, weight - low])
    # A part that is zero where the weight is not would make nan of infinity.
    return parts if ((parts > 0) == (weight > 0)).all() and np.isin(np.frexp(parts)[0], (0, 0.5)).all() else weight


def _sums(x: Float[Array, "*n h w c"], rows: Phases, columns: Phases) -> Float[Array, "*n h2 w2 c"]:
    """With the columns' weights as they are, or as parts that add up to them, [parts, blocks]."""
    h, w = x.ndim - 3, x.ndim - 2
    parts = {(q, r): y for q, z in _parts(x, h, rows).items() for r, y in _parts(z, w, columns).items()}
    phase = [[jnp.zeros((), x.dtype)] * columns.a for _ in range(rows.a)]
    for (i, q, k), u in rows.weights.items():
        for (j, r, m), v in columns.weights.items():
            # Weighted, then shifted: the transpose shifts what it reads and weighs that, which XLA fuses into one loop.
            y = jnp.multiply(_at_source(u, k, x.dtype)[..., None, None], parts[q, r])
            y = functools.reduce(jnp.add, [jnp.multiply(_at_source(part, m, x.dtype)[..., None], y) for part in np.atleast_2d(v)])
            y = _shift(y, {h: k, w: m})
            phase[i][j] = phase[i][j] + y if phase[i][j].ndim else y
    shape = max((y.shape for line in phase for y in line), key=len)
    y = jnp.stack([jnp.stack([jnp.broadcast_to(y, shape) for y in line], w + 1) for line in phase], h + 1)
    y = y.reshape(*shape[:h], shape[h] * rows.a, shape[w] * columns.a, shape[-1])
    return y[..., : rows.length, : columns.length, :]


def _at_source(weight: np.ndarray, k: int, dtype: jnp.dtype) -> np.ndarray:
    """The weights of y[j] = weight[j] * x[j + k] as those of x, one number if they are all alike. Those of what is shifted out are free."""
    inside = weight[max(0, -k) : len(weight) - max(0, k)]
    return np.asarray(inside[0] if np.all(inside == inside[0]) else np.pad(inside, (max(0, k), max(0, -k))), dtype)


def _products(x: Float[Array, "*n h r"], map_: Phases) -> Float[Array, "*n h2 r"]:
    """One small matrix a block: from many weights on it runs faster than their sum, and compiles much faster."""
    parts, reads = _parts(x, x.ndim - 2, map_), _reads(map_)
    windows = jnp.stack([_shift(parts[q], {x.ndim - 2: k}) for k, q in reads], -2)
    *n, m, t, r = windows.shape
    matrices = np.zeros((m, map_.a, t), windows.dtype)
    for (p, q, k), v in map_.weights.items():
        matrices[:, p, reads.index((k, q))] = v
    y = jnp.matmul(jnp.broadcast_to(matrices, (*n, m, map_.a, t)), windows, precision=lax.Precision.HIGHEST)
    return y.reshape(*n, m * map_.a, r)[..., : map_.length, :]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def repeat(x: Shaped[Array, "*n h w c"], rows: int, columns: int) -> Shaped[Array, "*n rh rw c"]:
    """Every pixel a cell of so many. A broadcast, whose transpose would be a reduction; the derivative is written as an interleaving,
    whose transpose is a sum of slices, which is faster on CPUs."""
    *n, h, w, c = x.shape
    return jnp.broadcast_to(x[..., :, None, :, None, :], (*n, h, rows, w, columns, c)).reshape(*n, h * rows, w * columns, c)


@repeat.defjvp
def _repeat_jvp(rows, columns, primals, tangents):
    (x,), (dx,) = primals, tangents
    return repeat(x, rows, columns), _interleave([_interleave([dx] * columns, x.ndim - 2)] * rows, x.ndim - 3)


@functools.lru_cache(1024)
def _grid(old: int, new: int, method: str, align_corners: bool) -> Phases:
    """Where the new pixels of an axis lie among the old ones, and what they take from them."""
    o = np.arange(new)
    if method in NEAREST:
        index = o * old // new if method == "nearest" else (2 * o + 1) * old // (2 * new)
        return phases(index[:, None], np.ones((new, 1)), old)
    return phases(*_taps(np, old, new, method, align_corners), old)


def _gathered(x: Float[Array, "*n"], at: int, new: int, method: str, align_corners: bool) -> Float[Array, "*n"]:
    """What `weighted_sum` gives along an axis whose size is a symbol, which has no table: pixels are read by their numbers."""
    if x.shape[at] == new:
        return x
    index, weight = _taps(jnp, x.shape[at], new, method, align_corners)
    column = (-1, *[1] * (x.ndim - 1 - at))
    taps = [jnp.take(x, i, at, mode="clip") * w.reshape(column).astype(x.dtype) for i, w in zip(index.T, weight.T, strict=True)]
    return functools.reduce(jnp.add, taps)


def _taps(xp: Any, old: int, new: int, method: str, align_corners: bool) -> tuple[Any, Any]:
    """The old pixels that each new one takes from and their weights, [new, taps]: by numpy, or by jax.numpy where sizes are open."""
    o = xp.arange(new)
    # In whole numbers, so that a new pixel on an old one reads no other; the smallest, since JAX's have 32 bits.
    a, b = (old, new) if new % old else (1, new // old)
    position, unit = (o * (old - 1), max(new - 1, 1)) if align_corners else ((2 * o + 1) * a - b, 2 * b)
    index = position[:, None] // unit + (np.arange(2) if method == "bilinear" else np.arange(-1, 3))
    weight = _kernel(xp, method, abs(position[:, None] - unit * index) / unit)
    if method == "bicubic":
        weight = xp.where((index >= 0) & (index < old), weight, 0)
        weight = weight / weight.sum(1, keepdims=True)
    return index.clip(0, old - 1), weight


def _kernel(xp: Any, method: str, distance: Any) -> Any:
    if method == "bilinear":
        return 1 - distance
    a = -0.5 if method == "bicubic" else -0.75
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return xp.where(distance < 1, near, far)
