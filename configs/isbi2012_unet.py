"""U-Net on the membranes of the ISBI 2012 EM challenge, the data set of the U-Net paper.

Source: Ronneberger et al. 2015. Trained on 24 slices of the labelled stack, tested on the last 6 (the challenge's own labels are secret).
Unlike the paper: same-padding, batch norm, a quarter of the width, AdamW; elastic deformation and 90-degree turns as there.
Command: jaxseg data prepare isbi2012 --source FOLDER --data-dir data
         jaxseg train configs/isbi2012_unet.py --data-dir data --workdir runs/isbi2012
Expected: on slices 24-29 pixel error 0.046 (share of wrong pixels 0.074), Rand score 0.962, information score 0.977;
          25 minutes on 2 CPU cores.
"""

import functools
from typing import Literal

import numpy as np

from jaxseg.config import Config, DtypeName, UpsampleName, adamw, unet_options
from jaxseg.data import Record, augment
from jaxseg.models import UNet
from jaxseg.weight_map import border_weight_map


def get_config(
    steps: int = 1200,
    batch_size: int = 4,
    size: int = 256,
    features: tuple[int, ...] = (16, 32, 64, 128, 256),
    padding: Literal["same", "valid"] = "same",
    upsample: UpsampleName = "transposed",
    dtype: DtypeName = "float32",
    learning_rate: float = 3e-3,
    w0: float = 0.0,
    seed: int = 0,
) -> Config:
    """U-Net on the EM membranes of ISBI 2012.

    Args:
      steps: optimizer steps.
      batch_size: crops a step.
      size: side of the square crops, pixels.
      features: channels of each level, finest first.
      padding: valid is the paper's unpadded network, which needs a legal size such as 252.
      upsample: how the expansive path enlarges.
      dtype: of the computation; parameters are float32.
      learning_rate: peak of the schedule.
      w0: of the paper's border weight map, 10 there; 0 weighs all pixels alike.
      seed: of the weights, the order and the augmentation.
    """

    def weight_map(record: Record) -> np.ndarray:
        return border_weight_map(record["instances"], w0=w0, label=record["label"])

    deform = functools.partial(augment.warp, rotate_degrees=20.0, zoom=(0.8, 1.25), elastic_px=10.0)
    return Config(
        data="isbi2012",
        model=functools.partial(UNet, features=features, padding=padding, norm="batch", dropout=0.2, **unet_options(upsample, dtype)),
        optimizer=adamw(learning_rate, steps),
        steps=steps,
        batch_size=batch_size,
        size=(size, size),
        augment=(augment.flip, augment.rot90, deform, augment.contrast, augment.brightness),
        weight_map=weight_map if w0 else None,
        ema_decay=0.99,
        eval_split=None,  # 24 slices are too few to give some away: the last weights are tested
        seed=seed,
    )
