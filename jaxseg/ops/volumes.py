"""The U-Net's operators for volumes, [N, D, H, W, C], made of those for images: windows and cells that do not overlap are separable."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.errors import InputError
from jaxseg.ops.conv_transpose import conv_transpose
from jaxseg.ops.pooling import max_pool
from jaxseg.ops.shapes import need_floats


def max_pool_3d(x: Float[Array, "n d h w c"]) -> Float[Array, "n d2 h2 w2 c"]:
    """The maximum of each 2x2x2 window: [N, D, H, W, C] -> [N, D2, H2, W2, C], D2 = ceil(D / 2) and so on.

    Ties give their gradient to the first maximum, slices before rows before columns, as torch's; windows at the far ends may be half empty.

    Raises:
      InputError: x is no volume of floats.

    Source: torch.nn.MaxPool3d(2, ceil_mode=True).
    """
    _need_volume("max_pool_3d", x)
    n, d, _, _, c = x.shape
    flat = max_pool(x)  # of each slice; what is left is a pooling of pairs of slices
    h, w = flat.shape[2:4]
    return max_pool(flat.reshape(n, d, h * w, c), (2, 1)).reshape(n, (d + 1) // 2, h, w, c)


def conv_transpose_3d(x: Float[Array, "n d h w i"], kernel: Float[Array, "kd kh kw i o"]) -> Float[Array, "n d2 h2 w2 o"]:
    """Transposed convolution whose stride is the kernel's size: [N, D, H, W, I] -> [N, kd * D, kh * H, kw * W, O].

    Args:
      kernel: torch's weight [I, O, kd, kh, kw] by `w.transpose(2, 3, 4, 0, 1)`.

    Raises:
      InputError: x is no volume of floats, or the kernel does not fit.

    Source: torch.nn.ConvTranspose3d(I, O, k, stride=k).
    """
    _need_volume("conv_transpose_3d", x)
    if kernel.ndim != 5 or kernel.shape[3] != x.shape[-1] or 0 in kernel.shape[:3]:
        raise InputError(
            f"conv_transpose_3d: got a kernel of shape {kernel.shape} for input {x.shape}; required [kd, kh, kw, {x.shape[-1]}, O] "
            "of one tap or more. Bring a torch weight [I, O, kd, kh, kw] into this order by transpose(2, 3, 4, 0, 1)."
        )
    r, *cell, c, f = kernel.shape
    # The cell's slices are channels until its rows and columns are in place.
    y = conv_transpose(x, jnp.moveaxis(kernel, 0, -2).reshape(*cell, c, r * f))
    n, d, h, w, _ = y.shape
    return jnp.moveaxis(y.reshape(n, d, h, w, r, f), -2, 2).reshape(n, d * r, h, w, f)


def _need_volume(who: str, x: Array) -> None:
    if x.ndim != 5 or 0 in x.shape[1:4]:
        raise InputError(f"{who}: got shape {x.shape}; required a volume [N, D, H, W, C] with voxels. Add the missing axes.")
    need_floats(who, x.dtype)
