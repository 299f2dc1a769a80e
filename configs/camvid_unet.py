"""U-Net on CamVid (SegNet's split, 11 classes), at half size.

Source: Ronneberger et al. 2015 for the network; Badrinarayanan et al. 2017 (SegNet) for the split and the 11 classes.
Void pixels count nowhere: they are left out of the confusion matrix whatever was predicted there.
Command: jaxseg data prepare camvid --source FOLDER --data-dir data
         jaxseg train configs/camvid_unet.py --data-dir data --workdir runs/camvid
Expected: test mean IoU 0.458 over 11 classes, pixel accuracy 0.823; 30 minutes on 2 CPU cores.
"""

import functools

from jaxseg import losses
from jaxseg.config import Config, DtypeName, UpsampleName, adamw, unet_options
from jaxseg.data import augment
from jaxseg.models import UNet

# Square roots of the median-frequency weights that `jaxseg data check camvid` prints: the weights themselves cost too much accuracy.
WEIGHTS = tuple(w**0.5 for w in (0.2793, 0.2017, 4.7865, 0.149, 1.0, 0.4217, 3.8467, 1.9736, 0.7889, 6.3747, 8.8587))


def get_config(
    steps: int = 1500,
    batch_size: int = 8,
    size: tuple[int, int] = (160, 208),
    resize: float = 0.5,
    features: tuple[int, ...] = (16, 32, 64, 128, 256),
    upsample: UpsampleName = "transposed",
    dtype: DtypeName = "float32",
    learning_rate: float = 4e-3,
    seed: int = 0,
) -> Config:
    """U-Net on CamVid, 11 classes.

    Args:
      steps: optimizer steps.
      batch_size: crops a step.
      size: height and width of the crops, pixels after resizing.
      resize: factor for the 480 x 360 images; results are brought back to full size.
      features: channels of each level, finest first.
      upsample: how the expansive path enlarges.
      dtype: of the computation; parameters are float32.
      learning_rate: peak of the schedule.
      seed: of the weights, the order and the augmentation.
    """
    mirror = functools.partial(augment.flip, vertical=False)
    zoom = functools.partial(augment.scale, zoom=(0.75, 1.5))
    return Config(
        data="camvid",
        model=functools.partial(UNet, features=features, padding="same", norm="batch", dropout=0.2, **unet_options(upsample, dtype)),
        optimizer=adamw(learning_rate, steps),
        loss=functools.partial(losses.cross_entropy, class_weights=WEIGHTS),
        steps=steps,
        batch_size=batch_size,
        size=size,
        augment=(mirror, zoom, augment.brightness, augment.contrast),
        resize=resize,
        ema_decay=0.99,
        eval_every=500,
        seed=seed,
    )
