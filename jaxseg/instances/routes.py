"""The routes from a dense model to objects, by name: what it learns, and how its logits become a label map."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from jaxseg.errors import InputError
from jaxseg.instances.border import border_decode, border_loss
from jaxseg.instances.centre import centre_decode, centre_loss


class Route(NamedTuple):
    """A way to separate objects with a model of `channels` outputs.

    Args:
      outputs: what each channel says, for pictures.
      loss: `loss(logits [N,H,W,channels], instances [N,H,W] int32, *, weight=None, axis_name=None) -> scalar`. It makes its targets of
        the instance map inside the jitted step, so that every augmentation of the map is one of the targets.
      decode: `decode(logits [H,W,channels]) -> label map [H,W]` int32, 0 background, 1..n objects; on the host.
    """

    name: str
    outputs: tuple[str, ...]
    loss: Callable[..., Float[Array, ""]]
    decode: Callable[[Float[np.ndarray, "h w k"]], Int[np.ndarray, "h w"]]

    @property
    def channels(self) -> int:
        return len(self.outputs)


ROUTES: dict[str, Route] = {
    "border": Route("border", ("background", "interior", "border"), border_loss, border_decode),
    "centre": Route("centre", ("foreground", "rows to the centre", "columns to the centre"), centre_loss, centre_decode),
}


def find_route(name: str) -> Route:
    """Raises InputError where there is no route of that name."""
    if name not in ROUTES:
        raise InputError(f"instances: got {name!r}; there are {', '.join(ROUTES)}: choose one of them.")
    return ROUTES[name]
