"""U-Net on your own images: a folder with images/ and labels/ (see jaxseg/data/folder.py for what may be in it).

Source: Ronneberger et al. 2015, same-padding, any number of classes and channels; the loss adds soft Dice for small classes.
Command: jaxseg data prepare folder --source FOLDER --data-dir data
         jaxseg train configs/folder_unet.py --data-dir data --workdir runs/folder
Expected: depends on the images; 2000 steps of 8 crops of 128 x 128 take about 15 minutes on 2 CPU cores. Start from few steps, look at
report.html, then raise --steps and --features.
"""

import functools

from jaxseg import losses
from jaxseg.config import Config, DtypeName, UpsampleName, adamw, unet_options
from jaxseg.data import augment
from jaxseg.models import UNet


def get_config(
    steps: int = 2000,
    batch_size: int = 8,
    size: tuple[int, int] = (128, 128),
    resize: float = 1.0,
    features: tuple[int, ...] = (16, 32, 64, 128, 256),
    upsample: UpsampleName = "transposed",
    dtype: DtypeName = "float32",
    learning_rate: float = 3e-3,
    vertical_flip: bool = True,
    seed: int = 0,
) -> Config:
    """U-Net on your own images.

    Args:
      steps: optimizer steps.
      batch_size: crops a step.
      size: height and width of the crops, pixels after resizing; smaller images are padded.
      resize: factor for the images before training; results are brought back to full size.
      features: channels of each level, finest first.
      upsample: how the expansive path enlarges.
      dtype: of the computation; parameters are float32.
      learning_rate: peak of the schedule.
      vertical_flip: also mirror top and bottom; not for street scenes.
      seed: of the weights, the order and the augmentation.
    """
    mirror = functools.partial(augment.flip, vertical=vertical_flip)
    zoom = functools.partial(augment.scale, zoom=(0.8, 1.25))
    return Config(
        data="folder",
        model=functools.partial(UNet, features=features, padding="same", norm="batch", dropout=0.2, **unet_options(upsample, dtype)),
        optimizer=adamw(learning_rate, steps),
        loss=losses.cross_entropy_dice,
        steps=steps,
        batch_size=batch_size,
        size=size,
        augment=(mirror, zoom, augment.brightness, augment.contrast),
        resize=resize,
        ema_decay=0.99,
        eval_every=250,
        seed=seed,
    )
