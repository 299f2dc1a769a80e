"""The one demand that all of `jaxseg.ops` makes on its input."""

from jaxseg.errors import InputError


def need_image(who: str, shape: tuple[int, ...]) -> None:
    """Raises InputError unless `shape` is [..., H, W, C]."""
    if len(shape) < 3:
        raise InputError(f"{who}: got shape {shape}; required [..., H, W, C]. Add the missing axes.")
