"""Upsamplers: interchangeable modules of one contract.

    Upsampler(features, scale=2, dtype=None)(x, indices=())  :  [N, H, W, C] -> [N, scale*H, scale*W, features]

`indices` are the encoder's stored pooling positions, coarse to fine, one for each factor 2; only max unpooling reads them. A model
takes the class, or a `functools.partial` of it, as its `upsample` field. A new upsampler is one class and one line of `UPSAMPLERS`.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from jaxseg import ops
from jaxseg.errors import InputError

he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
"""Gaussian of standard deviation sqrt(2 / N), N the incoming nodes of a unit (He et al. 2015; U-Net paper, section 3)."""


class TransposedConv(nn.Module):
    """Transposed convolution with kernel == stride, the U-Net paper's up-convolution: C * features * scale^2 weights.

    Each coarse pixel paints its own scale x scale cell: nothing overlaps, at the price of visible cells early in training.
    """

    features: int
    scale: int = 2
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], indices: Sequence[Array] = ()) -> Float[Array, "n rh rw f"]:
        r, c = self.scale, x.shape[-1]
        kernel = self.param("kernel", _he_in_channels, (r, r, c, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return ops.conv_transpose(x, kernel) + bias


class NearestConv(nn.Module):
    """Nearest-neighbour enlargement, then a 3x3 convolution ("resize-convolution", Odena et al. 2016): no checkerboard, most FLOPs."""

    features: int
    scale: int = 2
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], indices: Sequence[Array] = ()) -> Float[Array, "n rh rw f"]:
        for _ in range(_doublings(self)):
            x = ops.nearest_x2(x)
        return nn.Conv(self.features, (3, 3), kernel_init=he_normal, dtype=self.dtype, name="conv")(x)


class BilinearConv(nn.Module):
    """Bilinear enlargement, then a 3x3 convolution: the smoothest, blurs thin structures."""

    features: int
    scale: int = 2
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], indices: Sequence[Array] = ()) -> Float[Array, "n rh rw f"]:
        for _ in range(_doublings(self)):
            x = ops.bilinear_x2(x)
        return nn.Conv(self.features, (3, 3), kernel_init=he_normal, dtype=self.dtype, name="conv")(x)


class PixelShuffle(nn.Module):
    """A 3x3 convolution to scale^2 * features channels on the coarse grid, then depth to space (Shi et al. 2016)."""

    features: int
    scale: int = 2
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], indices: Sequence[Array] = ()) -> Float[Array, "n rh rw f"]:
        conv = nn.Conv(self.features * self.scale**2, (3, 3), kernel_init=he_normal, dtype=self.dtype, name="conv")
        return ops.depth_to_space(conv(x), self.scale)


class MaxUnpool(nn.Module):
    """Max unpooling at the encoder's stored positions (SegNet), after a 1x1 projection to the pooled map's channels.

    The result is sparse: the convolutions that follow fill it in. Where unpadded convolutions have made x smaller than the pooled
    map, the positions are centre-cropped like a skip connection.
    """

    features: int
    scale: int = 2
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], indices: Sequence[Array] = ()) -> Float[Array, "n rh rw f"]:
        steps = _doublings(self)
        if len(indices) != steps:
            raise InputError(
                f"MaxUnpool(scale={self.scale}): got {len(indices)} stored pooling positions; required {steps}, coarse to fine, "
                "one for each factor 2. Pass the indices of max_pool_with_indices, or choose an upsampler that needs none."
            )
        for step, index in enumerate(indices):
            if x.shape[-1] != index.shape[-1]:
                x = nn.Conv(index.shape[-1], (1, 1), kernel_init=he_normal, dtype=self.dtype, name=f"project{step}")(x)
            x = ops.max_unpool(x, center_crop(index, x.shape[1], x.shape[2]))
        if x.shape[-1] != self.features:
            x = nn.Conv(self.features, (1, 1), kernel_init=he_normal, dtype=self.dtype, name="project")(x)
        return x


UPSAMPLERS = {
    "transposed": TransposedConv,
    "nearest": NearestConv,
    "bilinear": BilinearConv,
    "pixel_shuffle": PixelShuffle,
    "max_unpool": MaxUnpool,
}


def center_crop(x: Float[Array, "n h w c"], height: int, width: int) -> Float[Array, "n height width c"]:
    """The middle height x width pixels; a map already of that size is returned as it is.

    Raises:
      InputError: the map is smaller.
    """
    top, left = (x.shape[1] - height) // 2, (x.shape[2] - width) // 2
    if top < 0 or left < 0:
        raise InputError(f"center_crop: got {x.shape[1]} x {x.shape[2]} pixels; required at least {height} x {width}.")
    return x[:, top : top + height, left : left + width]


def _he_in_channels(key, shape, dtype=jnp.float32):
    # Each output pixel of a kernel == stride transposed convolution sees one input pixel: N is the input channels, not r * r times that.
    return jax.random.normal(key, shape, dtype) * jnp.sqrt(2.0 / shape[2]).astype(dtype)


def _doublings(module: nn.Module) -> int:
    steps = module.scale.bit_length() - 1
    if module.scale < 2 or 2**steps != module.scale:
        who = type(module).__name__
        raise InputError(f"{who}: got scale {module.scale}; required a power of 2 from 2. Use TransposedConv or PixelShuffle.")
    return steps
