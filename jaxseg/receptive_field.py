"""Theoretical receptive fields, read off the traced function: nothing here knows a model or a layer.

A function from images to maps is traced to a jaxpr, and the jaxpr is run on other numbers: what each value holds is the smallest of the
numbers standing on the image's pixels that it depends on. With the row's number on every pixel that is the first row an output sees; with
its negative, minus the last. Slices, pads, reshapes and the like move these numbers as they move pixels, everything else takes minima, a
convolution over its window. So weights, activations and zeros do not matter, and no weight is ever computed.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from jaxtyping import Array, Float, Int

from jaxseg.errors import InputError

# Primitives by name: those that move elements of one operand about, those of a value and the values at the same place, ...
MOVES = frozenset(str.split("reshape transpose squeeze expand_dims slice rev broadcast_in_dim split unstack copy"))
ELEMENTWISE = frozenset(
    str.split(
        "abs add add_any and atan2 cbrt ceil clamp convert_element_type cos div eq erf erf_inv exp exp2 expm1 floor ge gt integer_pow "
        "is_finite le log log1p log2 logistic lt max min mul ne neg nextafter not one_minus_square or pow reduce_precision rem round rsqrt "
        "select_n sharding_constraint sign sin sqrt square stop_gradient sub tan tanh xor"
    )
)
REDUCTIONS = frozenset(str.split("argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum"))
WINDOWS = frozenset(str.split("reduce_window reduce_window_max reduce_window_min reduce_window_sum"))


class ReceptiveField(NamedTuple):
    """Along one axis, away from the border: output i sees the pixels from stride * i + offset on, `size` of them.

    Where the field advances by jumps, as that of an encoder and decoder does, size is the largest and offset the leftmost field's.
    """

    size: int
    stride: int | float
    offset: int


def receptive_field(apply: Callable[[Float[Array, "n h w c"]], Float[Array, "n h2 w2 k"]], image_shape: tuple[int, int, int, int]):
    """Those of rows and columns: `rows, columns = receptive_field(apply, (1, 256, 256, 3))`.

    Args:
      apply: only traced. `lambda image: model.init_with_output(key, image)[0]` needs no variables.
      image_shape: [N, H, W, C], larger than the field by four times the coarsest stride or more.

    Returns:
      two `ReceptiveField`s.

    Raises:
      InputError: the image is too small to tell, an output depends on all of it, or `apply` uses a primitive not known here.

    >>> blur = lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 3, 5, 1), (1, 1, 2, 1), "VALID")
    >>> receptive_field(blur, (1, 16, 32, 1))
    (ReceptiveField(size=3, stride=1, offset=0), ReceptiveField(size=5, stride=2, offset=0))
    """
    rows, columns = fields(apply, image_shape)
    return regular(rows, image_shape[1]), regular(columns, image_shape[2])


Lines = tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]
"""Of each output row (or column), the first and the last row of the image that it depends on; first > last where it depends on none."""


def fields(apply: Callable[[Float[Array, "n *s c"]], Float[Array, "n *s2 k"]], image_shape: tuple[int, ...]) -> tuple[Lines, ...]:
    """The first and the last row that each output row depends on, and the same of the columns, the border included.

    Of a volume [N, D, H, W, C] those of slices, rows and columns.
    """
    (found,) = fields_of_maps(lambda image: {"map": apply(image)}, image_shape).values()
    for first, last in found:
        if (first > last).any():
            raise InputError(f"receptive_field: {int((first > last).sum())} of {len(first)} output lines depend on no pixel of the image.")
    return found


def fields_of_maps(
    apply: Callable[[Float[Array, "n *s c"]], Mapping[str, Array]], image_shape: tuple[int, ...]
) -> dict[str, tuple[Lines, ...]]:
    """Those of several maps in one pass: of all layers, where `apply` is `functools.partial(heatmaps.layers(model.apply), variables)`."""
    if len(image_shape) not in (4, 5) or 0 in image_shape:
        raise InputError(
            f"receptive_field: got the image shape {image_shape}; required [N, H, W, C] or [N, D, H, W, C] without empty axes."
        )
    traced, out = jax.make_jaxpr(apply, return_shape=True)(jax.ShapeDtypeStruct(image_shape, jnp.float32))
    shapes = {name: value.shape for name, value in out.items()}
    if any(len(shape) != len(image_shape) for shape in shapes.values()):
        raise InputError(
            f"receptive_field: `apply` gave the shapes {list(shapes.values())}; required maps [N, H, W, K], of volumes [N, D, H, W, K]."
        )
    size = image_shape[1:-1]
    spatial = range(1, len(size) + 1)

    @jax.jit
    def least(pixels: Float[Array, "*s"]) -> list[list[Array]]:
        """Of each map, the least number that a row and that a column sees."""
        maps = _run(traced.jaxpr, [jnp.broadcast_to(pixels[None, ..., None], image_shape)])
        known = [jnp.full(v.aval.shape, jnp.inf) if m is None else m for m, v in zip(maps, traced.jaxpr.outvars, strict=True)]
        return [[m.min([a for a in range(m.ndim) if a != axis]) for axis in spatial] for m in known]

    found: list[list[Lines]] = [[] for _ in shapes]
    for axis, side in enumerate(size):
        pixels = jnp.indices(size, jnp.float32)[axis]
        for lines, low, high in zip(found, least(pixels), least(-pixels), strict=True):
            first, last = (np.nan_to_num(np.asarray(a[axis]), posinf=nothing) for a, nothing in ((low, side), (high, 1)))
            lines.append((first.astype(int), -last.astype(int)))
    return {name: tuple(lines) for name, lines in zip(shapes, found, strict=True)}


def regular(lines: Lines, side: int) -> ReceptiveField:
    """What `fields` found along an axis of `side` pixels, in three numbers.

    Raises:
      InputError: too few outputs see no border.
    """
    # Of the outputs whose field touches no border, the period after which the fields repeat, that many strides further.
    lo, hi = lines
    inside = np.flatnonzero((lo > 0) & (lo <= hi) & (hi < side - 1))
    if len(inside):
        index = np.arange(inside[0], inside[-1] + 1)
        lo, hi = lo[index], hi[index]
        for period in range(1, len(index) // 3 + 1):
            steps = np.unique([lo[period:] - lo[:-period], hi[period:] - hi[:-period]])
            if len(steps) == 1 and steps[0] > 0:
                stride = int(steps[0]) // period if steps[0] % period == 0 else float(steps[0] / period)
                return ReceptiveField(int((hi - lo).max()) + 1, stride, int(np.floor(lo - stride * index).min()))
    raise InputError(
        f"receptive_field: of {side} pixels outputs see up to {int((hi - lo).max()) + 1}, and {len(inside)} outputs see no border, too few "
        "to tell the stride. Take a larger image, unless a global operation (a mean, a group norm) sees all of any."
    )


def _run(jaxpr: Any, least: list[Array | None]) -> list[Array | None]:
    """The outputs of a jaxpr whose arguments hold these numbers; None for what does not depend on the image at all."""
    known: dict[Any, Array | None] = dict(zip(jaxpr.invars, least, strict=True))
    for eqn in jaxpr.eqns:
        inputs = [None if isinstance(v, core.Literal) else known.get(v) for v in eqn.invars]
        if any(x is not None for x in inputs):
            known.update(zip(eqn.outvars, _equation(eqn, inputs), strict=True))
    return [None if isinstance(v, core.Literal) else known.get(v) for v in jaxpr.outvars]


def _equation(eqn: Any, inputs: list[Array | None]) -> list[Array | None]:
    name, params = eqn.primitive.name, eqn.params
    inner = [getattr(p, "jaxpr", p) for p in params.values() if hasattr(p, "eqns")]
    if len(inner) == 1 and len(inner[0].invars) == len(inputs) and name not in ("scan", "while", "cond"):
        return _run(inner[0], inputs)
    if name == "optimization_barrier":
        return inputs
    shape = eqn.outvars[0].aval.shape
    x = inputs[0]
    if name in ELEMENTWISE:
        return [functools.reduce(jnp.minimum, [jnp.broadcast_to(i, shape) for i in inputs if i is not None])]
    if name in MOVES and len(inputs) == 1:
        moved = eqn.primitive.bind(x, **params)
        return moved if eqn.primitive.multiple_results else [moved]
    if name in ("concatenate", "stack"):
        filled = [jnp.full(v.aval.shape, jnp.inf) if i is None else i for i, v in zip(inputs, eqn.invars, strict=True)]
        return [eqn.primitive.bind(*filled, **params)]
    if name == "dot_general":
        return [_dot(inputs, params["dimension_numbers"], shape)]
    if x is not None and not any(i is not None for i in inputs[1:]):
        if name == "pad":
            return [lax.pad(x, jnp.inf, params["padding_config"])]
        if name in REDUCTIONS:
            return [x.min(params["axes"])]
        if name in WINDOWS:
            args = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
            return [lax.reduce_window(x, jnp.inf, lax.min, *(params[a] for a in args))]
        if name == "conv_general_dilated":
            return [_conv(x, eqn.invars[1].aval.shape, shape, params)]
    raise InputError(
        f"receptive_field: `apply` uses {name} on {[str(v.aval) for v in eqn.invars]}, whose dependences are not known here. Write it by "
        "slices, pads, reductions and convolutions, or add it to jaxseg/receptive_field.py."
    )


def _conv(x: Array, kernel: tuple[int, ...], shape: tuple[int, ...], params: dict[str, Any]) -> Array:
    lhs, rhs, out = params["dimension_numbers"]
    groups, spatial = params["feature_group_count"], len(kernel) - 2
    x = x.transpose(lhs)  # N, C and the rest
    x = x.reshape(x.shape[0], groups, -1, *x.shape[2:]).min(2)
    edges = [(low, high, dilation - 1) for (low, high), dilation in zip(params["padding"], params["lhs_dilation"], strict=True)]
    x = lax.pad(x, jnp.inf, [(0, 0, 0), (0, 0, 0), *edges])
    window = (1, 1, *(kernel[a] for a in rhs[2:]))
    strides, dilation = (1, 1, *params["window_strides"]), (1, 1, *params["rhs_dilation"])
    x = lax.reduce_window(x, jnp.inf, lax.min, window, strides, "VALID", (1,) * (spatial + 2), dilation)
    return jnp.repeat(x, shape[out[1]] // groups, 1).transpose(np.argsort(out))


def _dot(inputs: list[Array | None], numbers: Any, shape: tuple[int, ...]) -> Array:
    contracted, batch = numbers
    terms = []
    for x, over, first, before in zip(inputs, contracted, batch, (False, True), strict=True):
        if x is None:
            continue
        free = [a for a in range(x.ndim) if a not in (*over, *first)]
        x = x.min(over, keepdims=True).transpose(*first, *free, *over).reshape([x.shape[a] for a in (*first, *free)])
        new = len(shape) - x.ndim
        at = len(first) if before else x.ndim
        terms.append(jnp.broadcast_to(jnp.expand_dims(x, range(at, at + new)), shape))
    return functools.reduce(jnp.minimum, terms)
