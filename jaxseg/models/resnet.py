"""ResNet (He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, CVPR 2016), its convolutions as encoder."""

from functools import partial
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from jaxseg import ops
from jaxseg.errors import InputError
from jaxseg.models.layers import normalise, recomputed

he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class ResNet(nn.Module):
    """[N, H, W, C] -> five maps, finest first: the stem's of H / 2, then those of layer1 to layer4, of H / 4 to H / 32, sides rounded up.

    The columns of table 1 without the classifier; `RESNETS` has them by name. A block that halves its map does so in the 3x3 convolution
    ("v1.5"), as torchvision's do: the paper's 1x1 would leave out three of four pixels. Any size is legal.

    Args:
      blocks: of layer1 to layer4.
      bottleneck: blocks of 1x1, 3x3 and 1x1 convolutions (figure 5, right), whose output is four times as wide; else of two 3x3.
      dilate: of layer2 to layer4, the 3x3 convolutions of this layer and those after it are dilated and the map is not halved. The first
        block keeps the dilation of the layer before.
      width: channels of the stem and of layer1's 3x3 convolutions; each layer doubles them.
      dtype: compute type; parameters stay float32.
      remat: compute what lies within a block again for the gradient instead of keeping it: less memory, more time.
      axis_name: pmap axis over which the batch is split; batch statistics are then those of the whole batch.

    Raises:
      InputError: the image is not [N, H, W, C], or a field is out of its range.

    Source: also torchvision.models.resnet (replace_stride_with_dilation=dilate).
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    bottleneck: bool = True
    dilate: tuple[bool, ...] = (False, False, False)
    width: int = 64
    dtype: Any = None
    remat: bool = False
    axis_name: str | None = None

    norm = "batch"

    @nn.compact
    def __call__(self, image: Float[Array, "n h w c"], *, train: bool = False) -> list[Float[Array, "n _ _ _"]]:
        self.check(image.shape)
        x = nn.relu(self.conv(image, self.width, 7, "stem_conv", train, stride=2))
        maps, dilation = [x], 1
        x = ops.max_pool(x, 3, 2, 1, ceil_mode=False)
        for layer, blocks in enumerate(self.blocks, 1):
            stride, first = (1 if layer == 1 else 2), dilation
            if layer > 1 and self.dilate[layer - 2]:
                stride, dilation = 1, 2 * dilation
            for i in range(blocks):
                name, features = f"layer{layer}_{i}", self.width * 2 ** (layer - 1)
                x = self.block(x, features, name, train, stride, first)
                stride, first = 1, dilation
            maps.append(x)
        return maps

    @recomputed
    def block(self, x: Array, features: int, name: str, train: bool, stride: int, dilation: int) -> Array:
        """Figure 5: the residual, and around it the identity, or a 1x1 projection where the shape changes."""
        if self.bottleneck:
            y = nn.relu(self.conv(x, features, 1, f"{name}_conv1", train))
            y = nn.relu(self.conv(y, features, 3, f"{name}_conv2", train, stride, dilation))
            y = self.conv(y, 4 * features, 1, f"{name}_conv3", train)
        else:
            y = nn.relu(self.conv(x, features, 3, f"{name}_conv1", train, stride, dilation))
            y = self.conv(y, features, 3, f"{name}_conv2", train, 1, dilation)
        if stride > 1 or x.shape[-1] != y.shape[-1]:
            x = self.conv(x, y.shape[-1], 1, f"{name}_shortcut_conv", train, stride)
        return nn.relu(x + y)

    def conv(self, x: Array, features: int, size: int, name: str, train: bool, stride: int = 1, dilation: int = 1) -> Array:
        """A convolution, and the batch norm of the same name."""
        pad = dilation * (size // 2)
        x = nn.Conv(
            features,
            (size, size),
            strides=stride,
            padding=((pad, pad), (pad, pad)),
            kernel_dilation=dilation,
            use_bias=False,
            kernel_init=he_fan_out,
            dtype=self.dtype,
            conv_general_dilated=ops.conv_general_dilated,
            name=name,
        )(x)
        return normalise(self, x, name.replace("conv", "norm"), train)

    def check(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 4:
            raise InputError(f"ResNet: got an image of shape {shape}; required [N, H, W, C]. Add the missing axes.")
        if len(self.blocks) != 4 or min(self.blocks) < 1 or len(self.dilate) != 3 or self.width < 1:
            raise InputError(
                f"ResNet: got blocks={self.blocks}, dilate={self.dilate}, width={self.width}; required 4 numbers of blocks from 1, "
                "3 of dilate, and a width from 1. Correct the field."
            )


RESNETS = {
    "resnet18": partial(ResNet, blocks=(2, 2, 2, 2), bottleneck=False),
    "resnet34": partial(ResNet, blocks=(3, 4, 6, 3), bottleneck=False),
    "resnet50": partial(ResNet, blocks=(3, 4, 6, 3)),
    "resnet101": partial(ResNet, blocks=(3, 4, 23, 3)),
}
