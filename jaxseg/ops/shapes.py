"""The demands that `jaxseg.ops` makes on its input."""

from jaxseg.errors import InputError


def need_image(who: str, shape: tuple[int, ...]) -> None:
    """Raises InputError unless `shape` is [..., H, W, C]."""
    if len(shape) < 3:
        raise InputError(f"{who}: got shape {shape}; required [..., H, W, C]. Add the missing axes.")


def pair(who: str, name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of one number or two. Raises InputError for anything else."""
    both = (value, value) if isinstance(value, int) else tuple(value)
    if len(both) != 2 or not all(isinstance(v, int) for v in both):
        raise InputError(f"{who}: got {name}={value!r}; required an integer or a pair (rows, columns).")
    return both
