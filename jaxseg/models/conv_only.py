"""Convolutions only: neither pooling nor strides, so that nothing needs enlarging, and each pixel is judged by its close surroundings.

The simplest of the approaches that Long, Shelhamer & Darrell 2015 (section 3) and the courses that follow it begin with.
"""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg import ops
from jaxseg.errors import InputError
from jaxseg.models.layers import normalise, recomputed
from jaxseg.upsample import he_normal


class ConvOnly(nn.Module):
    """[N, H, W, C] -> float32 logits [N, H, W, num_classes]; a logit sees 1 + 2 len(features) pixels each way (13 by default).

    Args:
      num_classes: 2 for a binary problem (background, foreground).
      features: channels of each 3x3 convolution.
      norm: what stands between a convolution and its ReLU: None, "batch" or "group".
      dtype: compute type; parameters stay float32.
      remat: compute what lies within a layer again for the gradient instead of keeping it: less memory, more time.
      axis_name: pmap axis over which the batch is split; batch statistics are then those of the whole batch.
    """

    num_classes: int
    features: tuple[int, ...] = (32, 32, 32, 32, 32, 32)
    norm: Literal["batch", "group"] | None = None
    dtype: Any = None
    remat: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image: Float[Array, "n h w c"], *, train: bool = False) -> Float[Array, "n h w k"]:
        if image.ndim != 4:
            raise InputError(f"ConvOnly: got an image of shape {image.shape}; required [N, H, W, C]. Add the missing axes.")
        if self.norm not in (None, "batch", "group") or not self.features or min(*self.features, self.num_classes) < 1:
            raise InputError(
                f"ConvOnly: got norm={self.norm!r}, features={self.features}, num_classes={self.num_classes}; required norm None, 'batch' "
                "or 'group', and at least one layer, of at least 1 channel each, and 1 class."
            )
        x = image
        for i in range(len(self.features)):
            x = self.layer(x, i, train)
        return nn.Conv(self.num_classes, (1, 1), kernel_init=he_normal, dtype=self.dtype, name="logits")(x).astype(jnp.float32)

    @recomputed
    def layer(self, x: Array, i: int, train: bool) -> Array:
        x = nn.Conv(
            self.features[i],
            (3, 3),
            use_bias=self.norm is None,
            kernel_init=he_normal,
            dtype=self.dtype,
            conv_general_dilated=ops.conv_general_dilated,
            name=f"conv{i}",
        )(x)
        return nn.relu(normalise(self, x, f"norm{i}", train))
