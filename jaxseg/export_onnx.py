"""A traced function as ONNX: each primitive of its jaxpr becomes one or a few operators, and what depends on weights alone is computed.

Maps stay [N, H, W, C]; only convolutions see them transposed. A value that repeats along an axis is held with one pixel there, since
ONNX's operators broadcast by themselves.
"""

import functools
import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxseg.embed import Loaded
from jaxseg.errors import InputError
from jaxseg.onnx_graph import END, Graph, Value, unknown

OPSET, IR = 17, 8
"""Those of ONNX 1.12 (2022), so that older runtimes read the file."""
TOLERANCE = 1e-4
"""Of the largest logit: by so much onnxruntime's may differ from JAX's."""
FOLDED = 1 << 22
"""Elements of the largest array that is computed here and stored, unless it is made of one as large."""
UNARY = {name: name.capitalize() for name in str.split("abs ceil cos erf exp floor log neg not sign sin sqrt tanh")}
UNARY["logistic"] = "Sigmoid"
BINARY = {name: name.capitalize() for name in str.split("add and div max min mul or pow sub xor")} | {"add_any": "Add", "eq": "Equal"}
BINARY |= {"ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual", "lt": "Less"}
NOTHING = frozenset(str.split("copy copy_p optimization_barrier reduce_precision sharding_constraint stop_gradient"))
ELEMENTWISE = {*UNARY, *BINARY, "clamp", "convert_element_type", "integer_pow", "ne", "rsqrt", "select_n", "square"}


def to_onnx(model: Loaded, *, size: tuple[int, int], labels: bool = False) -> bytes:
    """The model as ONNX: "image" float32 [b, H, W, C] in 0..1 -> "logits" float32 [b, H, W, K], any batch, as onnxruntime reads it.

    Before it is returned, onnxruntime runs it on random images of two batches.

    Args:
      labels: "labels", int32 [b, H, W], instead.

    Raises:
      InputError: onnx or onnxruntime is not installed, a primitive has no counterpart here, the file would have more than 2 GiB, or
        what onnxruntime computes differs from JAX's by more than `TOLERANCE` times the largest logit.
    """

    def answer(image: Any) -> Any:
        logits = model.apply(model.variables, image)
        return jnp.argmax(logits, -1).astype(jnp.int32) if labels else logits

    shape = jax.export.symbolic_shape(f"b, {size[0]}, {size[1]}, {model.meta.channels}")
    content = convert(answer, shape, "labels" if labels else "logits")
    _compare(content, model, size, labels)
    return content


def convert(function: Callable[[Any], Any], shape: Sequence[Any], output: str) -> bytes:
    """The ONNX model of a function of one float32 "image" whose first axis is a symbol, the others numbers."""
    graph = Graph(shape[0])
    closed: Any = jax.make_jaxpr(function)(jax.ShapeDtypeStruct(tuple(shape), np.float32))
    (result,), (aval,) = _run(graph, closed.jaxpr, closed.consts, [Value("image", tuple(shape))]), closed.out_avals
    graph.node("Identity", [graph.whole(result, aval.shape)], name=output)
    ends = [
        graph.make.make_tensor_value_info(name, graph.type_number(dtype), [n if isinstance(n, int) else str(n) for n in sizes])
        for name, sizes, dtype in (("image", shape, np.float32), (output, aval.shape, aval.dtype))
    ]
    used = {name for node in graph.nodes for name in node.input}
    arrays = [graph.onnx("numpy_helper").from_array(array, name) for name, array in graph.arrays.items() if name in used]
    whole = graph.make.make_graph(graph.nodes, "jaxseg", ends[:1], ends[1:], arrays)
    opset = graph.make.make_opsetid("", OPSET)
    try:
        content = graph.make.make_model(whole, opset_imports=[opset], ir_version=IR, producer_name="jaxseg").SerializeToString()
        graph.onnx("checker").check_model(content)
    except Exception as error:  # protobuf's own, of a file above 2 GiB, or the checker's
        raise InputError(f"--format onnx: the file is not valid ({error}). Take --format stablehlo.") from error
    return content


def steady_images(model: Loaded, size: tuple[int, int], count: int, tolerance: float) -> np.ndarray:
    """Random images [count, *size, C] whose logits rounding does not change by more than `tolerance` of the largest.

    Max unpooling jumps where two values of a window are all but equal: there JAX's own result changes as much when pixels and weights
    change by up to 1e-6, and says nothing about an export. Where too few of 24 images are steady the last ones are taken.
    """
    apply = jax.jit(model.apply)
    steady, others = [], []
    for seed in range(24):
        rng = np.random.default_rng(seed)
        image = rng.random((1, *size, model.meta.channels), np.float32)

        def moved(values: Any, rng: np.random.Generator = rng) -> np.ndarray:
            return (values * (1 + rng.uniform(-1e-6, 1e-6, np.shape(values)))).astype(values.dtype)

        want = np.asarray(apply(model.variables, image))
        near = (np.abs(np.asarray(apply(jax.tree.map(moved, model.variables), moved(image))) - want).max() for _ in range(4))
        (steady if max(near) <= tolerance * np.abs(want).max() else others).append(image)
        if len(steady) == count:
            break
    return np.concatenate([*others, *steady][-count:])


def _compare(content: bytes, model: Loaded, size: tuple[int, int], labels: bool) -> None:
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise InputError("--format onnx: needs onnxruntime, which compares the file. `pip install 'jaxseg[onnx]'`.") from error
    options, session = onnxruntime.SessionOptions(), None
    options.log_severity_level = 3
    images = steady_images(model, size, 3, TOLERANCE)
    logits = np.asarray(jax.jit(model.apply)(model.variables, images))
    for want in (logits, logits[:1]):
        try:
            session = session or onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            got = np.asarray(session.run(None, {"image": images[: len(want)]})[0])
        except Exception as error:  # whatever onnxruntime says
            raise InputError(f"--format onnx: onnxruntime does not run the file ({error}). Take --format stablehlo.") from error
        if labels:  # of classes that are as good as equal either may be chosen
            got = np.take_along_axis(want, got[..., None], -1) - want.max(-1, keepdims=True) + want
        difference = float(np.abs(got - want).max() / np.abs(want).max()) if got.shape == want.shape else math.inf
        if not difference <= TOLERANCE:
            raise InputError(
                f"--format onnx: onnxruntime's result differs from JAX's by {difference:.1e} of the largest logit; required at most "
                f"{TOLERANCE:.0e}. Take --format stablehlo."
            )


# The jaxpr, equation by equation.


def _run(graph: Graph, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Value]) -> list[Value]:
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*map(_known, consts), *inputs], strict=True))

    def value(v: Any) -> Value:
        return _known(v.val) if isinstance(v, core.Literal) else values[v]

    for eqn in jaxpr.eqns:
        values.update(zip(eqn.outvars, _equation(graph, eqn, [value(v) for v in eqn.invars]), strict=True))
    return [value(v) for v in jaxpr.outvars]


def _equation(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    name, params, out = eqn.primitive.name, eqn.params, eqn.outvars[0].aval
    inner = [p for p in params.values() if hasattr(p, "eqns")]
    if len(inner) == 1 and name not in ("scan", "while", "cond"):
        return _run(graph, getattr(inner[0], "jaxpr", inner[0]), getattr(inner[0], "consts", ()), inputs)
    if name in NOTHING:
        return inputs
    if name == "broadcast_in_dim":
        held = [1] * len(out.shape)
        for axis, n in zip(params["broadcast_dimensions"], inputs[0].shape, strict=True):
            held[axis] = n
        return [_reshaped(graph, inputs[0], tuple(held))]
    if all(isinstance(v.held, np.ndarray) for v in inputs) and (folded := _folded(eqn, inputs)):
        return folded
    if name in ELEMENTWISE:
        shapes = [(1,) * (len(out.shape) - len(v.shape)) + v.shape for v in inputs]
        held = tuple(next((n for n in sizes if n != 1), 1) for sizes in zip(*shapes, strict=True))
        return [Value(_elementwise(graph, name, params, out, [graph.name(v) for v in inputs]), held)]
    if any(n == 0 for n in out.shape):  # read by a concatenation alone
        return [Value(np.zeros(()), v.aval.shape) for v in eqn.outvars]
    read = [(v, u.aval) for v, u in zip(inputs, eqn.invars, strict=True) if not any(n == 0 for n in u.aval.shape)]
    names, avals = [graph.whole(v, a.shape) for v, a in read], [a for _, a in read]
    if name in ("reshape", "squeeze", "expand_dims"):
        return [Value(graph.reshape(names[0], out.shape), out.shape)]
    if name == "split":
        ends = np.cumsum(params["sizes"]).tolist()
        starts = [0, *ends[:-1]]
        parts = [graph.sliced(names[0], [params["axis"]], [start], [end]) for start, end in zip(starts, ends, strict=True)]
        return [Value(part, v.aval.shape) for part, v in zip(parts, eqn.outvars, strict=True)]
    if name not in WRITERS:
        raise unknown(name, avals)
    return [Value(WRITERS[name](graph, names, params, avals, out), out.shape)]


def _known(x: Any) -> Value:
    array = np.asarray(x)
    return Value(array, array.shape)


def _reshaped(graph: Graph, value: Value, shape: tuple[Any, ...]) -> Value:
    if value.shape == shape:
        return value
    return Value(value.held.reshape(shape) if isinstance(value.held, np.ndarray) else graph.reshape(value.held, shape), shape)


def _folded(eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """The equation of known arrays, computed; None where a size is open or what it makes much larger than what it is made of."""
    arrays = [v.held for v in inputs]
    if eqn.primitive.name in ELEMENTWISE:  # as they are held
        arrays = np.broadcast_arrays(*arrays)
    else:
        shapes = [v.aval.shape for v in (*eqn.invars, *eqn.outvars)]
        known = all(isinstance(n, int) for shape in shapes for n in shape)
        if not known or max(map(math.prod, shapes)) > max([FOLDED, *(a.size for a in arrays)]):
            return None
        arrays = [np.broadcast_to(a, v.aval.shape) for a, v in zip(arrays, eqn.invars, strict=True)]
    found = eqn.primitive.bind(*map(jnp.asarray, arrays), **eqn.params)
    return [_known(x) for x in (found if eqn.primitive.multiple_results else [found])]


def _elementwise(graph: Graph, name: str, params: dict[str, Any], out: Any, names: list[str]) -> str:
    if name in UNARY or name in BINARY:
        return graph.node((UNARY | BINARY)[name], names)
    if name == "ne":
        return graph.node("Not", [graph.node("Equal", names)])
    if name == "rsqrt":
        return graph.node("Reciprocal", [graph.node("Sqrt", names)])
    if name == "square":
        return graph.node("Mul", names * 2)
    if name == "integer_pow":
        return graph.node("Pow", [*names, graph.store(np.asarray(params["y"], out.dtype))])
    if name == "clamp":
        return graph.node("Min", [graph.node("Max", names[:2]), names[2]])
    if name == "convert_element_type":
        return graph.node("Cast", names, to=graph.type_number(out.dtype))
    if len(names) != 3:
        raise unknown(name, [f"{len(names) - 1} cases"])
    return graph.node("Where", [names[0], names[2], names[1]])


# What moves or sums pixels: (graph, names, params, avals, the output's aval) -> name.


def _conv(graph: Graph, names: list[str], params: dict[str, Any], avals: list[Any], out: Any) -> str:
    """Holes in the image are a transposed convolution, whose output is then padded or cut."""
    lhs, rhs, order = params["dimension_numbers"]
    groups, dilations, strides = params["feature_group_count"], params["rhs_dilation"], params["lhs_dilation"]
    kernel = graph.arrays.get(names[1])
    if kernel is None or params["batch_group_count"] != 1 or (max(strides) > 1 and max(params["window_strides"]) > 1):
        raise unknown("conv_general_dilated", avals)
    x, shape, kernel = graph.transpose(names[0], lhs), [avals[0].shape[a] for a in lhs], kernel.transpose(rhs)
    o, i, *window = kernel.shape
    if max(strides) == 1:
        x = graph.pad(x, shape, [(0, 0, 0)] * 2 + [(min(lo, 0), min(hi, 0), 0) for lo, hi in params["padding"]])
        pads = [max(lo, 0) for lo, _ in params["padding"]] + [max(hi, 0) for _, hi in params["padding"]]
        steps = params["window_strides"]
        y = graph.node("Conv", [x, graph.store(kernel)], strides=steps, pads=pads, dilations=dilations, group=groups)
    else:
        turned = np.flip(kernel, tuple(range(2, kernel.ndim))).reshape(groups, o // groups, i, *window).swapaxes(1, 2)
        weight = graph.store(turned.reshape(groups * i, o // groups, *window))
        y = graph.node("ConvTranspose", [x, weight], strides=strides, dilations=dilations, group=groups)
        spans = [d * (k - 1) for d, k in zip(dilations, window, strict=True)]
        edges = [(lo - span, hi - span, 0) for (lo, hi), span in zip(params["padding"], spans, strict=True)]
        y = graph.pad(y, [0] * len(shape), [(0, 0, 0)] * 2 + edges)
    return graph.transpose(y, np.argsort(order).tolist())


def _dot(graph: Graph, names: list[str], params: dict[str, Any], avals: list[Any], out: Any) -> str:
    (left, right), (batch_left, batch_right) = params["dimension_numbers"]
    ranks = [len(a.shape) for a in avals]
    if not batch_left and tuple(left) == (ranks[0] - 1,) and tuple(right) == (0,) and ranks[1] == 2:
        return graph.node("MatMul", names)
    first, second = list("abcdefgh"[: ranks[0]]), list("ijklmnop"[: ranks[1]])
    for i, j in zip((*left, *batch_left), (*right, *batch_right), strict=True):
        second[j] = first[i]
    free = [t for a, t in enumerate(first) if a not in (*left, *batch_left)]
    free += [t for a, t in enumerate(second) if a not in (*right, *batch_right)]
    result = [first[a] for a in batch_left] + free
    return graph.node("Einsum", names, equation=f"{''.join(first)},{''.join(second)}->{''.join(result)}")


def _gather(graph: Graph, names: list[str], params: dict[str, Any], avals: list[Any], out: Any) -> str:
    """What jnp makes of slices and numbers as indices where the batch is open: known positions along each axis."""
    numbers, index, x = params["dimension_numbers"], graph.arrays.get(names[1]), names[0]
    axes, gone = numbers.start_index_map, numbers.collapsed_slice_dims
    if index is None or numbers.operand_batching_dims or not set(gone) <= set(axes):
        raise unknown("gather", avals)
    walks: dict[int, int] = {}  # which axis each of the index's axes runs along
    for axis, line in zip(axes, np.moveaxis(index, -1, 0), strict=True):
        along = [d for d in range(line.ndim) if np.any(line != line.take([0], d))]
        if len(along) > (axis in gone) or walks.keys() & set(along):
            raise unknown("gather", avals)
        positions = line[tuple(slice(None) if d in along else 0 for d in range(line.ndim))].ravel().tolist()
        if axis not in gone:  # a window from there
            positions = list(range(positions[0], positions[0] + params["slice_sizes"][axis]))
        step = positions[1] - positions[0] if len(positions) > 1 else 1
        if step > 0 and positions == list(range(positions[0], positions[-1] + 1, step)):
            x = graph.sliced(x, [axis], [positions[0]], [positions[-1] + 1], [step])
        else:
            x = graph.node("Gather", [x, graph.integers(positions)], axis=axis)
        for d in along:
            walks[d] = axis
    rest, walked = (a for a in range(len(avals[0].shape)) if a not in gone), (walks.get(d) for d in range(index.ndim - 1))
    order = [next(rest) if place in numbers.offset_dims else next(walked) for place in range(len(out.shape))]
    order = [a for a in order if a is not None]
    return graph.reshape(graph.transpose(x, [*order, *(a for a in gone if a not in order)]), out.shape)


def _stack(graph: Graph, names: list[str], params: dict[str, Any], avals: list[Any], out: Any) -> str:
    axis = params["axis"]
    thin = (*out.shape[:axis], 1, *out.shape[axis + 1 :])
    return graph.node("Concat", [graph.reshape(name, thin) for name in names], axis=axis)


def _reduced(operator: str, graph: Graph, names: list[str], params: dict[str, Any], avals: list[Any], out: Any) -> str:
    axes = [int(a) for a in params["axes"]]
    if operator == "ReduceSum":  # in this opset the one whose axes are an input
        return graph.node(operator, [*names, graph.integers(axes)], keepdims=0)
    return graph.node(operator, names, axes=axes, keepdims=0)


def _argmax(graph: Graph, names: list[str], params: dict[str, Any], avals: list[Any], out: Any) -> str:
    found = graph.node("ArgMax", names, axis=int(params["axes"][0]), keepdims=0)
    return graph.node("Cast", [found], to=graph.type_number(out.dtype))


def _slice(graph: Graph, names: list[str], params: dict[str, Any], avals: list[Any], out: Any) -> str:
    lines = zip(avals[0].shape, params["start_indices"], params["limit_indices"], params["strides"] or [1] * len(out.shape), strict=True)
    cut = [
        (axis, start if isinstance(start, int) else start - n, END if stop == n else stop, step)  # of the batch, from its end
        for axis, (n, start, stop, step) in enumerate(lines)
        if (start, stop, step) != (0, n, 1)
    ]
    return graph.sliced(names[0], *zip(*cut, strict=True)) if cut else names[0]


def _rev(graph: Graph, names: list[str], params: dict[str, Any], avals: list[Any], out: Any) -> str:
    n = len(params["dimensions"])
    return graph.sliced(names[0], params["dimensions"], [-1] * n, [-END] * n, [-1] * n)


WRITERS: dict[str, Callable[[Graph, list[str], dict[str, Any], list[Any], Any], str]] = {
    "argmax": _argmax,
    "concatenate": lambda graph, names, params, avals, out: graph.node("Concat", names, axis=params["dimension"]),
    "conv_general_dilated": _conv,
    "dot_general": _dot,
    "gather": _gather,
    "pad": lambda graph, names, params, avals, out: graph.pad(names[0], avals[0].shape, params["padding_config"], names[1:]),
    "reduce_max": functools.partial(_reduced, "ReduceMax"),
    "reduce_min": functools.partial(_reduced, "ReduceMin"),
    "reduce_sum": functools.partial(_reduced, "ReduceSum"),
    "rev": _rev,
    "slice": _slice,
    "stack": _stack,
    "transpose": lambda graph, names, params, avals, out: graph.transpose(names[0], params["permutation"]),
}
