"""FCN on VGG16 on CamVid (11 classes), at half size and a quarter of the channels.

Source: Long et al. 2015, section 4, and the release's solvers; Badrinarayanan et al. 2017 (SegNet) for the split and the 11 classes. The
upscoring stays bilinear, as released. The paper begins with VGG16's weights: --features 64 128 256 512 512 --fc-features 4096.

Stages. "8s_at_once" trains in one; the paper's own road is three runs, each begun with all that the one before has learned, at a
hundredth of its learning rate (1e-10, 1e-12, 1e-14 of the release, whose loss is a sum over pixels):

    jaxseg train configs/fcn_camvid.py --variant 32s --workdir runs/fcn32s
    jaxseg train configs/fcn_camvid.py --variant 16s --begin runs/fcn32s --learning-rate 1e-5 --workdir runs/fcn16s
    jaxseg train configs/fcn_camvid.py --variant 8s --begin runs/fcn16s --learning-rate 1e-7 --workdir runs/fcn8s

What a finer network has more, a score layer and its upscoring, begins at zero and as bilinear interpolation, so that nothing is lost
at the change.

Command: jaxseg data prepare camvid --source FOLDER --data-dir data
         jaxseg train configs/fcn_camvid.py --data-dir data --workdir runs/fcn
Expected: not measured yet.
"""

import functools
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxseg import losses
from jaxseg.config import Config, DtypeName, adamw
from jaxseg.data import augment
from jaxseg.models.fcn import FCN, is_upscore
from jaxseg.weights import start

# Square roots of the median-frequency weights that `jaxseg data check camvid` prints, as in camvid_unet.py.
WEIGHTS = tuple(w**0.5 for w in (0.2793, 0.2017, 4.7865, 0.149, 1.0, 0.4217, 3.8467, 1.9736, 0.7889, 6.3747, 8.8587))


def get_config(
    variant: Literal["32s", "16s", "8s", "8s_at_once"] = "8s_at_once",
    begin: Path | None = None,
    steps: int = 1500,
    batch_size: int = 8,
    size: tuple[int, int] = (160, 208),
    resize: float = 0.5,
    features: tuple[int, ...] = (16, 32, 64, 128, 128),
    fc_features: int = 256,
    dtype: DtypeName = "float32",
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> Config:
    """FCN on CamVid, 11 classes.

    Args:
      variant: stride of the finest map that is scored.
      begin: run folder of the next coarser variant, whose weights this one begins with.
      steps: optimizer steps.
      batch_size: crops a step.
      size: height and width of the crops, pixels after resizing.
      resize: factor for the 480 x 360 images; results are brought back to full size.
      features: channels of each stage of VGG16.
      fc_features: channels of fc6 and fc7.
      dtype: of the computation up to the scores; parameters are float32.
      learning_rate: peak of the schedule.
      seed: of the weights, the order and the augmentation.
    """
    parts: dict[Any, Any] = {"learned": adamw(learning_rate, steps, weight_decay=5e-4), "fixed": optax.set_to_zero()}
    return Config(
        data="camvid",
        model=functools.partial(
            FCN, variant=variant, features=features, fc_features=fc_features, dtype=None if dtype == "float32" else jnp.bfloat16
        ),
        optimizer=optax.partition(parts, _part_of),
        start=start.from_run(begin) if begin else None,
        loss=functools.partial(losses.cross_entropy, class_weights=WEIGHTS),
        steps=steps,
        batch_size=batch_size,
        size=size,
        augment=(functools.partial(augment.flip, vertical=False), functools.partial(augment.scale, zoom=(0.75, 1.5))),
        resize=resize,
        ema_decay=0.99,
        eval_every=500,
        seed=seed,
    )


def _part_of(params: Any) -> Any:
    return jax.tree.map_with_path(lambda path, _: "fixed" if is_upscore(tuple(key.key for key in path)) else "learned", params)
