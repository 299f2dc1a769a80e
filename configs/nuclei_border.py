"""Nuclei as separate objects: a small U-Net learns background, interior and border; a seeded watershed makes objects of them.

Source: U-Net of Ronneberger et al. 2015, same padding, batch norm, a quarter of the width; three classes as Caicedo et al. 2019.
Command: jaxseg data prepare dsb2018 --source FOLDER --data-dir data
         jaxseg train configs/nuclei_border.py --data-dir data --workdir runs/nuclei
         jaxseg evaluate runs/nuclei
"""

import functools
from typing import Literal

from jaxseg.config import Config, adamw
from jaxseg.data import augment
from jaxseg.models import UNet
from jaxseg.upsample import UPSAMPLERS


def get_config(
    data: str = "dsb2018",
    steps: int = 2000,
    batch_size: int = 8,
    size: int = 128,
    features: tuple[int, ...] = (16, 32, 64, 128),
    norm: Literal["batch", "group"] = "batch",
    learning_rate: float = 4e-3,
    seed: int = 0,
) -> Config:
    """U-Net and watershed on the nuclei of dsb2018, or on the generated cells.

    Args:
      data: dsb2018, or another set with instance maps, such as cells.
      steps: optimizer steps.
      batch_size: crops a step.
      size: side of the square crops, pixels.
      features: channels of each level, finest first.
      norm: group makes the network blind to an image's brightness, and what it says of a tile depend on the tile.
      learning_rate: peak of the schedule.
      seed: of the weights, the order and the augmentation.
    """
    intensities = (
        functools.partial(augment.gamma, exponent=(0.6, 1.5)),
        functools.partial(augment.contrast, factor=(0.5, 2.0)),
    )
    return Config(
        data=data,
        model=functools.partial(UNet, features=features, padding="same", norm=norm, dropout=0.0, upsample=UPSAMPLERS["transposed"]),
        optimizer=adamw(learning_rate, steps),
        instances="border",
        steps=steps,
        batch_size=batch_size,
        size=(size, size),
        augment=(augment.flip, augment.rot90, *intensities),
        percentiles=(1.0, 99.8),  # the brightest images are 16 times as bright as the darkest
        ema_decay=0.99,
        test_split="val",
        eval_every=1000,
        save_every=100,
        seed=seed,
    )
