"""SegNet and SegNet-Basic (Badrinarayanan, Kendall, Cipolla: SegNet: A Deep Convolutional Encoder-Decoder Architecture, TPAMI 2017)."""

import typing
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from jaxseg import ops
from jaxseg.errors import InputError
from jaxseg.models.layers import normalise, recomputed
from jaxseg.models.vgg import CONVS, VGG16
from jaxseg.upsample import MaxUnpool, he_normal

Decoder = Literal[
    "bilinear",
    "segnet",
    "segnet_addition",
    "segnet_single_channel",
    "fcn",
    "fcn_no_addition",
    "fcn_no_reduction",
    "fcn_no_addition_no_reduction",
]


class SegNet(nn.Module):
    """[N, H, W, C] -> float32 logits [N, H, W, num_classes]. Figure 2 of the paper: VGG16's convolutions, and their mirror image.

    Any H x W: pooling keeps the last, half empty window of an odd side, and the enlarged map is cropped to the size of the pooled one.

    Args:
      num_classes: 11 in the paper, which has 29,449,355 parameters then.
      features: channels of each stage, finest first.
      upsample: class or partial of `jaxseg.upsample`. The paper's puts each value back where the encoder's maximum was.
      dtype: compute type; parameters stay float32.
      remat: compute what lies within a stage again for the gradient instead of keeping it: less memory, more time.
      axis_name: pmap axis over which the batch is split; batch statistics are then those of the whole batch.

    Raises:
      InputError: the image is not [N, H, W, C], or a number is out of its range.

    Source: section 3; layers of the authors' segnet_train.prototxt, which keeps the biases in front of batch norm.
    """

    num_classes: int
    features: tuple[int, ...] = (64, 128, 256, 512, 512)
    upsample: Callable[..., nn.Module] = MaxUnpool
    dtype: Any = None
    remat: bool = False
    axis_name: str | None = None

    norm = "batch"  # not a field

    @nn.compact
    def __call__(self, image: Float[Array, "n h w c"], *, train: bool = False) -> Float[Array, "n h w k"]:
        _check("SegNet", image.shape, self.num_classes)
        encoder = VGG16(self.features, norm="batch", dtype=self.dtype, remat=self.remat, axis_name=self.axis_name, name="encoder")
        stages = encoder(image, train=train)

        x = stages[-1].pooled
        for stage in (5, 4, 3, 2, 1):
            encoded, _, index = stages[stage - 1]
            x = self.upsample(self.features[stage - 1], dtype=self.dtype, name=f"up{stage}_sample")(x, [index])
            x = x[:, : encoded.shape[1], : encoded.shape[2]]
            x = self.decode(x, stage, train)
        return self.conv(x, self.num_classes, "logits").astype(jnp.float32)

    @recomputed
    def decode(self, x: Array, stage: int, train: bool) -> Array:
        for i in range(CONVS[stage - 1], int(stage == 1), -1):  # the mirror image of conv1_1 is the classifier
            x = self.conv(x, self.features[stage - (1 if i > 1 else 2)], f"decode{stage}_{i}")
            x = nn.relu(normalise(self, x, f"decode{stage}_{i}_norm", train))
        return x

    def conv(self, x: Array, features: int, name: str) -> Array:
        fast = ops.conv_general_dilated
        return nn.Conv(features, (3, 3), kernel_init=he_normal, dtype=self.dtype, conv_general_dilated=fast, name=name)(x)


class SegNetBasic(nn.Module):
    """[N, H, W, C] -> float32 logits [N, H, W, num_classes]. Four encoders of one 7x7 convolution, and any decoder of the paper's table 1.

    The image is normalised across its channels first, which does something to pixels of 0..255 and next to nothing to standardised ones.
    Any H x W, as in SegNet.

    Args:
      num_classes: K below; 11 in the paper.
      decoder: which row of table 1.
        "bilinear": Bilinear-Interpolation. The last pooled map projected to K channels and enlarged four times by a fixed filter.
        "segnet": SegNet-Basic. Four times max unpooling, a 7x7 convolution and batch norm, without ReLU; projected to K channels.
        "segnet_addition": SegNet-Basic-EncoderAddition. Each decoder adds the encoder's map, before its pooling, to its own.
        "segnet_single_channel": SegNet-Basic-SingleChannelDecoder. Each channel has one 7x7 filter of its own.
        "fcn": FCN-Basic. The last pooled map projected to K channels; three times an 8x8 transposed convolution of stride 2, begun as
          bilinear interpolation, and batch norm, plus a projection of the encoder's pooled map; a fourth transposed convolution.
        "fcn_no_addition": FCN-Basic-NoAddition. Nothing is added.
        "fcn_no_reduction": FCN-Basic-NoDimReduction. 64 channels all the way: pooled maps are added as they are; projected at the end.
        "fcn_no_addition_no_reduction": FCN-Basic-NoAddition-NoDimReduction.
      features: channels of every map; the paper's 64.
      dtype: compute type; parameters stay float32.
      remat: compute what lies within a stage again for the gradient instead of keeping it: less memory, more time.
      axis_name: pmap axis over which the batch is split; batch statistics are then those of the whole batch.

    Raises:
      InputError: the image is not [N, H, W, C], no such decoder, or a number is out of its range.

    Source: section 3.1, figure 3 and table 1; layers of the authors' segnet_basic_train.prototxt. As in the paper, a convolution has no
      bias (the release has one in front of each batch norm, which subtracts it); the projections to K channels have. Of the FCN decoders
      the paper does not say whether batch norm follows their transposed convolutions; without it they diverge at its learning rate.
    """

    num_classes: int
    decoder: Decoder = "segnet"
    features: int = 64
    dtype: Any = None
    remat: bool = False
    axis_name: str | None = None

    norm = "batch"  # not a field

    @nn.compact
    def __call__(self, image: Float[Array, "n h w c"], *, train: bool = False) -> Float[Array, "n h w k"]:
        _check("SegNetBasic", image.shape, self.num_classes)
        if self.decoder not in typing.get_args(Decoder) or self.features < 1:
            raise InputError(
                f"SegNetBasic: got decoder={self.decoder!r}, features={self.features}; required one of "
                f"{', '.join(typing.get_args(Decoder))}, and features from 1. Correct the field."
            )
        addition = self.decoder in ("segnet_addition", "fcn", "fcn_no_reduction")

        x = local_response_norm(image)
        maps, pooled, indices = [], [x], []
        for level in (1, 2, 3, 4):
            x = nn.relu(self.conv(x, f"conv{level}", train))
            maps.append(x)
            x, index = ops.max_pool_with_indices(x)
            pooled.append(x)
            indices.append(index)

        if self.decoder.startswith("segnet"):
            for level in (4, 3, 2, 1):
                x = ops.max_unpool(x, indices[level - 1], size=maps[level - 1].shape[1:3])
                x = self.conv(x, f"decode{level}", train, depthwise=self.decoder == "segnet_single_channel")
                if addition:
                    x = x + maps[level - 1]
            return self.project(x, "logits").astype(jnp.float32)

        reduced = not self.decoder.endswith("no_reduction")
        if reduced:
            x = self.project(x, "logits" if self.decoder == "bilinear" else "score4")
        for level in (4, 3, 2, 1):
            if self.decoder == "bilinear":
                x = ops.resize(x, (2 * x.shape[1], 2 * x.shape[2]))
            else:
                x = BilinearDeconv(dtype=self.dtype, name=f"deconv{level}")(x)
            x = x[:, : maps[level - 1].shape[1], : maps[level - 1].shape[2]]
            if self.decoder != "bilinear" and not (reduced and level == 1):
                x = normalise(self, x, f"deconv{level}_norm", train)
            if addition and level > 1:
                x = x + (self.project(pooled[level - 1], f"score{level - 1}") if reduced else pooled[level - 1])
        return (x if reduced else self.project(x, "logits")).astype(jnp.float32)

    @recomputed
    def conv(self, x: Array, name: str, train: bool, depthwise: bool = False) -> Array:
        groups = self.features if depthwise else 1
        x = nn.Conv(
            self.features,
            (7, 7),
            use_bias=False,
            feature_group_count=groups,
            conv_general_dilated=ops.conv_general_dilated,
            kernel_init=he_normal,
            dtype=self.dtype,
            name=name,
        )(x)
        return normalise(self, x, f"{name}_norm", train)

    def project(self, x: Array, name: str) -> Array:
        return nn.Conv(self.num_classes, (1, 1), kernel_init=he_normal, dtype=self.dtype, name=name)(x)


class BilinearDeconv(nn.Module):
    """8x8 transposed convolution of stride 2 from and to C channels, which begins as the FCN's bilinear filter of each by itself.

    The filter is scaled so that a constant map stays constant: on 8x8 pixels at stride 2 the FCN's formula would multiply it by 4.
    """

    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
        c = x.shape[-1]
        start = ops.bilinear_kernel(4)[..., None, None] / 4 * jnp.eye(c)
        kernel = self.param("kernel", lambda key: jnp.asarray(start, jnp.float32))
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        return ops.conv_transpose(x, kernel, 2, padding=3)


def local_response_norm(x: Float[Array, "n h w c"], size: int = 5, alpha: float = 1e-4, beta: float = 0.75) -> Float[Array, "n h w c"]:
    """x / (1 + alpha / size * (sum of the squares of the `size` channels around each))^beta; channels outside count as 0.

    Source: Krizhevsky et al. 2012, section 3.3, in Caffe's and torch's form; the first layer of the authors' SegNet-Basic.

    >>> print(f"{float(local_response_norm(jnp.full((1, 1, 1, 1), 100.0))[0, 0, 0, 0]):.2f}")  # 100 / 1.2^0.75
    87.22
    """
    squares = jnp.pad(x * x, [(0, 0)] * (x.ndim - 1) + [(size // 2, (size - 1) // 2)])
    around = sum(squares[..., i : i + x.shape[-1]] for i in range(size))
    return x / (1 + alpha / size * around) ** beta


def _check(who: str, shape: tuple[int, ...], num_classes: int) -> None:
    if len(shape) != 4:
        raise InputError(f"{who}: got an image of shape {shape}; required [N, H, W, C]. Add the missing axes.")
    if num_classes < 1:
        raise InputError(f"{who}: got num_classes={num_classes}; required at least 1.")
