"""U-Net on Oxford-IIIT Pets (foreground, background, outline), a set of the TFDS catalogue.

Source: Ronneberger et al. 2015 for the network; Parkhi et al. 2012 for the data.
Command: jaxseg data prepare oxford_iiit_pet --data-dir data    (says how: preparing this set needs TensorFlow, training does not)
         jaxseg train configs/pets_unet.py --data-dir data --workdir runs/pets
Expected: not measured here (the set cannot be downloaded on the machine this was written on).
"""

import functools

from jaxseg.config import Config, DtypeName, UpsampleName, adamw, unet_options
from jaxseg.data import augment
from jaxseg.models import UNet


def get_config(
    steps: int = 5000,
    batch_size: int = 16,
    size: tuple[int, int] = (128, 128),
    resize: float = 0.4,
    features: tuple[int, ...] = (32, 64, 128, 256, 512),
    upsample: UpsampleName = "transposed",
    dtype: DtypeName = "float32",
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> Config:
    """U-Net on Oxford-IIIT Pets.

    Args:
      steps: optimizer steps.
      batch_size: crops a step.
      size: height and width of the crops, pixels after resizing.
      resize: factor for the images, which are about 500 x 400; results are brought back to full size.
      features: channels of each level, finest first.
      upsample: how the expansive path enlarges.
      dtype: of the computation; parameters are float32.
      learning_rate: peak of the schedule.
      seed: of the weights, the order and the augmentation.
    """
    mirror = functools.partial(augment.flip, vertical=False)
    zoom = functools.partial(augment.scale, zoom=(0.8, 1.25))
    return Config(
        data="oxford_iiit_pet",
        model=functools.partial(UNet, features=features, padding="same", norm="batch", dropout=0.2, **unet_options(upsample, dtype)),
        optimizer=adamw(learning_rate, steps),
        steps=steps,
        batch_size=batch_size,
        size=size,
        augment=(mirror, zoom, augment.brightness, augment.contrast),
        resize=resize,
        ema_decay=0.99,
        eval_split=None,  # the set has train and test only
        seed=seed,
    )
