"""SegNet on CamVid (11 classes), at half size and a quarter of the channels.

Source: Badrinarayanan et al. 2017, sections 3.2 and 4.1: median-frequency weights, SGD of momentum 0.9. The paper begins with VGG16's
weights and trains 40,000 steps and more on 3,433 pictures at full size: --features 64 128 256 512 512 --resize 1 --size 360 480.
Table 1 of the paper, eight decoders of the smaller SegNet-Basic, is benchmarks/camvid_decoders.py.
Command: jaxseg data prepare camvid --source FOLDER --data-dir data
         jaxseg train configs/segnet_camvid.py --data-dir data --workdir runs/segnet
Expected: not measured yet.
"""

import functools

import optax

from jaxseg import losses
from jaxseg.config import Config, DtypeName, UpsampleName, unet_options
from jaxseg.data import augment
from jaxseg.errors import InputError
from jaxseg.models.segnet import SegNet

# Median-frequency weights of the training labels, as `jaxseg data check camvid` prints them.
WEIGHTS = (0.2793, 0.2017, 4.7865, 0.149, 1.0, 0.4217, 3.8467, 1.9736, 0.7889, 6.3747, 8.8587)


def get_config(
    steps: int = 1500,
    batch_size: int = 8,
    size: tuple[int, int] = (180, 240),
    resize: float = 0.5,
    features: tuple[int, ...] = (16, 32, 64, 128, 128),
    upsample: UpsampleName = "max_unpool",
    dtype: DtypeName = "float32",
    learning_rate: float = 0.1,
    seed: int = 0,
) -> Config:
    """SegNet on CamVid, 11 classes.

    Args:
      steps: optimizer steps.
      batch_size: pictures a step.
      size: height and width of the crops, pixels after resizing; all of the picture by default.
      resize: factor for the 480 x 360 images; results are brought back to full size.
      features: channels of each stage, finest first.
      upsample: how the decoder enlarges.
      dtype: of the computation; parameters are float32.
      learning_rate: fixed, of SGD with momentum 0.9.
      seed: of the weights, the order and the augmentation.
    """
    if learning_rate <= 0:
        raise InputError(f"learning_rate: got {learning_rate}; required above 0.")
    return Config(
        data="camvid",
        model=functools.partial(SegNet, features=features, **unet_options(upsample, dtype)),
        optimizer=optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(learning_rate, momentum=0.9)),
        loss=functools.partial(losses.cross_entropy, class_weights=WEIGHTS),
        steps=steps,
        batch_size=batch_size,
        size=size,
        augment=(functools.partial(augment.flip, vertical=False),),
        resize=resize,
        ema_decay=0.99,
        eval_every=500,
        seed=seed,
    )
