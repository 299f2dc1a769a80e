"""VGG16 (Simonyan & Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015) as an encoder."""

from typing import Any, Literal, NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float, Int

from jaxseg import ops
from jaxseg.errors import InputError
from jaxseg.models.layers import normalise, recomputed
from jaxseg.upsample import he_normal

CONVS = (2, 2, 3, 3, 3)
"""Of each stage: column D of the paper's table 1."""


class Stage(NamedTuple):
    """What a stage leaves: its last map, that map pooled, and where in each 2x2 window the maximum was."""

    map: Float[Array, "n h w c"]
    pooled: Float[Array, "n h2 w2 c"]
    index: Int[Array, "n h2 w2 c"]


class VGG16(nn.Module):
    """[N, H, W, C] -> five stages, finest first; the defaults are configuration D (table 1) up to its last pooling.

    The pooled maps have ceil(H / 2), ceil(H / 4), ... rows, so that any size is legal; Caffe's networks are made like this. The
    convolutions are conv1_1 to conv5_3, the norms norm1_1 to norm5_3.

    Args:
      features: channels of each stage.
      norm: what stands between a convolution and its ReLU: None (the paper) or "batch" (torchvision's vgg16_bn, SegNet, DeconvNet, all of
        which keep the convolution's bias).
      padding_first: zeros around the image in conv1_1; FCN has 100.
      ceil_mode: False leaves out the last pooling window of an odd side, as torchvision does; sides from 32 only.
      dtype: compute type; parameters stay float32.
      remat: compute what lies within a stage again for the gradient instead of keeping it: less memory, more time.
      axis_name: pmap axis over which the batch is split; batch statistics are then those of the whole batch.

    Raises:
      InputError: the image is not [N, H, W, C], a field out of its range, or a side that floor pooling leaves nothing of.
    """

    features: tuple[int, ...] = (64, 128, 256, 512, 512)
    norm: Literal["batch"] | None = None
    padding_first: int = 1
    ceil_mode: bool = True
    dtype: Any = None
    remat: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image: Float[Array, "n h w c"], *, train: bool = False) -> list[Stage]:
        self.check(image.shape)
        x, stages = image, []
        for stage, convs in enumerate(CONVS, 1):
            x = self.convs(x, stage, convs, train)
            pooled, index = ops.max_pool_with_indices(x, ceil_mode=self.ceil_mode)
            stages.append(Stage(x, pooled, index))
            x = pooled
        return stages

    @recomputed
    def convs(self, x: Array, stage: int, number: int, train: bool) -> Array:
        for i in range(1, number + 1):
            p = self.padding_first if (stage, i) == (1, 1) else 1
            x = nn.Conv(
                self.features[stage - 1],
                (3, 3),
                padding=((p, p), (p, p)),
                kernel_init=he_normal,
                dtype=self.dtype,
                conv_general_dilated=ops.conv_general_dilated,
                name=f"conv{stage}_{i}",
            )(x)
            x = nn.relu(normalise(self, x, f"norm{stage}_{i}", train))
        return x

    def check(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 4:
            raise InputError(f"VGG16: got an image of shape {shape}; required [N, H, W, C]. Add the missing axes.")
        if len(self.features) != 5 or min(self.features) < 1 or self.norm not in (None, "batch") or self.padding_first < 1:
            raise InputError(
                f"VGG16: got features={self.features}, norm={self.norm!r}, padding_first={self.padding_first}; required 5 numbers of "
                "channels from 1, norm None or 'batch', and a padding from 1. Correct the field."
            )
        least = 34 - 2 * self.padding_first
        if not self.ceil_mode and any(side < least for side in shape[1:3]):
            raise InputError(
                f"VGG16: got an image of {shape[1]} x {shape[2]} pixels; with floor pooling a side must have {least} at least. "
                "Pad the image, or use ceil_mode=True."
            )
