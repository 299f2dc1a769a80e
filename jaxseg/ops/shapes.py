"""The demands that `jaxseg.ops` makes on its input."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import export, lax
from jaxtyping import Array, Shaped

from jaxseg.errors import InputError

Pair = int | Sequence[int]
"""A number for the height and one for the width, or one for both."""


def need_image(who: str, shape: tuple[int, ...]) -> None:
    """Raises InputError unless `shape` is [..., H, W, C]."""
    if len(shape) < 3:
        raise InputError(f"{who}: got shape {shape}; required [..., H, W, C]. Add the missing axes.")


def need_floats(who: str, dtype: Any, advice: str = "Convert the image first, e.g. x.astype(jnp.float32).") -> None:
    """Raises InputError where sums, rounded to the image's type, would not be those of real numbers."""
    if not jnp.issubdtype(dtype, jnp.floating):
        raise InputError(f"{who}: got {dtype}; required floating point numbers. {advice}")


def integer(who: str, name: str, value: Any, least: int, advice: str = "Give a number such as 2.") -> int:
    """The integer that `value` is. Raises InputError where it is none from `least` on; a truth value is none."""
    number = _integer(value)
    if number is None or number < least:
        raise InputError(f"{who}: got {name} {value!r}; required an integer from {least}. {advice}")
    return number


def pair(who: str, name: str, value: Any, least: int, advice: str = "Give numbers such as 2 or (2, 2).") -> tuple[int, int]:
    """(rows, columns) of a `Pair`. Raises InputError for anything else, as `integer` does."""
    several = isinstance(value, Sequence) or np.ndim(value)
    both = [_integer(v) for v in (value if several else (value, value))]
    if len(both) != 2 or both[0] is None or both[1] is None or both[0] < least or both[1] < least:
        raise InputError(f"{who}: got {name} {value!r}; required an integer from {least}, or two: for rows and columns. {advice}")
    return both[0], both[1]


def cut(x: Shaped[Array, "*n"], parts: Mapping[int, slice]) -> Shaped[Array, "*m"]:
    """What `x[...]` would be with these slices of these axes; where an export leaves sizes open, jnp's indices become a gather."""
    start, stop, step = [0] * x.ndim, list(x.shape), [1] * x.ndim
    for axis, part in parts.items():
        start[axis], stop[axis], step[axis] = part.start, part.stop, part.step or 1
    return x if (start, stop, step) == ([0] * x.ndim, list(x.shape), [1] * x.ndim) else lax.slice(x, start, stop, step)


def _integer(value: Any) -> int | None:
    if export.is_symbolic_dim(value):  # a size that an export leaves open
        return value  # pyright: ignore[reportReturnType]
    try:
        return None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        return None
