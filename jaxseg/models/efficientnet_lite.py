"""EfficientNet-Lite0 as an encoder: Tan & Le 2019, EfficientNet, table 1, without squeeze-and-excitation and with ReLU6.

The "lite" changes are Google's release of 2020 (tensorflow/tpu, models/official/efficientnet/lite): they quantise well and run fast where
sigmoids do not. Stem and head keep their widths at every scale, so Lite0 has B0's.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg import ops
from jaxseg.errors import InputError
from jaxseg.models.layers import recomputed


class Block(NamedTuple):
    """A mobile inverted bottleneck (MBConv): 1x1 to `expand` times the channels, a depthwise convolution, 1x1 to `features`."""

    kernel: int
    stride: int
    expand: int
    features: int


STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))
"""Table 1's: number of blocks, kernel, stride of the first block, expansion, features."""
BLOCKS = [Block(k, stride if i == 0 else 1, e, f) for repeats, k, stride, e, f in STAGES for i in range(repeats)]
AFTER = (2, 4, 10, 15)
"""The number of blocks after which a map of strides 4, 8, 16 and 32 is complete."""


class EfficientNetLite0(nn.Module):
    """[N, H, W, C] -> five maps, of strides 2, 4, 8, 16, 32 with 32, 24, 40, 112, 320 channels and ceil(H / stride) rows.

    Stride 2 is the stem's, as segmentation_models.pytorch takes it. Padding is TensorFlow's "same": of an odd total the larger half behind.
    The published weights want RGB in 0..1, less (0.485, 0.456, 0.406), over (0.229, 0.224, 0.225). Stochastic depth is left out.

    Args:
      dtype: compute type; parameters stay float32.
      remat: compute what lies within a block again for the gradient instead of keeping it: less memory, more time.
      axis_name: pmap axis over which the batch is split; batch statistics are then those of the whole batch.
    """

    dtype: Any = None
    remat: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image: Float[Array, "n h w c"], *, train: bool = False) -> list[Float[Array, "n h2 w2 f"]]:
        if image.ndim != 4:
            raise InputError(f"EfficientNetLite0: got an image of shape {image.shape}; required [N, H, W, C]. Add the missing axes.")
        x = _relu6(self.conv(image, 32, 3, "stem_conv", train, stride=2))
        maps = [x]
        for i, block in enumerate(BLOCKS):
            x = self.block(x, block, f"block{i}", train)
            if i in AFTER:
                maps.append(x)
        return maps

    @recomputed
    def block(self, x: Array, block: Block, name: str, train: bool) -> Array:
        entering, wide = x, x.shape[-1] * block.expand
        if block.expand > 1:
            x = _relu6(self.conv(x, wide, 1, f"{name}_expand_conv", train))
        x = _relu6(self.conv(x, wide, block.kernel, f"{name}_depthwise_conv", train, stride=block.stride, groups=wide))
        x = self.conv(x, block.features, 1, f"{name}_project_conv", train)
        return x + entering if block.stride == 1 and entering.shape[-1] == block.features else x

    def conv(self, x: Array, features: int, kernel: int, name: str, train: bool, *, stride: int = 1, groups: int = 1) -> Array:
        """A convolution and batch norm with the release's epsilon; its momentum, 0.99, would leave the statistics stale in short runs."""
        x = nn.Conv(
            features,
            (kernel, kernel),
            strides=stride,
            feature_group_count=groups,
            conv_general_dilated=ops.conv_general_dilated,
            use_bias=False,
            kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
            dtype=self.dtype,
            name=name,
        )(x)
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-3,
            use_fast_variance=False,
            dtype=self.dtype,
            axis_name=self.axis_name,
            name=name.replace("conv", "norm"),
        )(x)


def _relu6(x: Array) -> Array:
    return jnp.clip(x, 0, 6)
