"""Direct heat-map prediction: a classifier's encoder, one 1x1 layer to the classes, and the coarse map as it is or enlarged.

Source: Long, Shelhamer & Darrell 2015, Fully Convolutional Networks for Semantic Segmentation, sections 3.1 and 3.2 and figure 2;
`PlainEncoder(dilated=True)` is the filter dilation (a trous) of section 3.2, Holschneider et al. 1989.
"""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxseg import ops
from jaxseg.errors import InputError
from jaxseg.models.layers import normalise, recomputed
from jaxseg.upsample import he_normal


class PlainEncoder(nn.Module):
    """[N, H, W, C] -> maps of strides 2, 4, 8, ..: at each level a 3x3 convolution, ReLU and a 2x2 max pooling.

    Args:
      features: channels of each level, finest first.
      norm: between convolution and ReLU: None, "batch" or "group".
      dilated: the same parameters without strides: level l's convolution and pooling step over 2^l pixels instead, and all maps have the
        image's size. Every 2^levels-th pixel of the last is then the strided encoder's last map, the others what it gives for shifted
        images (`shift_and_stitch`), except near the border, where the two pad differently.
    """

    features: tuple[int, ...] = (16, 32, 64)
    norm: Literal["batch", "group"] | None = None
    dilated: bool = False
    dtype: Any = None
    remat: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image: Float[Array, "n h w c"], *, train: bool = False) -> list[Float[Array, "n h2 w2 f"]]:
        if self.norm not in (None, "batch", "group") or not self.features or min(self.features) < 1:
            raise InputError(
                f"PlainEncoder: got norm={self.norm!r}, features={self.features}; required norm None, 'batch' or 'group', and at least one "
                "level of at least 1 channel."
            )
        x, maps = image, []
        for level in range(len(self.features)):
            x = self.level(x, level, train)
            maps.append(x)
        return maps

    @recomputed
    def level(self, x: Array, level: int, train: bool) -> Array:
        rate = 2**level if self.dilated else 1
        x = nn.Conv(
            self.features[level],
            (3, 3),
            kernel_dilation=rate,
            use_bias=self.norm is None,
            kernel_init=he_normal,
            dtype=self.dtype,
            conv_general_dilated=ops.conv_general_dilated,
            name=f"conv{level}",
        )(x)
        x = nn.relu(normalise(self, x, f"norm{level}", train))
        return _max_pool_atrous(x, rate) if self.dilated else ops.max_pool(x)


class DirectHeatmap(nn.Module):
    """[N, H, W, C] -> float32 logits [N, H, W, num_classes], or the coarse map [N, h, w, num_classes] of the encoder's stride.

    Args:
      num_classes: 2 for a binary problem (background, foreground).
      encoder: class or partial, `encoder(dtype=, axis_name=, name=)(image, train=)` -> maps, coarsest last; of a last `vgg.Stage`
        the pooled map is taken.
      enlarge: how the coarse map is brought to image size, "nearest" or "bilinear"; None leaves it as it is.
      dtype: compute type; parameters stay float32.
      remat: compute what lies within a level of the encoder again for the gradient instead of keeping it: less memory, more time.
      axis_name: pmap axis over which the batch is split; batch statistics are then those of the whole batch.
    """

    num_classes: int
    encoder: Callable[..., nn.Module] = PlainEncoder
    enlarge: Literal["nearest", "bilinear"] | None = "bilinear"
    dtype: Any = None
    remat: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image: Float[Array, "n h w c"], *, train: bool = False) -> Float[Array, "n h2 w2 k"]:
        if image.ndim != 4:
            raise InputError(f"DirectHeatmap: got an image of shape {image.shape}; required [N, H, W, C]. Add the missing axes.")
        if self.enlarge not in (None, "nearest", "bilinear") or self.num_classes < 1:
            raise InputError(
                f"DirectHeatmap: got enlarge={self.enlarge!r}, num_classes={self.num_classes}; required 'nearest', 'bilinear' or None, and "
                "at least 1 class."
            )
        remat = {"remat": True} if self.remat else {}  # other people's encoders need not have it
        encoder = self.encoder(dtype=self.dtype, **remat, axis_name=self.axis_name, name="encoder")
        last = encoder(image, train=train)[-1]
        x = getattr(last, "pooled", last)
        x = nn.Conv(self.num_classes, (1, 1), kernel_init=he_normal, dtype=self.dtype, name="logits")(x).astype(jnp.float32)
        return ops.resize(x, image.shape[1:3], self.enlarge) if self.enlarge else x


def _max_pool_atrous(x: Float[Array, "n h w c"], rate: int) -> Float[Array, "n h w c"]:
    """The maximum of four pixels, `rate` apart; those behind the last row and column do not count."""
    for axis in (1, 2):
        step = min(rate, x.shape[axis])
        shift = [(-step, step, 0) if a == axis else (0, 0, 0) for a in range(4)]
        x = jnp.maximum(x, lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), shift))
    return x
