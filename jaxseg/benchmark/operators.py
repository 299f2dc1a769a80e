"""The operators of the benchmark: one table of our function, the stock one of JAX or Flax, and torch's name for it.

All three are given the same numbers, each in the layout that is its own, and must return the same (`check`), before anything is timed.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxseg import ops
from jaxseg.ops.content_aware import carafe
from jaxseg.ops.prediction import bilinear_kernel, upsample_prediction
from jaxseg.ops.resize import resize

Function = Callable[..., Any]
PHASES = {
    "fwd": "forward",
    "dx": "gradient in the input",
    "dw": "gradient in the weights",
    "both": "forward and all gradients",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One operator at one size.

    Args:
      ours: f(x) or f(x, w): [N,H,W,C] and, where there are any, weights of `weights`' shape.
      stock: what JAX or Flax offer, on (x, `stock_weights(w)`), or None.
      torch: name and options of the operator in torch_peer.py, or None.
      constant: weights [k, k, I, O/groups] that torch's operator takes and ours has built in.
      indices: w is not weights but the pooling positions of x: nothing is differentiated in them.
    """

    name: str
    x: tuple[int, ...]
    ours: Function
    stock: Function | None = None
    torch: tuple[str, dict[str, Any]] | None = None
    constant: np.ndarray | None = None
    weights: tuple[int, ...] | None = None
    stock_weights: Callable[[np.ndarray], np.ndarray] = np.asarray
    indices: bool = False

    @property
    def phases(self) -> tuple[str, ...]:
        return tuple(PHASES) if self.weights and not self.indices else ("fwd", "dx", "both")


def arrays(case: Case, seed: int = 0) -> tuple[np.ndarray, ...]:
    """(x,) or (x, w): standard normal numbers, kernels scaled by their incoming weights; or (x, positions)."""
    r = np.random.default_rng(seed)
    x = r.normal(size=case.x).astype(np.float32)
    if case.weights is None:
        return (x,)
    if case.indices:
        return x, r.integers(0, 4, case.weights).astype(np.int8)
    return x, (r.normal(size=case.weights) / np.sqrt(np.prod(case.weights[:-1]))).astype(np.float32)


def phase_programs(f: Function, args: Sequence[jax.Array], g: jax.Array, phases: Sequence[str]) -> dict[str, tuple[Function, tuple]]:
    """By phase: a function of the gradient `g` of the result and of `args`, and what it is to be called with."""
    weighted = len(args) > 1 and jnp.issubdtype(args[1].dtype, jnp.floating)

    def both(g, x, *w):
        y, vjp = jax.vjp(f, x, *w) if weighted else jax.vjp(lambda x: f(x, *w), x)
        return y, vjp(lax.optimization_barrier((g, y))[0])  # as in training: backwards when y is there (jax 0.10 drops it)

    def dx(g, x, *w):
        return jax.vjp(lambda x: f(x, *w), x)[1](g)[0]

    def dw(g, x, w):
        return jax.vjp(lambda w: f(x, w), w)[1](g)[0]

    made = {"fwd": (f, tuple(args)), "dx": (dx, (g, *args)), "dw": (dw, (g, *args)), "both": (both, (g, *args))}
    return {phase: made[phase] for phase in phases}


# ---- Stock ---------------------------------------------------------------------------------------------------------------


def flax_conv_transpose(x, w, *, stride, padding=0, output_padding=0):
    """flax.linen.ConvTranspose with a kernel [k, k, O, I], or [k, k, k, O, I], and torch's padding."""
    k, rank = w.shape[0], x.ndim - 2
    pad = (k - 1 - padding, k - 1 - padding + output_padding)
    layer = nn.ConvTranspose(w.shape[-2], (k,) * rank, (stride,) * rank, padding=[pad] * rank, use_bias=False, transpose_kernel=True)
    return layer.apply({"params": {"kernel": w}}, x)


def lax_depthwise_transpose(x, w, *, stride, padding):
    """`lax.conv_general_dilated` over a dilated input, w [k, k, 1, C], a filter a channel: Flax has no transposed convolution in groups."""
    pad = (w.shape[0] - 1 - padding,) * 2
    return lax.conv_general_dilated(
        x,
        w[::-1, ::-1],
        (1, 1),
        (pad, pad),
        lhs_dilation=(stride, stride),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def flax_max_pool(x, *, window, stride, padding=0):
    rank = x.ndim - 2
    pad: Any = [(padding, padding)] * rank
    return nn.max_pool(x, (window,) * rank, (stride,) * rank, pad)


def scatter_unpool(x, flat):
    """Max unpooling as `.at[].set` at the flat positions h * W + w of the enlarged map: neither JAX nor Flax has it."""
    n, h, w, c = x.shape
    where = jnp.arange(n)[:, None, None, None], flat, jnp.arange(c)
    return jnp.zeros((n, 4 * h * w, c), x.dtype).at[where].set(x).reshape(n, 2 * h, 2 * w, c)


def jax_resize(x, *, scale, method):
    n, h, w, c = x.shape
    return jax.image.resize(x, (n, scale * h, scale * w, c), method)


def transpose_shuffle(x, *, scale):
    """Pixel shuffle in torch's channel order, as it is written by hand."""
    n, h, w, c = x.shape
    x = x.reshape(n, h, w, c // scale**2, scale, scale).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(n, scale * h, scale * w, c // scale**2)


def flat_positions(index: np.ndarray) -> np.ndarray:
    """Window-relative positions of 2x2 pooling [N,H,W,C] as h * W + w of the map before it."""
    _, h, w, _ = index.shape
    row = 2 * np.arange(h)[:, None, None] + index // 2
    return (row * 2 * w + 2 * np.arange(w)[:, None] + index % 2).astype(np.int32)


# ---- The table -----------------------------------------------------------------------------------------------------------


def _swap(w: np.ndarray) -> np.ndarray:
    """[k, k, I, O] -> [k, k, O, I]."""
    return np.ascontiguousarray(w.swapaxes(-2, -1))


def _conv(x: tuple[int, ...], out: int) -> Case:
    """A 3x3 (3x3x3) convolution that pads."""
    rank = len(x) - 2
    numbers = ("NHWC", "HWIO", "NHWC") if rank == 2 else ("NDHWC", "DHWIO", "NDHWC")
    options = {"window_strides": (1,) * rank, "padding": "SAME", "dimension_numbers": numbers}
    ours, stock = (functools.partial(f, **options) for f in (ops.conv_general_dilated, lax.conv_general_dilated))
    name = f"conv {'x'.join('3' * rank)}, {x[-1]} to {out}, {'x'.join(map(str, x[:-1]))}"
    return Case(name, x, ours, stock, ("conv", {}), weights=(*(3,) * rank, x[-1], out))


def _volume_transpose(x: tuple[int, ...], out: int) -> Case:
    name = f"conv_transpose_3d 2x2x2/2, {x[-1]} to {out}, {'x'.join(map(str, x[:-1]))}"
    options, stock = {"stride": 2, "padding": 0}, functools.partial(flax_conv_transpose, stride=2)
    return Case(name, x, ops.conv_transpose_3d, stock, ("conv_transpose", options), weights=(2, 2, 2, x[-1], out), stock_weights=_swap)


def _volume_pool(x: tuple[int, ...]) -> Case:
    options = {"window": 2, "stride": 2, "padding": 0}
    name = f"max_pool_3d 2x2x2/2, {'x'.join(map(str, x))}"
    return Case(name, x, ops.max_pool_3d, functools.partial(flax_max_pool, **options), ("max_pool", options))


def _conv_transpose(k: int, stride: int, padding: int, output_padding: int, x: tuple[int, ...], out: int) -> Case:
    options = {"stride": stride, "padding": padding, "output_padding": output_padding}
    return Case(
        f"conv_transpose {k}x{k}/{stride}, {x[-1]} to {out}, {x[0]}x{x[1]}x{x[2]}",
        x,
        functools.partial(ops.conv_transpose, **options),
        functools.partial(flax_conv_transpose, **options),
        ("conv_transpose", options),
        weights=(k, k, x[-1], out),
        stock_weights=_swap,
    )


def _depthwise(name: str, x: tuple[int, ...], scale: int, learnable: bool) -> Case:
    """The FCN's class-wise enlargement by a 2s x 2s filter, one for each class."""
    k, padding, classes = 2 * scale, scale // 2, x[-1]
    torch = "conv_transpose", {"stride": scale, "padding": padding, "groups": classes}
    stock = functools.partial(lax_depthwise_transpose, stride=scale, padding=padding)
    if learnable:
        ours = lambda x, w: upsample_prediction(x, scale, kernel=w[..., 0])  # noqa: E731
        return Case(name, x, ours, stock, torch, weights=(k, k, classes, 1), stock_weights=_swap)
    filters = np.ascontiguousarray(np.broadcast_to(bilinear_kernel(scale)[:, :, None, None], (k, k, classes, 1)))
    fixed = lambda x: stock(x, jnp.asarray(_swap(filters), x.dtype))  # noqa: E731
    return Case(name, x, functools.partial(upsample_prediction, scale=scale), fixed, torch, constant=filters)


def _resize(method: str, scale: int, x: tuple[int, ...], jax_method: str | None, torch_mode: str | None) -> Case:
    return Case(
        f"{method} x{scale}, {'x'.join(map(str, x))}",
        x,
        lambda x: resize(x, (scale * x.shape[-3], scale * x.shape[-2]), method),
        functools.partial(jax_resize, scale=scale, method=jax_method) if jax_method else None,
        ("interpolate", {"scale": scale, "mode": torch_mode}) if torch_mode else None,
    )


def _max_pool(window: int, padding: int, x: tuple[int, ...]) -> Case:
    options = {"window": window, "stride": 2, "padding": padding}
    ours = functools.partial(ops.max_pool, ceil_mode=False, **options)
    return Case(
        f"max_pool {window}x{window}/2, {'x'.join(map(str, x))}",
        x,
        ours,
        functools.partial(flax_max_pool, **options),
        ("max_pool", options),
    )


def _max_unpool(x: tuple[int, ...]) -> Case:
    return Case(
        f"max_unpool 2x2, {'x'.join(map(str, x))}",
        x,
        ops.max_unpool,
        scatter_unpool,
        ("max_unpool", {}),
        weights=x,
        stock_weights=flat_positions,
        indices=True,
    )


def _shuffle(x: tuple[int, ...]) -> Case:
    name = f"pixel_shuffle x2, {'x'.join(map(str, x))}"
    ours = functools.partial(ops.depth_to_space, scale=2, order="crd")
    return Case(name, x, ours, functools.partial(transpose_shuffle, scale=2), ("pixel_shuffle", {"scale": 2}))


def _carafe(x: tuple[int, ...]) -> Case:
    n, h, w, _ = x
    return Case(f"carafe x2 5x5, {'x'.join(map(str, x))}", x, carafe, weights=(n, 2 * h, 2 * w, 25))


CASES = (
    _conv_transpose(2, 2, 0, 0, (4, 32, 32, 64), 32),
    _conv_transpose(3, 2, 1, 1, (4, 32, 32, 64), 32),
    _conv_transpose(4, 2, 1, 0, (4, 32, 32, 64), 32),
    _conv_transpose(2, 2, 0, 0, (4, 64, 64, 64), 32),
    _conv_transpose(3, 2, 1, 1, (4, 64, 64, 64), 32),
    _conv_transpose(4, 2, 1, 0, (4, 64, 64, 64), 32),
    _conv_transpose(8, 4, 2, 0, (4, 16, 16, 64), 32),
    _conv_transpose(16, 8, 4, 0, (2, 16, 16, 21), 21),
    _depthwise("learnable filters x8, 21 classes, 2x16x16", (2, 16, 16, 21), 8, learnable=True),
    _depthwise("fixed bilinear filters x8, 21 classes, 2x16x16", (2, 16, 16, 21), 8, learnable=False),
    _max_pool(2, 0, (4, 128, 128, 32)),
    _max_pool(3, 1, (4, 128, 128, 32)),
    _max_unpool((4, 64, 64, 32)),
    _resize("nearest", 2, (4, 64, 64, 64), "nearest", "nearest"),
    _resize("bilinear", 2, (4, 64, 64, 64), "bilinear", "bilinear"),
    _resize("bilinear", 4, (2, 32, 32, 64), "bilinear", "bilinear"),
    _resize("bicubic", 2, (4, 64, 64, 64), "bicubic", None),
    _resize("bicubic_torch", 2, (4, 64, 64, 64), None, "bicubic"),
    _shuffle((4, 64, 64, 128)),
    _carafe((4, 32, 32, 64)),
    _conv((4, 64, 64, 64), 64),
    _conv((1, 16, 32, 32, 32), 32),
    _volume_transpose((1, 8, 16, 16, 64), 32),
    _volume_pool((1, 16, 64, 64, 32)),
)
