"""Nuclei as separate objects: a small U-Net learns the foreground and, at each of its pixels, the way to the centre of its object.

Source: U-Net of Ronneberger et al. 2015, same padding, batch norm, a quarter of the width; the route: jaxseg/instances/centre.py.
Command: jaxseg data prepare dsb2018 --source FOLDER --data-dir data
         jaxseg train configs/nuclei_centre.py --data-dir data --workdir runs/nuclei_centre
         jaxseg evaluate runs/nuclei_centre
Expected: with --steps 1500 AP at IoU 0.5 0.836, mean AP 0.636 on val (37 minutes on 2 shared cores); trained on from there, --begin
runs/nuclei_centre --steps 700 --learning-rate 2e-3 --workdir runs/nuclei_centre2, 0.848 and 0.649 (14 minutes more). The default's 2500
steps were not run.
"""

import functools
from pathlib import Path

from jaxseg.config import Config, adamw
from jaxseg.data import augment
from jaxseg.models import UNet
from jaxseg.upsample import UPSAMPLERS
from jaxseg.weights.start import from_run


def get_config(
    data: str = "dsb2018",
    steps: int = 2500,
    batch_size: int = 8,
    size: int = 128,
    features: tuple[int, ...] = (16, 32, 64, 128),
    learning_rate: float = 4e-3,
    begin: Path | None = None,
    seed: int = 0,
) -> Config:
    """U-Net and arrows to the centres on the nuclei of dsb2018, or on the generated cells.

    Args:
      data: dsb2018, or another set with instance maps, such as cells.
      steps: optimizer steps.
      batch_size: crops a step.
      size: side of the square crops, pixels.
      features: channels of each level, finest first.
      learning_rate: peak of the schedule.
      begin: run folder whose weights are trained further, under a schedule of their own.
      seed: of the weights, the order and the augmentation.
    """
    intensities = (
        functools.partial(augment.gamma, exponent=(0.6, 1.5)),
        functools.partial(augment.contrast, factor=(0.4, 2.0)),
        functools.partial(augment.brightness, delta=0.05),
    )
    return Config(
        data=data,
        model=functools.partial(UNet, features=features, padding="same", norm="batch", dropout=0.0, upsample=UPSAMPLERS["transposed"]),
        optimizer=adamw(learning_rate, steps),
        instances="centre",
        start=None if begin is None else from_run(begin),
        steps=steps,
        batch_size=batch_size,
        size=(size, size),
        augment=(augment.flip, augment.rot90, *intensities),
        percentiles=(1.0, 99.8),  # the brightest images are 16 times as bright as the darkest
        ema_decay=0.99,
        test_split="val",
        eval_every=500,
        save_every=100,
        seed=seed,
    )
