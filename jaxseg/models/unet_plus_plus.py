"""UNet++ (Zhou, Siddiquee, Tajbakhsh, Liang: UNet++: A Nested U-Net Architecture for Medical Image Segmentation, DLMIA 2018)."""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg import ops
from jaxseg.errors import InputError
from jaxseg.models.layers import normalise, recomputed
from jaxseg.upsample import TransposedConv, he_normal


class UNetPlusPlus(nn.Module):
    """[N, H, W, C] -> float32 logits [N, H, W, num_classes], any H x W. The defaults are figure 1 of the paper and the authors' release.

    U-Nets of depths 1, 2, ... that share one encoder. Node x{i}_{j} is level i (finest 0) of column j: two convolutions of all earlier
    nodes of its level and of the enlarged node x{i+1}_{j-1} below (equation 1).

    Args:
      num_classes: 2 for a binary problem (background, foreground).
      features: channels of each level, finest first.
      norm: what stands between a convolution and its ReLU: None (the paper), "batch" or "group".
      upsample: class or partial of `jaxseg.upsample`, which halves the channels.
      deep_supervision: a head at each node of level 0, as the paper's training needs it. With train=True the result is then a tuple of all
        heads' logits, shallowest first, each [N, H, W, num_classes]; their losses are averaged.
      level: evaluate only the columns up to this one, the paper's pruning: the logits are those of head `level` of the whole network,
        whose variables fit as they are if it was trained with deep_supervision. None is the last column.
      dtype: compute type; parameters stay float32.
      remat: compute what lies within a block again for the gradient instead of keeping it: less memory, more time.
      axis_name: pmap axis over which the batch is split; batch statistics are then those of the whole batch.

    Raises:
      InputError: the image has not four axes, or `level` is not one of the columns 1 .. len(features) - 1.
    """

    num_classes: int
    features: tuple[int, ...] = (32, 64, 128, 256, 512)
    norm: Literal["batch", "group"] | None = None
    upsample: Callable[..., nn.Module] = TransposedConv
    deep_supervision: bool = False
    level: int | None = None
    dtype: Any = None
    remat: bool = False
    axis_name: str | None = None

    @property
    def head_weights(self) -> tuple[float, ...]:
        heads = (len(self.features) - 1) if self.level is None else self.level
        return (1 / heads,) * heads

    @nn.compact
    def __call__(
        self, image: Float[Array, "n h w c"], *, train: bool = False
    ) -> Float[Array, "n h w k"] | tuple[Float[Array, "n h w k"], ...]:
        if image.ndim != 4:
            raise InputError(f"UNetPlusPlus: got an image of shape {image.shape}; required [N, H, W, C]. Add the missing axes.")
        last = len(self.features) - 1 if self.level is None else self.level
        if not 1 <= last < len(self.features):
            raise InputError(
                f"UNetPlusPlus: got level={self.level}, {len(self.features)} features; required a column from 1 to "
                f"{len(self.features) - 1}, one less than there are features. Choose one of them, or None for the last."
            )

        # Column 0 is the encoder.
        node, pooled, indices = {}, image, []
        for i in range(last + 1):
            node[i, 0] = self.convs(pooled, i, 0, train)
            if i < last:
                pooled, index = ops.max_pool_with_indices(node[i, 0])
                indices.append(index)

        # Column j completes the U-Net of depth j.
        for j in range(1, last + 1):
            for i in range(last + 1 - j):
                earlier = [node[i, k] for k in range(j)]
                up = self.upsample(self.features[i], dtype=self.dtype, name=f"x{i}_{j}_sample")(node[i + 1, j - 1], indices[i : i + 1])
                up = up[:, : earlier[0].shape[1], : earlier[0].shape[2]]  # the last pooling window of an odd side is half empty
                node[i, j] = self.convs(jnp.concatenate([*earlier, up], axis=-1), i, j, train)

        heads = [self.head(node[0, j], j) for j in range(1 if self.deep_supervision else last, last + 1)]
        return tuple(heads) if train and self.deep_supervision else heads[-1]

    @recomputed
    def convs(self, x: Array, i: int, j: int, train: bool) -> Array:
        for n in (1, 2):
            x = nn.Conv(
                self.features[i],
                (3, 3),
                use_bias=self.norm is None,  # a norm subtracts it again
                kernel_init=he_normal,
                dtype=self.dtype,
                conv_general_dilated=ops.conv_general_dilated,
                name=f"x{i}_{j}_conv{n}",
            )(x)
            x = nn.relu(normalise(self, x, f"x{i}_{j}_norm{n}", train))
        return x

    def head(self, x: Array, j: int) -> Array:
        return nn.Conv(self.num_classes, (1, 1), kernel_init=he_normal, dtype=self.dtype, name=f"logits{j}")(x).astype(jnp.float32)
