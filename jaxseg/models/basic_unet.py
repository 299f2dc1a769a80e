"""MONAI's BasicUNet, after Falk et al.: U-Net: deep learning for cell counting, detection, and morphometry, Nature Methods 2019."""

from typing import Any, Literal, get_args

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg import ops
from jaxseg.errors import InputError
from jaxseg.models.layers import recomputed
from jaxseg.upsample import TransposedConv, he_normal

Mode = Literal["deconv", "nontrainable", "pixelshuffle"]


class BasicUNet(nn.Module):
    """[N, H, W, C] -> float32 logits [N, H, W, num_classes], any H x W from 16 on. The defaults are MONAI's, of 2-D.

    A U-Net with affine instance norms and leaky ReLUs of slope 0.1. The poolings leave out an odd side's last row; the map that comes back
    repeats its own.

    Args:
      num_classes: 2 for a binary problem (background, foreground).
      features: channels of each level, finest first, and of the decoder's last stage.
      upsample: in MONAI's words "deconv", a transposed convolution; "nontrainable", a 1x1 convolution where channels are to be halved,
        then bilinear, corners aligned; or "pixelshuffle", with the means of 2x2 pixels that are to hide its checkerboard.
      dtype: compute type; parameters stay float32.
      remat: compute what lies within a block again for the gradient instead of keeping it: less memory, more time.
      axis_name: as in the other models; unused, since an instance norm sees no other example.

    Raises:
      InputError: the image has not four axes, a pooling would leave nothing of it, or the mode is unknown.

    Source: monai.networks.nets.BasicUNet of MONAI 1.6.
    """

    num_classes: int
    features: tuple[int, ...] = (32, 32, 64, 128, 256, 32)
    upsample: Mode = "deconv"
    dtype: Any = None
    remat: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image: Float[Array, "n h w c"], *, train: bool = False) -> Float[Array, "n h w k"]:
        depth = len(self.features) - 2
        if self.upsample not in get_args(Mode):
            raise InputError(f"BasicUNet: got upsample={self.upsample!r}; required one of {', '.join(get_args(Mode))}.")
        if image.ndim != 4 or any(side < 2**depth for side in image.shape[1:3]):
            raise InputError(
                f"BasicUNet: got an image of shape {image.shape}; required [N, H, W, C], H and W from {2**depth}, since {depth} poolings "
                "halve them. Add the missing axes, or pad the image."
            )
        x, skips = image, []
        for level in range(depth):
            x = self.convs(x, self.features[level], f"down{level}")
            skips.append(x)
            x = ops.max_pool(x, ceil_mode=False)
        x = self.convs(x, self.features[depth], f"down{depth}")

        for level in reversed(range(depth)):
            x = self.enlarged(x, x.shape[-1] // (2 if level else 1), f"up{level}_sample")
            skip = skips[level]
            edges = [(0, 0), *((0, n - m) for n, m in zip(skip.shape[1:3], x.shape[1:3], strict=True)), (0, 0)]
            x = jnp.concatenate([skip, jnp.pad(x, edges, "edge")], axis=-1)
            x = self.convs(x, self.features[level if level else -1], f"up{level}")

        logits = nn.Conv(self.num_classes, (1, 1), kernel_init=he_normal, dtype=self.dtype, name="logits")(x)
        return logits.astype(jnp.float32)

    def enlarged(self, x: Array, features: int, name: str) -> Array:
        if self.upsample == "deconv":
            return TransposedConv(features, dtype=self.dtype, name=name)(x)
        if self.upsample == "nontrainable":
            if features != x.shape[-1]:
                x = nn.Conv(features, (1, 1), kernel_init=he_normal, dtype=self.dtype, name=name)(x)
            return ops.resize(x, (2 * x.shape[1], 2 * x.shape[2]), "bilinear", align_corners=True)
        x = self.conv(x, 4 * features, name, ops.icnr(he_normal, order="crd"))
        x = jnp.pad(ops.depth_to_space(x, order="crd"), [(0, 0), (1, 0), (1, 0), (0, 0)])
        x = (x[:, :-1] + x[:, 1:]) / 2
        return (x[:, :, :-1] + x[:, :, 1:]) / 2

    @recomputed
    def convs(self, x: Array, features: int, name: str) -> Array:
        for i in (1, 2):
            x = self.conv(x, features, f"{name}_conv{i}", he_normal)
            # Not the fast variance, E[x^2] - E[x]^2, which is negative on raw 16-bit images.
            x = nn.InstanceNorm(epsilon=1e-5, use_fast_variance=False, dtype=self.dtype, name=f"{name}_norm{i}")(x)
            x = nn.leaky_relu(x, 0.1)
        return x

    def conv(self, x: Array, features: int, name: str, init: Any) -> Array:
        return nn.Conv(features, (3, 3), kernel_init=init, dtype=self.dtype, conv_general_dilated=ops.conv_general_dilated, name=name)(x)
