"""Deep residual U-Net (Zhang, Liu, Wang: Road Extraction by Deep Residual U-Net, IEEE GRSL 2018, arXiv 1711.10684)."""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg import ops
from jaxseg.errors import InputError
from jaxseg.models.layers import normalise, recomputed
from jaxseg.upsample import he_normal


class ResidualUNet(nn.Module):
    """[N, H, W, C] -> float32 logits [N, H, W, num_classes], any H x W. The defaults are figure 2 and table 1 of the paper.

    A U-Net of pre-activation residual units whose first convolution strides instead of a pooling. Where a unit changes the number of
    channels, and all do, its shortcut is a 1x1 convolution, which table 1 does not list.

    Args:
      num_classes: 2 for a binary problem (background, foreground).
      features: channels of each level, finest first.
      norm: what stands before the ReLU of each convolution: "batch" (the paper), "group" or None.
      upsample: None enlarges the map below by nearest with all its channels, which the paper leaves open and its 7.8 million parameters
        imply; or a class or partial of `jaxseg.upsample`, which reduces them to those of the level. There are no pooling positions.
      dtype: compute type; parameters stay float32.
      remat: compute what lies within a unit again for the gradient instead of keeping it: less memory, more time.
      axis_name: pmap axis over which the batch is split; batch statistics are then those of the whole batch.

    Raises:
      InputError: the image has not four axes.
    """

    num_classes: int
    features: tuple[int, ...] = (64, 128, 256, 512)
    norm: Literal["batch", "group"] | None = "batch"
    upsample: Callable[..., nn.Module] | None = None
    dtype: Any = None
    remat: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image: Float[Array, "n h w c"], *, train: bool = False) -> Float[Array, "n h w k"]:
        if image.ndim != 4:
            raise InputError(f"ResidualUNet: got an image of shape {image.shape}; required [N, H, W, C]. Add the missing axes.")

        # Encoding, the bridge last.
        x, skips = image, []
        for level in range(len(self.features)):
            x = self.unit(x, level, f"down{level}", train)
            skips.append(x)

        # Decoding.
        for level in reversed(range(len(self.features) - 1)):
            skip = skips[level]
            if self.upsample is None:
                x = ops.resize(x, (2 * x.shape[1], 2 * x.shape[2]), "nearest")
            else:
                x = self.upsample(self.features[level], dtype=self.dtype, name=f"up{level}_sample")(x)
            x = x[:, : skip.shape[1], : skip.shape[2]]  # half of an odd side is rounded up
            x = self.unit(jnp.concatenate([skip, x], axis=-1), level, f"up{level}", train)

        logits = nn.Conv(self.num_classes, (1, 1), kernel_init=he_normal, dtype=self.dtype, name="logits")(x)
        return logits.astype(jnp.float32)

    @recomputed
    def unit(self, x: Array, level: int, name: str, train: bool) -> Array:
        """Figure 1b: norm, ReLU and convolution, twice, added to the shortcut; the image itself is convolved as it is."""
        stride = 2 if name.startswith("down") and level > 0 else 1
        shortcut = self.conv(x, level, 1, stride, f"{name}_shortcut")
        for i, step in ((1, stride), (2, 1)):
            if name != "down0" or i > 1:
                x = nn.relu(normalise(self, x, f"{name}_norm{i}", train))
            x = self.conv(x, level, 3, step, f"{name}_conv{i}")
        return x + shortcut

    def conv(self, x: Array, level: int, side: int, stride: int, name: str) -> Array:
        return nn.Conv(
            self.features[level],
            (side, side),
            stride,
            padding=side // 2,
            use_bias=self.norm is None,  # the next unit's norm subtracts it again
            kernel_init=he_normal,
            dtype=self.dtype,
            conv_general_dilated=ops.conv_general_dilated,
            name=name,
        )(x)
