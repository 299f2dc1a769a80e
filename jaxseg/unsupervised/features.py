"""What the methods know of a pixel: its colour, the texture around it, where it lies."""

import math

import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxseg.errors import InputError
from jaxseg.ops.colour import rgb_to_lab
from jaxseg.ops.shapes import need_floats
from jaxseg.ops.texture import texture_energy


def checked(who: str, image: Float[Array, "h w c"]) -> Float[Array, "h w 3"]:
    """The image as float32 RGB; grey is repeated. Values are looked at where there are any, not while jit or vmap trace.

    Raises:
      InputError: not [H,W,1] or [H,W,3] with pixels, not of floats, or a value is not finite or outside 0..1.
    """
    if image.ndim != 3 or 0 in image.shape or image.shape[-1] not in (1, 3):
        raise InputError(
            f"{who}: got an image of shape {image.shape}; required [H, W, 1] grey or [H, W, 3] RGB with at least one pixel. "
            "Leave out alpha: image[..., :3]; take several images by jax.vmap."
        )
    need_floats(who, image.dtype, "Divide integers by the maximum of their type.")
    if not isinstance(image, Tracer):
        low, high = float(image.min()), float(image.max())
        if not (low >= 0 and high <= 1):  # nan included
            raise InputError(
                f"{who}: got values from {low:g} to {high:g}; required finite numbers in 0..1. "
                "Divide by the maximum, replace what is missing."
            )
    return jnp.broadcast_to(jnp.asarray(image, jnp.float32), (*image.shape[:2], 3))


def need_numbers(who: str, *, zero: bool, **options: float) -> None:
    """Raises InputError unless each option is finite and above 0, or 0 where `zero` allows it; not looked at while traced."""
    for name, value in options.items():
        if not isinstance(value, Tracer) and not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
            raise InputError(f"{who}: got {name} {value!r}; required a finite number {'from' if zero else 'above'} 0. Give such a number.")


def pixel_features(image: Float[Array, "h w 3"], texture: float, position: float, oriented: bool) -> Float[Array, "h w f"]:
    """L*a*b*, `texture` times the energy of L*, `position` times row and column in units of the longer side.

    The energy is of three scales, and of four orientations apart if `oriented`.
    """
    lab = rgb_to_lab(image)
    h, w, _ = image.shape
    energy = texture_energy(lab[..., :1])
    if not oriented:
        energy = energy.reshape(h, w, 3, 4).mean(-1)
    place = jnp.stack(jnp.mgrid[:h, :w], -1) * (position / max(h, w))
    return jnp.concatenate([lab, texture * energy, place], -1)


def consecutive(label: Int[Array, "h w"], bound: int) -> Int[Array, "h w"]:
    """The labels (0..bound-1) numbered anew in their order, without gaps."""
    used = jnp.zeros(bound, jnp.int32).at[label].set(1)
    return (jnp.cumsum(used) - 1)[label]
