"""Any model on the generated cells, narrow enough for a CPU.

Source: the papers named in jaxseg/models.
Command: jaxseg data prepare cells --data-dir data
         jaxseg train configs/cells_models.py --model segnet --steps 200 --data-dir data --workdir runs/cells_segnet
Expected: test mIoU after 200 steps of every model: benchmarks/results/epyc-2-cores/models_on_cells.md.
"""

import functools
from collections.abc import Callable
from typing import Literal

import flax.linen as nn

from jaxseg import losses, models
from jaxseg.config import Config, adamw
from jaxseg.data import augment
from jaxseg.models.heatmap import PlainEncoder

ModelName = Literal[
    "unet",
    "fcn",
    "fcn_resnet",
    "segnet",
    "segnet_basic",
    "deconvnet",
    "encoder_unet",
    "unet_plus_plus",
    "attention_unet",
    "residual_unet",
    "nnunet",
    "milesial",
    "basic_unet",
    "heatmap",
    "conv_only",
]
VGG = (16, 32, 64, 64, 64)
UNPOOLED = (32, 32, 64, 64, 64)
"""Of 16 channels max unpooling would fill 4 at a pixel."""
NARROW: dict[ModelName, Callable[..., nn.Module]] = {
    "unet": functools.partial(models.UNet, features=(16, 32, 64, 128), padding="same", norm="batch", dropout=0.0),
    "fcn": functools.partial(models.FCN, features=VGG, fc_features=128, dropout=0.0),
    "fcn_resnet": functools.partial(models.FCNResNet, width=8, auxiliary=False),
    "segnet": functools.partial(models.SegNet, features=UNPOOLED),
    "segnet_basic": functools.partial(models.SegNetBasic, features=24),
    "deconvnet": functools.partial(models.DeconvNet, features=UNPOOLED, middle=128),
    "encoder_unet": functools.partial(models.EncoderUNet, encoder="resnet18", width=16, decoder=(64, 32, 32, 16, 16)),
    "unet_plus_plus": functools.partial(models.UNetPlusPlus, features=(8, 16, 32, 64), norm="batch"),
    "attention_unet": functools.partial(models.AttentionUNet, features=(16, 32, 64, 128)),
    "residual_unet": functools.partial(models.ResidualUNet, features=(16, 32, 64, 128)),
    "nnunet": functools.partial(models.NNUNet, features=(16, 32, 64, 128)),
    "milesial": functools.partial(models.MilesialUNet, features=(16, 32, 64, 128)),
    "basic_unet": functools.partial(models.BasicUNet, features=(16, 16, 32, 64, 128, 16)),
    "heatmap": functools.partial(models.DirectHeatmap, encoder=functools.partial(PlainEncoder, features=(16, 32), norm="batch")),
    "conv_only": functools.partial(models.ConvOnly, features=(16,) * 6, norm="batch"),
}


CROPS = {"deconvnet": (1, 512, 2.0)}
"""Crops a step, their side and the factor by which images are enlarged first. DeconvNet's middle is one pixel of 224 pixels, from which
it learns little: these are whole images, enlarged, as it is tested with."""


def get_config(
    model: ModelName = "segnet",
    steps: int = 300,
    batch_size: int | None = None,
    size: int | None = None,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> Config:
    """Any model on the generated cells.

    Args:
      model: which of jaxseg.models.MODELS, narrow.
      steps: optimizer steps.
      batch_size: crops a step; None: 8, of DeconvNet 1.
      size: side of the square crops, pixels; None: 128, of DeconvNet, whose images are enlarged to twice, 512 (any from 193).
      learning_rate: peak of the schedule.
      seed: of the weights, the order and the augmentation.
    """
    crops, side, resize = CROPS.get(model, (8, 128, 1.0))
    side = side if size is None else size
    return Config(
        data="cells",
        model=NARROW[model],
        optimizer=adamw(learning_rate, steps),
        steps=steps,
        batch_size=crops if batch_size is None else batch_size,
        size=(side, side),
        resize=resize,
        loss=losses.cross_entropy_dice,
        augment=(augment.flip, augment.rot90, augment.contrast),
        ema_decay=0.97,
        eval_every=steps,
        save_every=100,
        seed=seed,
    )
