"""U-Net on the generated cells: the demo.

Source: Ronneberger et al. 2015, with same-padding, batch norm and a quarter of the width.
Command: jaxseg data prepare cells --data-dir data
         jaxseg train configs/cells_unet.py --data-dir data --workdir runs/cells
Expected: test mean IoU 0.956 (border 0.910; Otsu's threshold 0.588); 7 minutes on 2 CPU cores.
"""

import functools
from typing import Literal

from jaxseg.config import Config, DtypeName, UpsampleName, adamw, unet_options
from jaxseg.data import augment
from jaxseg.models import UNet


def get_config(
    steps: int = 900,
    batch_size: int = 8,
    size: int = 128,
    features: tuple[int, ...] = (16, 32, 64, 128),
    padding: Literal["same", "valid"] = "same",
    upsample: UpsampleName = "transposed",
    dtype: DtypeName = "float32",
    learning_rate: float = 4e-3,
    seed: int = 0,
) -> Config:
    """U-Net on the generated cells.

    Args:
      steps: optimizer steps.
      batch_size: crops a step.
      size: side of the square crops, pixels.
      features: channels of each level, finest first.
      padding: valid is the paper's unpadded network, which needs a legal size such as 252.
      upsample: how the expansive path enlarges.
      dtype: of the computation; parameters are float32.
      learning_rate: peak of the schedule.
      seed: of the weights, the order and the augmentation.
    """
    return Config(
        data="cells",
        model=functools.partial(UNet, features=features, padding=padding, norm="batch", dropout=0.0, **unet_options(upsample, dtype)),
        optimizer=adamw(learning_rate, steps),
        steps=steps,
        batch_size=batch_size,
        size=(size, size),
        augment=(augment.flip, augment.rot90, augment.contrast),
        ema_decay=0.99,
        eval_every=300,
        save_every=20,
        seed=seed,
    )
