"""An ONNX graph being written: operators, stored arrays, and the array operations of JAX that are several operators there."""

import importlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxseg.errors import InputError

END = 2**31 - 1
"""Behind the last pixel of any axis."""


class Value(NamedTuple):
    """An array that is known, or the name of one; `shape` as held, with 1 for an axis along which it repeats."""

    held: Any
    shape: tuple[Any, ...]


class Graph:
    """Its methods add operators and return the name of the result. `batch` is the one size that is a symbol."""

    def __init__(self, batch: Any):
        self.make = self.onnx("helper")
        self.batch = batch
        self.nodes: list[Any] = []
        self.arrays: dict[str, np.ndarray] = {}

    def onnx(self, module: str) -> Any:
        try:
            return importlib.import_module(f"onnx.{module}")
        except ImportError as error:
            raise InputError("--format onnx: needs onnx and onnxruntime. `pip install 'jaxseg[onnx]'`.") from error

    def node(self, operator: str, inputs: Iterable[str], name: str | None = None, **attributes: Any) -> str:
        name = name or f"v{len(self.nodes)}"
        attributes = {k: list(v) if isinstance(v, tuple | range) else v for k, v in attributes.items()}
        self.nodes.append(self.make.make_node(operator, list(inputs), [name], **attributes))
        return name

    def store(self, array: Any) -> str:
        name, array = f"c{len(self.arrays)}", np.asarray(array)
        self.arrays[name] = np.array(array, kept(array.dtype), order="C")
        return name

    def name(self, value: Value) -> str:
        return value.held if isinstance(value.held, str) else self.store(value.held)

    def integers(self, numbers: Iterable[int]) -> str:
        return self.store(np.asarray(list(numbers), np.int64))

    def whole(self, value: Value, shape: tuple[Any, ...]) -> str:
        """The value with what is repeated written out."""
        name = self.name(value)
        if value.shape == tuple(shape):
            return name
        if all(isinstance(n, int) for n in shape):
            return self.node("Expand", [name, self.integers(shape)])
        batch = self.sliced(self.node("Shape", ["image"]), [0], [0], [1])
        sizes = [self.integers([n]) if isinstance(n, int) else self.node("Mul", [batch, self.integers([n // self.batch])]) for n in shape]
        return self.node("Expand", [name, self.node("Concat", sizes, axis=0)])

    def reshape(self, name: str, shape: Sequence[Any]) -> str:
        if sum(not isinstance(n, int) for n in shape) > 1:
            raise unknown("reshape", [str(tuple(shape))])
        return self.node("Reshape", [name, self.integers(n if isinstance(n, int) else -1 for n in shape)])

    def transpose(self, name: str, order: Sequence[int]) -> str:
        return name if list(order) == list(range(len(order))) else self.node("Transpose", [name], perm=list(order))

    def sliced(
        self, name: str, axes: Sequence[int], starts: Sequence[int], stops: Sequence[int], steps: Sequence[int] | None = None
    ) -> str:
        steps = [1] * len(axes) if steps is None else steps
        return self.node("Slice", [name, *map(self.integers, (starts, stops, axes, steps))])

    def pad(self, x: str, shape: Sequence[Any], config: Sequence[tuple[int, int, int]], fill: Sequence[str] = ()) -> str:
        """`lax.pad`: (before, after, between) of each axis. What is negative is cut off; new axes make what stands between pixels."""
        before, after, between = map(list, zip(*config, strict=True))
        for axis, holes in enumerate(between):
            if holes:
                apart = self.reshape(x, [*shape[: axis + 1], 1, *shape[axis + 1 :]])
                edges = [holes * (a == axis + 1) for a in range(len(shape) + 1)]
                shape = [*shape[:axis], shape[axis] * (holes + 1), *shape[axis + 1 :]]
                x = self.reshape(self._pad(apart, [0] * len(edges), edges, fill), shape)
                after[axis] -= holes
        cut = [(a, max(-lo, 0), hi if hi < 0 else END) for a, (lo, hi) in enumerate(zip(before, after, strict=True)) if min(lo, hi) < 0]
        if cut:
            axes, starts, stops = zip(*cut, strict=True)
            x = self.sliced(x, axes, starts, stops)
        return self._pad(x, [max(n, 0) for n in before], [max(n, 0) for n in after], fill)

    def _pad(self, x: str, before: list[int], after: list[int], fill: Sequence[str]) -> str:
        return self.node("Pad", [x, self.integers(before + after), *fill]) if any(before + after) else x

    def type_number(self, dtype: Any) -> int:
        return self.make.np_dtype_to_tensor_dtype(kept(dtype))


def kept(dtype: Any) -> np.dtype:
    """Small integers become int32, for which runtimes have all operators."""
    if dtype in (np.float32, np.bool_, np.int64):
        return np.dtype(dtype)
    if dtype in (np.int8, np.int16, np.int32, np.uint8, np.uint16):
        return np.dtype(np.int32)
    raise unknown("numbers", [str(dtype)])


def unknown(name: str, operands: Iterable[Any]) -> InputError:
    return InputError(
        f"--format onnx: got {name} of {', '.join(map(str, operands))}, which has no counterpart in jaxseg/export_onnx.py. "
        "Take --format stablehlo, which all models have."
    )
