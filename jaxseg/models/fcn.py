"""FCN (Long, Shelhamer, Darrell: Fully Convolutional Networks for Semantic Segmentation, CVPR 2015) on VGG16, as released."""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from jaxseg import ops
from jaxseg.errors import InputError
from jaxseg.models.layers import Dropout
from jaxseg.models.vgg import VGG16
from jaxseg.upsample import he_normal

VARIANTS = ("32s", "16s", "8s", "8s_at_once")


class FCN(nn.Module):
    """[N, H, W, C] -> float32 logits [N, H, W, num_classes], of any size: figure 3 of the paper.

    100 zeros around the image make fc6, whose 7x7 kernel is not padded, cover any image; the crops take them off again. The score layers
    begin at zero, the upscoring as bilinear interpolation. Scores and their upscoring are computed in float32.

    Args:
      variant: the stride of the finest map that is scored. "8s_at_once" is "8s" with pool3 and pool4 scaled to the size of the scores, so
        that it trains in one stage; the others are trained one from another, by `continue_from`.
      features: channels of VGG16's stages.
      fc_features: channels of fc6 and fc7.
      dropout: rate after fc6 and fc7. Plain, as in Caffe; wkentaro's drops whole channels.
      dtype: compute type up to the scores; parameters stay float32.
      remat: compute what lies within a stage of the encoder again for the gradient instead of keeping it: less memory, more time.
      axis_name: pmap axis over which the batch is split; dropout is then that of the whole batch.

    Raises:
      InputError: the image is not [N, H, W, C], or a field is out of its range.

    Source: the paper's section 4; voc-fcn32s, 16s, 8s and 8s-atonce of github.com/shelhamer/fcn.berkeleyvision.org.
    """

    num_classes: int
    variant: Literal["32s", "16s", "8s", "8s_at_once"] = "8s"
    features: tuple[int, ...] = (64, 128, 256, 512, 512)
    fc_features: int = 4096
    dropout: float = 0.5
    dtype: Any = None
    remat: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image: Float[Array, "n h w c"], *, train: bool = False) -> Float[Array, "n h w k"]:
        self.check()
        encoder = VGG16(self.features, padding_first=100, dtype=self.dtype, remat=self.remat, axis_name=self.axis_name, name="encoder")
        _, _, pool3, pool4, pool5 = (stage.pooled for stage in encoder(image, train=train))

        # The classifier, as convolutions.
        x = pool5
        for name, side in (("fc6", 7), ("fc7", 1)):
            x = nn.Conv(
                self.fc_features,
                (side, side),
                padding="VALID",
                kernel_init=he_normal,
                dtype=self.dtype,
                conv_general_dilated=ops.conv_general_dilated,
                name=name,
            )(x)
            x = Dropout(self.dropout, axis_name=self.axis_name, name=f"{name}_dropout")(nn.relu(x), train=train)
        x = self.score(x, "score_fr")
        if self.variant == "32s":
            return _window(Upscore(32, name="upscore")(x), 19, image)

        # Finer strides: upscored, and added to the scores of a finer map.
        scale4, scale3 = (0.01, 0.0001) if self.variant == "8s_at_once" else (1, 1)
        x = Upscore(2, name="upscore2")(x)
        x = x + _window(self.score(scale4 * pool4, "score_pool4"), 5, x)
        if self.variant == "16s":
            return _window(Upscore(16, name="upscore16")(x), 27, image)
        x = Upscore(2, name="upscore_pool4")(x)
        x = x + _window(self.score(scale3 * pool3, "score_pool3"), 9, x)
        return _window(Upscore(8, name="upscore8")(x), 31, image)

    def score(self, x: Array, name: str) -> Float[Array, "n h w k"]:
        zeros = nn.initializers.zeros
        return nn.Conv(self.num_classes, (1, 1), kernel_init=zeros, dtype=self.dtype, name=name)(x).astype(jnp.float32)

    def check(self) -> None:
        if self.variant not in VARIANTS or self.num_classes < 1 or self.fc_features < 1 or not 0 <= self.dropout < 1:
            raise InputError(
                f"FCN: got variant={self.variant!r}, num_classes={self.num_classes}, fc_features={self.fc_features}, "
                f"dropout={self.dropout}; required a variant of {', '.join(VARIANTS)}, at least 1 class and 1 feature, and dropout from 0 "
                "to less than 1. Correct the field."
            )


class Upscore(nn.Module):
    """Transposed convolution of twice its stride, K classes -> K classes, no bias: [N, H, W, K] -> [N, scale*(H+1), scale*(W+1), K].

    It begins as bilinear interpolation of each class, zeros around the map. Its kernel holds K * K filters, as in the released weights, and
    is learned; the release keeps it fixed, which is the optimizer's matter (`is_upscore`) and made no significant difference.
    """

    scale: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w k"]) -> Float[Array, "n h2 w2 k"]:
        kernel = self.param("kernel", _bilinear, (2 * self.scale, 2 * self.scale, x.shape[-1], x.shape[-1]))
        return ops.conv_transpose(x, kernel, self.scale)


def is_upscore(path: tuple[str, ...]) -> bool:
    """Whether a path in FCN's parameters is that of an upscoring, which the release keeps bilinear.

    >>> is_upscore(("upscore2", "kernel")), is_upscore(("score_fr", "kernel"))
    (True, False)
    """
    return path[0].startswith("upscore")


def continue_from(finer: Any, coarser: Any) -> Any:
    """The variables of a finer FCN with all that a trained coarser one has too: 32s begins 16s, 16s begins 8s.

    What only the finer one has stays as it is: fresh, its new score layer is zero and its upscoring bilinear, so that it begins with the
    scores of the coarser one, interpolated in one step more. The coarser one's last upscoring is dropped.

    Args:
      finer: of `init`, {"params": ...}.
      coarser: of the same features and classes.

    Raises:
      InputError: nothing agrees by name, a shape differs, or the coarser one scores a map that the finer one does not.

    Source: section 4.2 of the paper; `solve.py` of the release, `copy_params_from_fcn32s` of wkentaro's.
    """
    new: dict[tuple[str, ...], Any] = flatten_dict(finer)
    old: dict[tuple[str, ...], Any] = flatten_dict(coarser)
    shared = new.keys() & old.keys()
    wrong = [f"{'/'.join(k)}: {old[k].shape}, required {new[k].shape}" for k in sorted(shared) if old[k].shape != new[k].shape]
    wrong += [f"{'/'.join(k)}: not in the finer network" for k in sorted(old.keys() - shared) if not is_upscore(k[1:])]
    if wrong or not shared:
        raise InputError(
            f"continue_from: {'; '.join(wrong[:5]) or 'the two have no parameter in common'}; required a coarser FCN of the same features "
            "and classes. Give the variables of FCN-32s for 16s, and of 16s for 8s."
        )
    return unflatten_dict({path: old.get(path, leaf) for path, leaf in new.items()})


def _bilinear(key: Any, shape: tuple[int, ...]) -> Array:
    diagonal = np.eye(shape[2], dtype=np.float32)
    return jnp.asarray(ops.bilinear_kernel(shape[0] // 2)[:, :, None, None] * diagonal)


def _window(x: Array, offset: int, like: Array) -> Array:
    """Of x as many pixels as `like` has, from row and column `offset`."""
    return x[:, offset : offset + like.shape[1], offset : offset + like.shape[2]]
