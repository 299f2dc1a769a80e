"""DeconvNet (Noh, Hong, Han: Learning Deconvolution Network for Semantic Segmentation, ICCV 2015)."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from jaxseg import ops
from jaxseg.errors import InputError
from jaxseg.models.layers import normalise, recomputed
from jaxseg.models.vgg import CONVS, VGG16
from jaxseg.upsample import MaxUnpool, he_normal

SMALLEST = 193
"""Pixels of a side that five poolings, which round up, bring to the 7 that fc6 needs."""


class DeconvNet(nn.Module):
    """[N, H, W, C] -> float32 logits [N, H, W, num_classes]. Figure 2 of the paper: 224 x 224 by way of a single pixel of 4096 channels.

    Sides from 193 pixels are legal. The paper's are 224; up to that the middle is a single pixel, beyond it there is one for every 7 x 7
    window of the fifth pooled map, and what they paint overlaps.

    Args:
      num_classes: 21 in the paper, which has 251,805,653 parameters then.
      features: channels of each stage, finest first.
      middle: channels of fc6 and fc7.
      upsample: class or partial of `jaxseg.upsample`. The paper's puts each value back where the encoder's maximum was.
      dtype: compute type; parameters stay float32.
      remat: compute what lies within a stage again for the gradient instead of keeping it: less memory, more time.
      axis_name: pmap axis over which the batch is split; batch statistics are then those of the whole batch.

    Raises:
      InputError: the image is not [N, H, W, C], a side is below 193, or a number is out of its range.

    Source: section 3 and table 2; layers of the authors' DeconvNet_inference_deploy.prototxt. A 3x3 transposed convolution of stride 1 is
      a convolution with the kernel turned about and its channels exchanged, and is written as one here. The release's decoder begins
      with deviations of 0.01, this one with He's: batch norm makes both the same function, except of the classifier, in which 0.01 lets
      Adam turn all channels into detectors of the commonest class before any other class has a score (docs/design.md).
    """

    num_classes: int
    features: tuple[int, ...] = (64, 128, 256, 512, 512)
    middle: int = 4096
    upsample: Callable[..., nn.Module] = MaxUnpool
    dtype: Any = None
    remat: bool = False
    axis_name: str | None = None

    norm = "batch"  # not a field

    @nn.compact
    def __call__(self, image: Float[Array, "n h w c"], *, train: bool = False) -> Float[Array, "n h w k"]:
        self.check(image.shape)

        encoder = VGG16(self.features, norm="batch", dtype=self.dtype, remat=self.remat, axis_name=self.axis_name, name="encoder")
        stages = encoder(image, train=train)
        x = nn.Conv(self.middle, (7, 7), padding="VALID", kernel_init=he_normal, dtype=self.dtype, name="fc6")(stages[-1].pooled)
        x = self.norm_relu(x, "fc6", train)
        x = self.norm_relu(nn.Conv(self.middle, (1, 1), kernel_init=he_normal, dtype=self.dtype, name="fc7")(x), "fc7", train)

        x = self.norm_relu(FullConv(self.features[-1], dtype=self.dtype, name="fc6_deconv")(x), "fc6_deconv", train)
        for stage in (5, 4, 3, 2, 1):
            encoded, _, index = stages[stage - 1]
            x = self.upsample(self.features[stage - 1], dtype=self.dtype, name=f"up{stage}_sample")(x, [index])
            x = x[:, : encoded.shape[1], : encoded.shape[2]]
            x = self.decode(x, stage, train)
        logits = nn.Conv(self.num_classes, (1, 1), kernel_init=he_normal, dtype=self.dtype, name="logits")(x)
        return logits.astype(jnp.float32)

    @recomputed
    def decode(self, x: Array, stage: int, train: bool) -> Array:
        for i in range(CONVS[stage - 1], 0, -1):
            x = nn.Conv(
                self.features[stage - 1] if i > 1 or stage == 1 else self.features[stage - 2],
                (3, 3),
                kernel_init=he_normal,
                dtype=self.dtype,
                conv_general_dilated=ops.conv_general_dilated,
                name=f"deconv{stage}_{i}",
            )(x)
            x = self.norm_relu(x, f"deconv{stage}_{i}", train)
        return x

    def norm_relu(self, x: Array, name: str, train: bool) -> Array:
        return nn.relu(normalise(self, x, f"{name}_norm", train))

    def check(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 4:
            raise InputError(f"DeconvNet: got an image of shape {shape}; required [N, H, W, C]. Add the missing axes.")
        if self.num_classes < 1 or self.middle < 1:
            raise InputError(f"DeconvNet: got num_classes={self.num_classes}, middle={self.middle}; required at least 1 of each.")
        if any(side < SMALLEST for side in shape[1:3]):
            nearest = " x ".join(str(max(side, SMALLEST)) for side in shape[1:3])
            raise InputError(
                f"DeconvNet: got an image of {shape[1]} x {shape[2]} pixels; its 7 x 7 layer requires sides from {SMALLEST}. "
                f"The nearest legal size is {nearest}, the paper's 224 x 224. Enlarge the image or pad it."
            )


class FullConv(nn.Module):
    """7x7 transposed convolution of stride 1: [N, H, W, C] -> [N, H + 6, W + 6, features]."""

    features: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 f"]:
        kernel = self.param("kernel", he_normal, (7, 7, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        stride = 7 if x.shape[1:3] == (1, 1) else 1  # a single pixel has no next one, and stride 7 is a matrix product
        return ops.conv_transpose(x, kernel, stride) + bias
