"""Attention U-Net (Oktay et al.: Attention U-Net: Learning Where to Look for the Pancreas, MIDL 2018, arXiv 1804.03999), for images."""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg import ops
from jaxseg.errors import InputError
from jaxseg.models.layers import normalise, recomputed
from jaxseg.upsample import he_normal


class AttentionUNet(nn.Module):
    """[N, H, W, C] -> float32 logits [N, H, W, num_classes], any H x W. Figure 1 of the paper, its volumes made images.

    Every skip but the finest, whose features are too simple to choose by, passes a gate. The logits are a 1x1 convolution of the heads of
    all levels, the paper's deep supervision. What the paper leaves open is that of the authors' release (Attention-Gated-Networks).

    Args:
      num_classes: 2 for a binary problem (background, foreground).
      features: channels of each level, finest first.
      norm: what stands between a convolution and its ReLU: "batch" (the paper), "group" or None.
      upsample: None enlarges the map below bilinearly with all its channels, as the paper does; or a class or partial of
        `jaxseg.upsample`, which reduces them to those of the level.
      dtype: compute type; parameters stay float32.
      remat: compute what lies within a block again for the gradient instead of keeping it: less memory, more time.
      axis_name: pmap axis over which the batch is split; batch statistics are then those of the whole batch.

    Raises:
      InputError: the image has not four axes.
    """

    num_classes: int
    features: tuple[int, ...] = (16, 32, 64, 128, 256)
    norm: Literal["batch", "group"] | None = "batch"
    upsample: Callable[..., nn.Module] | None = None
    dtype: Any = None
    remat: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image: Float[Array, "n h w c"], *, train: bool = False) -> Float[Array, "n h w k"]:
        if image.ndim != 4:
            raise InputError(f"AttentionUNet: got an image of shape {image.shape}; required [N, H, W, C]. Add the missing axes.")
        depth = len(self.features) - 1
        x, skips, indices = image, [], []
        for level in range(depth):
            x = self.convs(x, level, f"down{level}", train)
            skips.append(x)
            x, index = ops.max_pool_with_indices(x)
            indices.append(index)
        x = self.convs(x, depth, f"down{depth}", train)
        signal = self.conv(x, depth, 1, "signal", "", train)

        heads = []
        for level in reversed(range(depth)):
            skip = skips[level]
            if level > 0:
                skip = skip * AttentionGate(self.dtype, name=f"gate{level}")(skip, signal)
            if self.upsample is None:
                x = _enlarged(x, 2)
            else:
                x = self.upsample(self.features[level], dtype=self.dtype, name=f"up{level}_sample")(x, indices[level : level + 1])
            x = x[:, : skip.shape[1], : skip.shape[2]]  # the last pooling window of an odd side is half empty
            signal = x = self.convs(jnp.concatenate([skip, x], axis=-1), level, f"up{level}", train)
            head = nn.Conv(self.num_classes, (1, 1), kernel_init=he_normal, dtype=self.dtype, name=f"head{level}")(x)
            heads.append(_enlarged(head, 2**level)[:, : image.shape[1], : image.shape[2]])
        logits = nn.Conv(self.num_classes, (1, 1), kernel_init=he_normal, dtype=self.dtype, name="logits")(
            jnp.concatenate(heads[::-1], axis=-1)
        )
        return logits.astype(jnp.float32)

    @recomputed
    def convs(self, x: Array, level: int, name: str, train: bool) -> Array:
        for i in (1, 2):
            x = self.conv(x, level, 3, name, str(i), train)
        return x

    def conv(self, x: Array, level: int, side: int, name: str, i: str, train: bool) -> Array:
        x = nn.Conv(
            self.features[level],
            (side, side),
            use_bias=self.norm is None,  # a norm subtracts it again
            kernel_init=he_normal,
            dtype=self.dtype,
            conv_general_dilated=ops.conv_general_dilated,
            name=f"{name}_conv{i}",
        )(x)
        return nn.relu(normalise(self, x, f"{name}_norm{i}", train))


class AttentionGate(nn.Module):
    """Figure 2: from a skip and the coarser gating signal the coefficient of each pixel, in 0..1.

    sigmoid(psi . relu(W_x . skip + W_g . signal + b_g) + b_psi) on the signal's grid, to which W_x strides, then bilinearly enlarged
    (equations 1 and 2).
    """

    dtype: Any = None

    @nn.compact
    def __call__(self, skip: Float[Array, "n h w c"], signal: Float[Array, "n h2 w2 d"]) -> Float[Array, "n h w 1"]:
        c = skip.shape[-1]
        x = nn.Conv(c, (2, 2), 2, use_bias=False, kernel_init=he_normal, dtype=self.dtype, name="skip")(skip)
        g = nn.Conv(c, (1, 1), kernel_init=he_normal, dtype=self.dtype, name="signal")(signal)
        one = nn.Conv(1, (1, 1), kernel_init=he_normal, dtype=self.dtype, conv_general_dilated=ops.conv_general_dilated, name="psi")
        psi = one(nn.relu(x + g))
        return _enlarged(nn.sigmoid(psi), 2)[:, : skip.shape[1], : skip.shape[2]]


def _enlarged(x: Float[Array, "n h w c"], scale: int) -> Float[Array, "n rh rw c"]:
    return ops.resize(x, (scale * x.shape[1], scale * x.shape[2]), "bilinear")
