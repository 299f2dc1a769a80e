"""The U-Net of milesial/Pytorch-UNet, of which there are public weights."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg import ops
from jaxseg.errors import InputError
from jaxseg.models.layers import normalise, recomputed
from jaxseg.upsample import TransposedConv, he_normal


class MilesialUNet(nn.Module):
    """[N, H, W, C] -> float32 logits [N, H, W, num_classes], any H x W from 16 on.

    `UNet(padding="same", norm="batch")` without dropout, but where a side is odd: the pooling leaves out the last row, the map that comes
    back is filled up with zeros. With bilinear=True the decoder, too, has other channels.

    Args:
      num_classes: 2 for a binary problem (background, foreground).
      features: channels of each level, finest first.
      bilinear: enlarge bilinearly, corners aligned, at half of the coarsest channels, instead of by transposed convolutions.
      dtype: compute type; parameters stay float32.
      remat: compute what lies within a block again for the gradient instead of keeping it: less memory, more time.
      axis_name: pmap axis over which the batch is split; batch statistics are then those of the whole batch.

    Raises:
      InputError: the image has not four axes, or a pooling would leave nothing of it.
    """

    num_classes: int
    features: tuple[int, ...] = (64, 128, 256, 512, 1024)
    bilinear: bool = False
    dtype: Any = None
    remat: bool = False
    axis_name: str | None = None

    norm = "batch"

    @nn.compact
    def __call__(self, image: Float[Array, "n h w c"], *, train: bool = False) -> Float[Array, "n h w k"]:
        depth, share = len(self.features) - 1, 2 if self.bilinear else 1
        if image.ndim != 4 or any(side < 2**depth for side in image.shape[1:3]):
            raise InputError(
                f"MilesialUNet: got an image of shape {image.shape}; required [N, H, W, C], H and W from {2**depth}, since {depth} "
                "poolings halve them. Add the missing axes, or pad the image."
            )
        x, skips = image, []
        for level in range(depth):
            x = self.convs(x, (self.features[level],) * 2, f"down{level}", train)
            skips.append(x)
            x = ops.max_pool(x, ceil_mode=False)
        x = self.convs(x, (self.features[depth] // share,) * 2, f"down{depth}", train)

        for level in reversed(range(depth)):
            if self.bilinear:
                x = ops.resize(x, (2 * x.shape[1], 2 * x.shape[2]), "bilinear", align_corners=True)
            else:
                x = TransposedConv(x.shape[-1] // 2, dtype=self.dtype, name=f"up{level}_sample")(x)
            skip = skips[level]
            x = jnp.pad(x, [(0, 0), *((0, n - m) for n, m in zip(skip.shape[1:3], x.shape[1:3], strict=True)), (0, 0)])
            x = jnp.concatenate([skip, x], axis=-1)
            out = self.features[level] // (share if level else 1)
            x = self.convs(x, (x.shape[-1] // 2 if self.bilinear else out, out), f"up{level}", train)

        logits = nn.Conv(self.num_classes, (1, 1), kernel_init=he_normal, dtype=self.dtype, name="logits")(x)
        return logits.astype(jnp.float32)

    @recomputed
    def convs(self, x: Array, features: tuple[int, ...], name: str, train: bool) -> Array:
        for i, width in enumerate(features, 1):
            x = nn.Conv(
                width,
                (3, 3),
                use_bias=False,
                kernel_init=he_normal,
                dtype=self.dtype,
                conv_general_dilated=ops.conv_general_dilated,
                name=f"{name}_conv{i}",
            )(x)
            x = nn.relu(normalise(self, x, f"{name}_norm{i}", train))
        return x
