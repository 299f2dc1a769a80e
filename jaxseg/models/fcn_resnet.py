"""FCN on a dilated ResNet, torchvision's (Long, Shelhamer, Darrell: Fully Convolutional Networks for Semantic Segmentation, CVPR 2015).

No skips and no learned upsampling: dilation (Yu, Koltun, Funkhouser: Dilated Residual Networks, CVPR 2017) keeps the maps at an eighth of
the image, and the logits are enlarged bilinearly.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg import ops
from jaxseg.errors import InputError
from jaxseg.models.layers import Dropout, normalise
from jaxseg.models.resnet import RESNETS
from jaxseg.upsample import he_normal


class FCNResNet(nn.Module):
    """[N, H, W, C] -> float32 logits [N, H, W, num_classes], of any H and W. The defaults are torchvision's fcn_resnet50.

    Args:
      num_classes: 2 for a binary problem (background, foreground).
      encoder: a name of `RESNETS`.
      auxiliary: a second head on layer3, for training: with train=True the result is a tuple of both heads' logits, of the same shape.
      frozen: what training leaves as it is, for weights learned elsewhere: "norm", the statistics of the encoder's batch norms; "encoder",
        all of it, and no gradient is computed there (give its weights rate 0 too: `config.rate_per_part`).
      width: of the encoder; 64 is the paper's.
      dropout: rate before the logits.
      dtype: compute type; parameters stay float32.
      remat: compute what lies within a block of the encoder again for the gradient instead of keeping it: less memory, more time.
      axis_name: pmap axis over which the batch is split; batch statistics and dropout are then those of the whole batch.

    Raises:
      InputError: the image is not [N, H, W, C], or a field is out of its range.

    Source: torchvision.models.segmentation.fcn_resnet50, fcn_resnet101.
    """

    num_classes: int
    encoder: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet50"
    auxiliary: bool = True
    frozen: Literal["norm", "encoder"] | None = None
    width: int = 64
    dropout: float = 0.1
    dtype: Any = None
    remat: bool = False
    axis_name: str | None = None

    norm = "batch"
    head_weights = (1.0, 0.5)  # of the losses, as in torchvision's training script

    def __call__(self, image: Float[Array, "n h w c"], *, train: bool = False) -> Float[Array, "n h w k"] | tuple[Array, ...]:
        logits, *auxiliary = self.heads(image, train)
        return (logits, *auxiliary) if train and auxiliary else logits

    @nn.compact
    def heads(self, image: Float[Array, "n h w c"], train: bool = False) -> list[Float[Array, "n h w k"]]:
        """The logits, and those of the auxiliary head where there is one."""
        self.check()
        options = {"dtype": self.dtype, "remat": self.remat, "axis_name": self.axis_name, "name": "encoder"}
        encoder = RESNETS[self.encoder](dilate=(False, True, True), width=self.width, **options)
        *_, layer3, layer4 = encoder(image, train=train and self.frozen is None)
        if self.frozen == "encoder":
            layer3, layer4 = jax.lax.stop_gradient((layer3, layer4))
        heads = {"": layer4, "auxiliary_": layer3} if self.auxiliary else {"": layer4}
        return [self.head(x, name, image.shape, train) for name, x in heads.items()]

    def head(self, x: Array, name: str, shape: tuple[int, ...], train: bool) -> Float[Array, "n h w k"]:
        x = nn.Conv(
            x.shape[-1] // 4,
            (3, 3),
            padding=1,
            use_bias=False,
            kernel_init=he_normal,
            dtype=self.dtype,
            conv_general_dilated=ops.conv_general_dilated,
            name=f"{name}conv",
        )(x)
        x = nn.relu(normalise(self, x, f"{name}norm", train))
        x = Dropout(self.dropout, axis_name=self.axis_name, name=f"{name}dropout")(x, train=train)
        x = nn.Conv(self.num_classes, (1, 1), kernel_init=he_normal, dtype=self.dtype, name=f"{name}logits")(x)
        return ops.resize(x.astype(jnp.float32), shape[1:3])

    def check(self) -> None:
        if self.encoder not in RESNETS or self.num_classes < 1 or not 0 <= self.dropout < 1:
            raise InputError(
                f"FCNResNet: got encoder={self.encoder!r}, num_classes={self.num_classes}, dropout={self.dropout}; required one of "
                f"{', '.join(RESNETS)}, at least 1 class, and dropout from 0 to less than 1. Correct the field."
            )
