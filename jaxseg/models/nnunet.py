"""nnU-Net's networks (Isensee et al.: nnU-Net, Nature Methods 2021, and nnU-Net Revisited, MICCAI 2024), for images and volumes alike."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from jaxseg import ops
from jaxseg.errors import InputError
from jaxseg.models.layers import recomputed
from jaxseg.upsample import he_normal, up_convolution

Axes = tuple[int, ...]
"""A number for each spatial axis."""


class NNUNet(nn.Module):
    """[N, H, W, C] -> float32 logits [N, H, W, num_classes], or [N, D, H, W, C] -> [N, D, H, W, num_classes]; any sizes.

    The defaults are the plain network that nnU-Net plans for images of 512 x 512 pixels. The layers are those of its package
    dynamic-network-architectures 0.4, `PlainConvUNet` and `ResidualEncoderUNet`: convolutions with bias, affine instance norm, leaky ReLU
    of slope 0.01, strides instead of poolings, up-convolutions whose kernel is the stride. There, sizes must be multiples of the strides.

    Args:
      num_classes: 2 for a binary problem (background, foreground).
      features: channels of each stage, finest first. nnU-Net doubles 32 up to 512 in images, to 320 in volumes.
      convs: convolutions of each stage of the decoder, and of the plain encoder.
      residual_blocks: residual blocks of each stage of the encoder, after a stem of one convolution; None is the plain encoder.
      strides: of each stage; default 1 for the finest and 2 for all others. (1, 2, 2) leaves the depth of thick slices as it is.
      kernels: sides of each stage's convolutions, odd; default 3.
      deep_supervision: a head on every stage of the decoder. With train=True the result is then a tuple of their logits, finest first, each
        of its stage's size.
      dtype: compute type; parameters stay float32.
      remat: compute what lies within a layer or a residual block again for the gradient instead of keeping it: less memory, more time.
      axis_name: as in the other models; unused, since an instance norm sees no other example.

    Raises:
      InputError: the image has not four or five axes, or residual_blocks, strides or kernels do not fit the features or the axes.
    """

    num_classes: int
    features: tuple[int, ...] = (32, 64, 128, 256, 512, 512, 512, 512)
    convs: int = 2
    residual_blocks: tuple[int, ...] | None = None
    strides: tuple[int | Axes, ...] | None = None
    kernels: tuple[int | Axes, ...] | None = None
    deep_supervision: bool = False
    dtype: Any = None
    remat: bool = False
    axis_name: str | None = None

    @property
    def head_weights(self) -> tuple[float, ...]:
        """nnU-Net's: 1, 1/2, 1/4, ..., the coarsest 0, divided by their sum."""
        each = [0.5**i for i in range(len(self.features) - 2)] or [1.0]
        return (*(w / sum(each) for w in each), *(0.0,) * (len(self.features) - 1 - len(each)))

    @nn.compact
    def __call__(
        self, image: Float[Array, "n *size c"], *, train: bool = False
    ) -> Float[Array, "n *size k"] | tuple[Float[Array, "n *_ k"], ...]:
        strides, kernels = self.plan(image.shape)
        conv, block = recomputed(NNUNet.conv), recomputed(NNUNet.block)
        stages, ones = range(len(self.features)), (1,) * (image.ndim - 2)

        # Encoder.
        x, skips = image, []
        if self.residual_blocks is not None:
            x = self.conv(x, 0, kernels[0], ones, "stem")
        for stage in stages:
            for i in range(self.convs if self.residual_blocks is None else self.residual_blocks[stage]):
                layer = conv if self.residual_blocks is None else block
                x = layer(self, x, stage, kernels[stage], strides[stage] if i == 0 else ones, f"down{stage}_{i + 1}")
            skips.append(x)

        # Decoder.
        heads = []
        for stage in reversed(stages[:-1]):
            x = UpConv(self.features[stage], strides[stage + 1], self.dtype, name=f"up{stage}_sample")(x)
            x = jax.lax.slice(x, (0,) * x.ndim, (*skips[stage].shape[:-1], x.shape[-1]))  # a strided odd side is rounded up
            x = jnp.concatenate([x, skips[stage]], axis=-1)
            for i in range(self.convs):
                x = conv(self, x, stage, kernels[stage], ones, f"up{stage}_{i + 1}")
            if stage == 0 or self.deep_supervision:
                head = nn.Conv(self.num_classes, ones, kernel_init=he_normal, dtype=self.dtype, name=f"logits{stage}")
                heads.append(head(x).astype(jnp.float32))
        return tuple(heads[::-1]) if train and self.deep_supervision else heads[-1]

    def block(self, x: Array, stage: int, kernel: Axes, stride: Axes, name: str) -> Array:
        """Two convolutions added to the shortcut, which averages where they stride and projects where the channels change."""
        shortcut, ones = x, (1,) * len(kernel)
        if stride != ones:  # over the pixels that are there: the last cell of an odd side is half empty
            shortcut = nn.avg_pool(shortcut, stride, stride, "SAME", count_include_pad=False)
        if x.shape[-1] != self.features[stage]:
            shortcut = self.conv_norm(shortcut, stage, ones, ones, f"{name}_shortcut", use_bias=False)
        x = self.conv(x, stage, kernel, stride, f"{name}_conv1")
        x = self.conv_norm(x, stage, kernel, ones, f"{name}_conv2", scale_init=nn.initializers.zeros)
        return nn.leaky_relu(x + shortcut)

    def conv(self, x: Array, stage: int, kernel: Axes, stride: Axes, name: str) -> Array:
        return nn.leaky_relu(self.conv_norm(x, stage, kernel, stride, name))

    def conv_norm(
        self,
        x: Array,
        stage: int,
        kernel: Axes,
        stride: Axes,
        name: str,
        use_bias: bool = True,
        scale_init: Any = nn.initializers.ones,
    ) -> Array:
        x = nn.Conv(
            self.features[stage],
            kernel,
            stride,
            padding=[(k // 2, k // 2) for k in kernel],
            use_bias=use_bias,
            kernel_init=he_normal,
            dtype=self.dtype,
            conv_general_dilated=ops.conv_general_dilated,
            name=name,
        )(x)
        # Not the fast variance, E[x^2] - E[x]^2, which is negative on raw 16-bit images.
        norm = nn.InstanceNorm(epsilon=1e-5, use_fast_variance=False, scale_init=scale_init, dtype=self.dtype, name=f"{name}_norm")
        return norm(x)

    def plan(self, shape: tuple[int, ...]) -> tuple[list[Axes], list[Axes]]:
        """Strides and kernels of each stage, a number for each spatial axis."""
        stages, rank = len(self.features), len(shape) - 2
        if rank not in (2, 3):
            raise InputError(f"NNUNet: got an image of shape {shape}; required [N, H, W, C] or [N, D, H, W, C]. Add the missing axes.")
        given = {
            "residual_blocks": self.residual_blocks or (1,) * stages,
            "strides": self.strides or (1, *(2,) * (stages - 1)),
            "kernels": self.kernels or (3,) * stages,
        }
        each = {name: [(v,) * rank if isinstance(v, int) else tuple(v) for v in values] for name, values in given.items()}
        for name, values in each.items():
            odd = name != "kernels" or all(v % 2 for value in values for v in value)
            if stages < 2 or len(values) != stages or not odd or not all(len(v) == rank and min(v) >= 1 for v in values):
                raise InputError(
                    f"NNUNet: got {name}={given[name]} for features={self.features} and an image of shape {shape}; required one for each "
                    f"of at least 2 stages, from 1, kernels odd, each a number or a tuple of {rank}."
                )
        return each["strides"], each["kernels"]


ResidualEncoderUNet = functools.partial(NNUNet, residual_blocks=(1, 3, 4, 6, 6, 6, 6, 6), convs=1)
"""The residual-encoder network as nnU-Net's presets M, L and XL plan it: more blocks in the encoder, one convolution in the decoder."""


class UpConv(nn.Module):
    """Transposed convolution whose kernel is the stride, of any rank: [N, *S, C] -> [N, *(stride * S), features]."""

    features: int
    stride: Axes
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "n *s c"]) -> Float[Array, "n *rs f"]:
        fan_in = math.prod(self.stride) * self.features  # as torch counts it for this layer
        init = nn.initializers.normal(math.sqrt(2 / fan_in))
        kernel = self.param("kernel", init, (*self.stride, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return up_convolution(x, kernel) + bias
