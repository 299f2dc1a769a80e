"""U-Net on a classifier's encoder, as segmentation_models.pytorch has it (Iakubovskii 2019; after Iglovikov & Shvets: TernausNet, 2018)."""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg import ops
from jaxseg.errors import InputError
from jaxseg.models.efficientnet_lite import EfficientNetLite0
from jaxseg.models.layers import normalise, recomputed
from jaxseg.models.resnet import RESNETS
from jaxseg.models.vgg import VGG16

ENCODERS = ("resnet18", "resnet34", "resnet50", "vgg16", "efficientnet_lite0")
he_uniform = nn.initializers.he_uniform()


class EncoderUNet(nn.Module):
    """[N, H, W, C] -> float32 logits [N, H, W, num_classes], of any H and W; with vgg16 from 32 on.

    The decoder enlarges the encoder's last map step by step to the size of the map before, concatenates the two, and convolves twice. No
    skip comes from the image's own resolution.

    Args:
      num_classes: 2 for a binary problem (background, foreground).
      encoder: one of `ENCODERS`.
      decoder: channels of the decoder's five blocks, coarsest first.
      upsample: None enlarges by nearest neighbours, without a convolution; a class or partial of `jaxseg.upsample` also changes the
        channels to those of the block. `MaxUnpool` needs the encoder vgg16: the others halve by strides.
      width: channels of the encoder's first map, 64 in the papers; efficientnet_lite0 has but one width.
      frozen: what training leaves as it is, for weights learned elsewhere: "norm", the statistics of the encoder's batch norms; "encoder",
        all of it, and no gradient is computed there (give its weights rate 0 too: `config.rate_per_part`).
      dtype: compute type; parameters stay float32.
      remat: compute what lies within a block again for the gradient instead of keeping it: less memory, more time.
      axis_name: pmap axis over which the batch is split; batch statistics are then those of the whole batch.

    Raises:
      InputError: the image is not [N, H, W, C] or too small, or a field is out of its range.

    Source: segmentation_models_pytorch.Unet 0.6.
    """

    num_classes: int
    encoder: Literal["resnet18", "resnet34", "resnet50", "vgg16", "efficientnet_lite0"] = "resnet34"
    decoder: tuple[int, ...] = (256, 128, 64, 32, 16)
    upsample: Callable[..., nn.Module] | None = None
    width: int = 64
    frozen: Literal["norm", "encoder"] | None = None
    dtype: Any = None
    remat: bool = False
    axis_name: str | None = None

    norm = "batch"

    @nn.compact
    def __call__(self, image: Float[Array, "n h w c"], *, train: bool = False) -> Float[Array, "n h w k"]:
        self.check(image.shape)
        hold = jax.lax.stop_gradient if self.frozen == "encoder" else lambda maps: maps
        encoding = train and self.frozen is None
        options = {"dtype": self.dtype, "remat": self.remat, "axis_name": self.axis_name, "name": "encoder"}
        if self.encoder == "vgg16":
            features = tuple(self.width * times for times in (1, 2, 4, 8, 8))
            stages = hold(VGG16(features, ceil_mode=False, **options)(image, train=encoding))
            x, skips, indices = stages[-1].pooled, [stage.map for stage in stages[1:]], [[stage.index] for stage in stages]
            x = self.convs(x, x.shape[-1], "center", train)
        elif self.encoder == "efficientnet_lite0":
            *skips, x = hold(EfficientNetLite0(**options)(image, train=encoding))
            indices = [[]] * 5
        else:
            *skips, x = hold(RESNETS[self.encoder](width=self.width, **options)(image, train=encoding))
            indices = [[]] * 5

        for level, features in zip(reversed(range(5)), self.decoder, strict=True):  # of 16 pixels, 8, 4, 2 and 1
            height, width = (skips[level - 1] if level else image).shape[1:3]
            if self.upsample is None:
                x = ops.resize(x, (height, width), "nearest")
            else:
                x = self.upsample(features, dtype=self.dtype, name=f"up{level}_sample")(x, indices[level])
                x = x[:, :height, :width]
                x = jnp.pad(x, ((0, 0), (0, height - x.shape[1]), (0, width - x.shape[2]), (0, 0)), mode="edge")
            x = self.convs(jnp.concatenate([x, skips[level - 1]], axis=-1) if level else x, features, f"up{level}", train)

        logits = nn.Conv(
            self.num_classes, (3, 3), padding=1, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype, name="logits"
        )(x)
        return logits.astype(jnp.float32)

    @recomputed
    def convs(self, x: Array, features: int, name: str, train: bool) -> Array:
        for i in (1, 2):
            x = nn.Conv(
                features,
                (3, 3),
                padding=1,
                use_bias=False,
                kernel_init=he_uniform,
                dtype=self.dtype,
                conv_general_dilated=ops.conv_general_dilated,
                name=f"{name}_conv{i}",
            )(x)
            x = nn.relu(normalise(self, x, f"{name}_norm{i}", train))
        return x

    def check(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 4:
            raise InputError(f"EncoderUNet: got an image of shape {shape}; required [N, H, W, C]. Add the missing axes.")
        if self.encoder not in ENCODERS or len(self.decoder) != 5 or min(*self.decoder, self.width, self.num_classes) < 1:
            raise InputError(
                f"EncoderUNet: got encoder={self.encoder!r}, decoder={self.decoder}, width={self.width}, num_classes={self.num_classes}; "
                f"required one of {', '.join(ENCODERS)}, 5 numbers of channels from 1, a width from 1, and at least 1 class."
            )
        if self.encoder == "vgg16" and any(side < 32 for side in shape[1:3]):
            raise InputError(
                f"EncoderUNet: got an image of {shape[1]} x {shape[2]} pixels; the nearest legal side is 32, five poolings of vgg16. "
                "Pad the image by reflection, or take another encoder."
            )
        if self.encoder == "efficientnet_lite0" and self.width != 64:
            raise InputError(f"EncoderUNet: got width={self.width}; efficientnet_lite0 has but one width. Leave it out.")
