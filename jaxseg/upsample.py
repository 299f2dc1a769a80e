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

    Each coarse pixel paints its own scale x scale cell: nothing overlaps, at the price of visible cells early in training. Of volumes
    [N, D, H, W, C] likewise, with scale^3.
    """

    features: int
    scale: int = 2
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "n *s c"], indices: Sequence[Array] = ()) -> Float[Array, "n *rs f"]:
        r, c = self.scale, x.shape[-1]
        kernel = self.param("kernel", _he_in_channels, (*(r,) * (x.ndim - 2), c, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return up_convolution(x, kernel) + bias


class OverlapTransposedConv(nn.Module):
    """Transposed convolution with a kernel of 2 * scale (4x4 at stride 2): neighbouring pixels' paint overlaps, C * features * 4 scale^2.

    Smoother than kernel == stride, since each new pixel sees 2x2 coarse ones, and still a multiple of the stride, so that all of them see
    as many (Odena et al. 2016): uneven overlap is what makes the strongest checkerboards.
    """

    features: int
    scale: int = 2
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], indices: Sequence[Array] = ()) -> Float[Array, "n rh rw f"]:
        r, c = self.scale, x.shape[-1]
        kernel = self.param("kernel", nn.initializers.normal((2.0 / (4 * c)) ** 0.5), (2 * r, 2 * r, c, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return ops.conv_transpose(x, kernel, r, padding=(r + 1) // 2, output_padding=r % 2) + bias


class ZeroInsertConv(nn.Module):
    """A "bed of nails", then a 3x3 convolution: the textbook's transposed convolution, written out; three of four products are with 0."""

    features: int
    scale: int = 2
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], indices: Sequence[Array] = ()) -> Float[Array, "n rh rw f"]:
        x = ops.zero_insert(x, self.scale)
        return _conv3x3(self.features, self.dtype)(x)


class NearestConv(nn.Module):
    """Nearest-neighbour enlargement, then a 3x3 convolution ("resize-convolution", Odena et al. 2016): no checkerboard, most FLOPs."""

    features: int
    scale: int = 2
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], indices: Sequence[Array] = ()) -> Float[Array, "n rh rw f"]:
        x = ops.resize(x, (self.scale * x.shape[1], self.scale * x.shape[2]), "nearest")
        return _conv3x3(self.features, self.dtype)(x)


class BilinearConv(nn.Module):
    """Bilinear enlargement, then a 3x3 convolution: smooth, blurs thin structures."""

    features: int
    scale: int = 2
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], indices: Sequence[Array] = ()) -> Float[Array, "n rh rw f"]:
        x = ops.resize(x, (self.scale * x.shape[1], self.scale * x.shape[2]), "bilinear")
        return _conv3x3(self.features, self.dtype)(x)


class BicubicConv(nn.Module):
    """Bicubic enlargement (Keys' a = -1/2), then a 3x3 convolution: sharper than bilinear, overshoots at edges."""

    features: int
    scale: int = 2
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], indices: Sequence[Array] = ()) -> Float[Array, "n rh rw f"]:
        x = ops.resize(x, (self.scale * x.shape[1], self.scale * x.shape[2]), "bicubic")
        return _conv3x3(self.features, self.dtype)(x)


class BilinearFilter(nn.Module):
    """Prediction upsampling (Long et al. 2015, section 3.3): a 1x1 projection, then one fractional-stride filter a channel.

    The filters begin as bilinear interpolation and are learned: C * features + features * (2 scale - scale % 2)^2 weights. Zeros surround
    the map, so that the border is drawn towards zero.
    """

    features: int
    scale: int = 2
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], indices: Sequence[Array] = ()) -> Float[Array, "n rh rw f"]:
        if x.shape[-1] != self.features:
            x = nn.Conv(self.features, (1, 1), kernel_init=he_normal, dtype=self.dtype, name="project")(x)
        start = ops.bilinear_kernel(self.scale)[..., None]
        kernel = self.param("kernel", lambda key, shape: jnp.broadcast_to(start, shape), (*start.shape[:2], self.features))
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        return ops.upsample_prediction(x, self.scale, kernel=kernel)


class PixelShuffle(nn.Module):
    """A 3x3 convolution to scale^2 * features channels on the coarse grid, then depth to space (Shi et al. 2016).

    Initialised as nearest enlargement (ICNR, Aitken et al. 2017), so that it begins without a checkerboard.
    """

    features: int
    scale: int = 2
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], indices: Sequence[Array] = ()) -> Float[Array, "n rh rw f"]:
        init = ops.icnr(he_normal, self.scale)
        conv = _conv3x3(self.features * self.scale**2, self.dtype, init)
        return ops.depth_to_space(conv(x), self.scale)


class Carafe(nn.Module):
    """Content-aware reassembly (CARAFE, Wang et al. 2019, section 3): each new pixel weighs its 5x5 coarse neighbours as the content says.

    A 1x1 projection to `features`; from it a 1x1 compressor to 64 channels, a 3x3 encoder to scale^2 * 25 weights, softmax. The weights'
    channels are in "dcr" order; those of mmcv's checkpoints are in "crd".
    """

    features: int
    scale: int = 2
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], indices: Sequence[Array] = ()) -> Float[Array, "n rh rw f"]:
        if x.shape[-1] != self.features:
            x = nn.Conv(self.features, (1, 1), kernel_init=he_normal, dtype=self.dtype, name="project")(x)
        small = nn.Conv(64, (1, 1), kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype, name="compressor")(x)
        start = nn.initializers.normal(0.001)
        weights = nn.Conv(self.scale**2 * 25, (3, 3), kernel_init=start, dtype=self.dtype, name="encoder")(small)
        weights = jax.nn.softmax(ops.depth_to_space(weights, self.scale).astype(jnp.float32))
        return ops.carafe(x, weights, self.scale)


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
    "transposed_overlap": OverlapTransposedConv,
    "zero_insert": ZeroInsertConv,
    "nearest": NearestConv,
    "bilinear": BilinearConv,
    "bicubic": BicubicConv,
    "bilinear_filter": BilinearFilter,
    "pixel_shuffle": PixelShuffle,
    "carafe": Carafe,
    "max_unpool": MaxUnpool,
}


def up_convolution(x: Float[Array, "n *s c"], kernel: Float[Array, "*r c f"]) -> Float[Array, "n *rs f"]:
    """Transposed convolution whose stride is the kernel's size, of images or volumes."""
    return ops.conv_transpose(x, kernel) if x.ndim == 4 else ops.conv_transpose_3d(x, kernel)


def center_crop(x: Float[Array, "n *s c"], *size: int) -> Float[Array, "n *size c"]:
    """The middle pixels, as many of each axis as `size` says; a map already of that size is returned as it is.

    Raises:
      InputError: the map is smaller.
    """
    have = x.shape[1:-1]
    if any(n < m for n, m in zip(have, size, strict=True)):
        raise InputError(f"center_crop: got {' x '.join(map(str, have))} pixels; required at least {' x '.join(map(str, size))}.")
    return x[:, *(slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(have, size, strict=True))]


def _he_in_channels(key, shape, dtype=jnp.float32):
    # Each output pixel of a kernel == stride transposed convolution sees one input pixel: N is the input channels.
    return jax.random.normal(key, shape, dtype) * jnp.sqrt(2.0 / shape[-2]).astype(dtype)


def _doublings(module: nn.Module) -> int:
    steps = module.scale.bit_length() - 1
    if module.scale < 2 or 2**steps != module.scale:
        who = type(module).__name__
        raise InputError(f"{who}: got scale {module.scale}; required a power of 2 from 2. Any other upsampler takes it.")
    return steps


def _conv3x3(features: int, dtype: Any, init: Any = he_normal) -> nn.Conv:
    return nn.Conv(features, (3, 3), kernel_init=init, dtype=dtype, conv_general_dilated=ops.conv_general_dilated, name="conv")
