"""A foreign weight layout as a table: the foreign key, where the array stands in our variables, and how it is turned."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxseg.errors import InputError

Layout = dict[str, tuple[tuple[str, ...], str]]
"""Foreign key -> (path from "params" or "batch_stats" on, one of "same", "conv", "conv_transpose", "linear_conv")."""

COUNTER = "num_batches_tracked"
"""torch's batch norm counts its batches; nothing here reads that."""


def conv(key: str, path: tuple[str, ...], bias: bool, change: str = "conv") -> Layout:
    """A convolution's weight, and its bias, or those of a layer that is read as one."""
    table: Layout = {f"{key}.weight": (("params", *path, "kernel"), change)}
    return table | ({f"{key}.bias": (("params", *path, "bias"), "same")} if bias else {})


def norm(key: str, path: tuple[str, ...]) -> Layout:
    """A batch norm's scale, bias and running statistics."""
    return {
        f"{key}.weight": (("params", *path, "scale"), "same"),
        f"{key}.bias": (("params", *path, "bias"), "same"),
        f"{key}.running_mean": (("batch_stats", *path, "mean"), "same"),
        f"{key}.running_var": (("batch_stats", *path, "var"), "same"),
    }


def conv_norm(conv_key: str, norm_key: str, path: tuple[str, ...]) -> Layout:
    """A convolution without bias and the batch norm behind it, whose name is the convolution's with "norm" in it."""
    return conv(conv_key, path, bias=False) | norm(norm_key, (*path[:-1], path[-1].replace("conv", "norm")))


def from_torch(table: Layout, state: Mapping[str, Any], variables: Any, *, ignored: Collection[str] = (), whole: bool = True) -> Any:
    """`variables` with the arrays of a foreign state dict in the places that the table gives them, as float32.

    Args:
      state: foreign key -> array (numpy's, or anything that `np.asarray` takes).
      variables: of `model.init`, or their shapes by `jax.eval_shape` where the table covers all of them.
      ignored: foreign keys that have no place here; counters of batch norm never have.
      whole: the table must cover all variables; otherwise those that it lacks stay as they are.

    Raises:
      InputError: naming every key that is missing, unknown, of another shape, not of floats, not finite or a variance below 0.
        Nothing is half done.
    """
    ours: dict[tuple[str, ...], Any] = flatten_dict(variables)
    places = {path: key for key, (path, _) in table.items()}
    wrong = [f"{key}: missing" for key in table if key not in state]
    known = table.keys() | set(ignored)
    wrong += [f"{key}: unknown" for key in state if key not in known and key.rsplit(".", 1)[-1] != COUNTER]
    wrong += [f"{key}: the model has no {'/'.join(path)}" for path, key in places.items() if path not in ours]
    wrong += [f"{'/'.join(path)}: not in the layout" for path in ours if whole and path not in places]
    new = dict(ours)
    for key, (path, change) in table.items():
        if key not in state or path not in ours:
            continue
        array, shape = np.asarray(state[key]), tuple(ours[path].shape)
        required = _foreign_shape(shape, change)
        if array.shape != required:
            wrong.append(f"{key}: shape {array.shape}, required {required}")
        elif array.dtype.kind != "f" and array.dtype.name != "bfloat16":
            wrong.append(f"{key}: {array.dtype}, required floats")
        elif not np.isfinite(array := array.astype(np.float32)).all():
            wrong.append(f"{key}: holds nan or infinity")
        elif path[-1] == "var" and (array < 0).any():
            wrong.append(f"{key}: holds variances below 0")
        else:
            new[path] = _turn(array, shape, change)
    if wrong:
        raise InputError(
            f"weights: {len(wrong)} keys do not fit, where {len(table)} are required: {'; '.join(wrong)}. "
            "Choose the layout and the model's options that the weights were made with."
        )
    return unflatten_dict(new)


def to_torch(table: Layout, variables: Any) -> dict[str, np.ndarray]:
    """The inverse of `from_torch`: foreign key -> float32 array. Counters of batch norm are left out; load with strict=False.

    Raises:
      InputError: the variables lack a place of the table.
    """
    ours: dict[tuple[str, ...], Any] = flatten_dict(variables)
    lacking = ["/".join(path) for path, _ in table.values() if path not in ours]
    if lacking:
        raise InputError(f"weights: the variables lack {', '.join(lacking)}. Give those of the model that the layout was made for.")
    return {key: _turn_back(np.asarray(ours[path], np.float32), change) for key, (path, change) in table.items()}


def _turn(array: np.ndarray, shape: tuple[int, ...], change: str) -> np.ndarray:
    if change == "linear_conv":  # the units of a map of [I, kh, kw], read as a convolution over it
        array, change = array.reshape(shape[-1], shape[-2], *shape[:-2]), "conv"
    if change == "conv":  # [O, I, *k] -> [*k, I, O]
        return np.moveaxis(array, (1, 0), (-2, -1))
    return np.moveaxis(array, (0, 1), (-2, -1)) if change == "conv_transpose" else array  # [I, O, *k] -> [*k, I, O]


def _turn_back(array: np.ndarray, change: str) -> np.ndarray:
    if change in ("conv", "linear_conv"):
        array = np.moveaxis(array, (-2, -1), (1, 0))
        return np.ascontiguousarray(array.reshape(len(array), -1) if change == "linear_conv" else array)
    return np.ascontiguousarray(np.moveaxis(array, (-2, -1), (0, 1)) if change == "conv_transpose" else array)


def _foreign_shape(shape: tuple[int, ...], change: str) -> tuple[int, ...]:
    if change == "same":
        return shape
    *taps, i, o = shape
    if change == "linear_conv":
        return o, i * int(np.prod(taps))
    return (o, i, *taps) if change == "conv" else (i, o, *taps)
