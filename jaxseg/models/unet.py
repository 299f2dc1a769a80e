"""U-Net (Ronneberger, Fischer, Brox: U-Net: Convolutional Networks for Biomedical Image Segmentation, MICCAI 2015)."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxseg import ops
from jaxseg.errors import InputError
from jaxseg.models.layers import Dropout, normalise, recomputed
from jaxseg.upsample import TransposedConv, center_crop, he_normal


class UNet(nn.Module):
    """[N, H, W, C] -> float32 logits [N, H', W', num_classes]. The defaults are figure 1 of the paper: 572 x 572 -> 388 x 388.

    Volumes [N, D, H, W, C] are taken likewise: 3x3x3 convolutions, 2x2x2 poolings and up-convolutions. Their variables are volumes' too.

    Args:
      num_classes: 2 for a binary problem (background, foreground).
      features: channels of each level, finest first; its length is the number of levels, one more than the poolings.
      padding: "valid" is the paper's: each 3x3 convolution loses a pixel at every edge, skips are centre-cropped, H' < H, and only
        sizes whose pooled maps are all even are legal. "same" takes any H x W and gives H' = H, W' = W.
      norm: what stands between a convolution and its ReLU: None (the paper), "batch" or "group".
      upsample: class or partial of `jaxseg.upsample`, which halves the channels. Of volumes only `TransposedConv`.
      dropout: rate at the end of the contracting path: after its two coarsest levels, as in the authors' release.
      dtype: compute type; parameters stay float32.
      remat: compute what lies within a block again for the gradient instead of keeping it: less memory, more time.
      axis_name: pmap axis over which the batch is split; batch statistics and dropout are then those of the whole batch.

    Raises:
      InputError: an illegal size for padding "valid"; the message names the nearest legal ones. An upsampler that takes no volumes.
    """

    num_classes: int
    features: tuple[int, ...] = (64, 128, 256, 512, 1024)
    padding: Literal["valid", "same"] = "valid"
    norm: Literal["batch", "group"] | None = None
    upsample: Callable[..., nn.Module] = TransposedConv
    dropout: float = 0.5
    dtype: Any = None
    remat: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image: Float[Array, "n *s c"], *, train: bool = False) -> Float[Array, "n *s2 k"]:
        self.check(image.shape)
        depth = len(self.features) - 1
        x, skips, indices = image, [], []

        # Contracting path.
        for level in range(depth):
            x = self.convs(x, level, f"down{level}", train)
            skips.append(x)
            x, index = ops.max_pool_with_indices(x) if x.ndim == 4 else (ops.max_pool_3d(x), None)
            indices.append(index)
        x = self.convs(x, depth, f"down{depth}", train)

        # Expansive path.
        for level in reversed(range(depth)):
            x = self.upsample(self.features[level], dtype=self.dtype, name=f"up{level}_sample")(x, indices[level : level + 1])
            skip = skips[level]
            if self.padding == "valid":
                skip = center_crop(skip, *x.shape[1:-1])
            else:  # the last pooling window of an odd side is half empty
                x = lax.slice(x, (0,) * x.ndim, (*skip.shape[:-1], x.shape[-1]))
            x = self.convs(jnp.concatenate([skip, x], axis=-1), level, f"up{level}", train)

        logits = nn.Conv(self.num_classes, (1,) * (x.ndim - 2), kernel_init=he_normal, dtype=self.dtype, name="logits")(x)
        return logits.astype(jnp.float32)

    @recomputed
    def convs(self, x: Array, level: int, name: str, train: bool) -> Array:
        """The blue arrows: two 3x3 convolutions, each with its ReLU."""
        for i in (1, 2):
            x = nn.Conv(
                self.features[level],
                (3,) * (x.ndim - 2),
                padding=self.padding.upper(),
                use_bias=self.norm is None,  # a norm subtracts it again
                kernel_init=he_normal,
                dtype=self.dtype,
                conv_general_dilated=ops.conv_general_dilated,
                name=f"{name}_conv{i}",
            )(x)
            x = normalise(self, x, f"{name}_norm{i}", train)
            x = nn.relu(x)
        if name.startswith("down") and level >= len(self.features) - 2:
            x = Dropout(self.dropout, axis_name=self.axis_name, name=f"{name}_dropout")(x, train=train)
        return x

    def check(self, shape: tuple[int, ...]) -> None:
        depth = len(self.features) - 1
        if len(shape) not in (4, 5):
            raise InputError(f"UNet: got an image of shape {shape}; required [N, H, W, C] or [N, D, H, W, C]. Add the missing axes.")
        upsampler = getattr(self.upsample, "func", self.upsample)
        if len(shape) == 5 and upsampler is not TransposedConv:
            raise InputError(
                f"UNet: got a volume of shape {shape} and upsample={upsampler.__name__}, which is for images; required TransposedConv. "
                "Take it, or give the slices one by one: [N * D, H, W, C]."
            )
        if self.padding not in ("valid", "same") or self.norm not in (None, "batch", "group") or depth < 1:
            raise InputError(
                f"UNet: got padding={self.padding!r}, norm={self.norm!r}, {depth + 1} levels; required padding 'valid' or 'same', "
                "norm None, 'batch' or 'group', and at least 2 levels."
            )
        if not all(1 <= f <= 65536 for f in self.features) or self.num_classes < 1 or not 0 <= self.dropout < 1:
            raise InputError(
                f"UNet: got features={self.features}, num_classes={self.num_classes}, dropout={self.dropout}; required features from 1 to "
                "65536, at least 1 class, and dropout from 0 to less than 1."
            )
        if self.padding == "valid":
            for side in shape[1:-1]:
                if output_size(side, depth) is None:
                    lower, upper = legal_sizes(side, depth)
                    near = f"{lower} and {upper}" if lower else f"{upper} (the smallest)"
                    raise InputError(
                        f"UNet: got an image of {' x '.join(map(str, shape[1:-1]))} pixels; with unpadded convolutions and {depth} "
                        f"poolings a side of {side} is illegal. The nearest legal sizes are {near}. "
                        "Pad the image by reflection or crop it, or use padding='same'."
                    )


def output_size(side: int, depth: int = 4) -> int | None:
    """Side of the unpadded U-Net's logits, or None where `side` is illegal: some pooled map would be odd or nothing would be left.

    >>> output_size(572), output_size(570)
    (388, None)
    """
    for _ in range(depth):
        side -= 4
        if side <= 0 or side % 2:
            return None
        side //= 2
    side -= 4
    for _ in range(depth):
        side = 2 * side - 4
    return side if side > 0 else None


def legal_sizes(side: int, depth: int = 4) -> tuple[int | None, int]:
    """The nearest legal input sides at most and at least `side`; None where no smaller one is legal.

    >>> legal_sizes(512), legal_sizes(572), legal_sizes(100)
    ((508, 524), (572, 572), (None, 188))
    """
    step, least = 2**depth, _least_size(depth)
    if side < least:
        return None, least
    return least + (side - least) // step * step, least + -(-(side - least) // step) * step


def input_size(side: int, depth: int = 4) -> int:
    """The smallest legal input side whose logits hold `side` pixels. Of an export's symbol too.

    >>> input_size(388), input_size(389)
    (572, 588)
    """
    step, least = 2**depth, _least_size(depth)
    return least - (least - 2 * margin(depth) - side) // step * step


@functools.cache
def _least_size(depth: int) -> int:
    return next(side for side in itertools.count(1) if output_size(side, depth) is not None)


def margin(depth: int = 4) -> int:
    """Pixels of input around the output of an unpadded U-Net, on each side: 92 for the paper's.

    >>> margin()
    92
    """
    side = legal_sizes(1, depth)[1]
    output = output_size(side, depth)
    assert output is not None
    return (side - output) // 2
