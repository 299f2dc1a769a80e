"""sRGB and CIE L*a*b*, in which equal distances look about equally different."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxseg.errors import InputError
from jaxseg.ops.shapes import need_floats

# ITU-R BT.709 primaries and the white D65 of the 2 degree observer, in the digits that scikit-image and OpenCV use.
_TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]], np.float32)
_WHITE = np.array([0.95047, 1.0, 1.08883], np.float32)
_KNEE = 6 / 29


def rgb_to_lab(rgb: Float[Array, "*n 3"]) -> Float[Array, "*n 3"]:
    """sRGB in 0..1 to CIE L*a*b* (D65): L in 0..100, a and b about -110..110.

    Raises:
      InputError: the last axis is not of three floating point numbers.

    Source: IEC 61966-2-1 (sRGB), CIE 15:2004, section 8.2.1.

    >>> rgb_to_lab(jnp.array([1.0, 0.0, 0.0])).round().tolist()
    [53.0, 80.0, 67.0]
    """
    _need_three("rgb_to_lab", rgb)
    linear = jnp.where(rgb > 0.04045, ((jnp.maximum(rgb, 0.04045) + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = linear @ (_TO_XYZ / _WHITE[:, None]).T
    # The maximum keeps the cube root's infinite slope at 0 out of the gradient.
    fx, fy, fz = jnp.moveaxis(jnp.where(xyz > _KNEE**3, jnp.cbrt(jnp.maximum(xyz, _KNEE**3)), xyz / (3 * _KNEE**2) + 4 / 29), -1, 0)
    return jnp.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], axis=-1)


def lab_to_rgb(lab: Float[Array, "*n 3"]) -> Float[Array, "*n 3"]:
    """CIE L*a*b* (D65) to sRGB; colours that sRGB does not have lie outside 0..1.

    Raises:
      InputError: the last axis is not of three floating point numbers.

    Source: as `rgb_to_lab`, whose inverse it is.
    """
    _need_three("lab_to_rgb", lab)
    light, a, b = jnp.moveaxis(lab, -1, 0)
    fy = (light + 16) / 116
    f = jnp.stack([fy + a / 500, fy, fy - b / 200], axis=-1)
    xyz = jnp.where(f > _KNEE, f**3, 3 * _KNEE**2 * (f - 4 / 29))
    linear = xyz @ np.linalg.inv(_TO_XYZ / _WHITE[:, None]).T.astype(np.float32)
    return jnp.where(linear > 0.0031308, 1.055 * jnp.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055, 12.92 * linear)


def _need_three(who: str, x: Array) -> None:
    need_floats(who, x.dtype)
    if x.shape[-1:] != (3,):
        raise InputError(f"{who}: got shape {x.shape}; required [..., 3]. Repeat a grey channel three times; leave alpha out.")
