"""A compilation cache for the session, and a data set of discs with a model trained on it that the tests of the scripts share."""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

TINY = '''"""A tiny U-Net on the discs."""

import functools

import jax.numpy as jnp
import optax

from jaxseg import losses
from jaxseg.config import Config, UpsampleName, unet_options
from jaxseg.data import augment
from jaxseg.errors import InputError
from jaxseg.models import UNet


def spoilt(logits, label, **rest):
    """A loss that is finite with a gradient that is not."""
    return losses.cross_entropy(logits, label, **rest) + jnp.sqrt(0 * logits[0, 0, 0, 0])


def get_config(
    steps: int = 8,
    batch_size: int = 4,
    size: int = 16,
    learning_rate: float = 3e-2,
    upsample: UpsampleName = "transposed",
    padding: str = "same",
    blow_up_at: int = 10**6,
    spoil: bool = False,
    plain: bool = False,
) -> Config:
    """A tiny U-Net.

    Args:
      steps: optimizer steps.
      blow_up_at: step from which the learning rate is absurd.
      spoil: take a loss whose gradient is not finite.
      plain: a smaller network without what is random.
    """
    if learning_rate <= 0:
        raise InputError(f"learning_rate: got {learning_rate}; required above 0.")
    rate = optax.piecewise_constant_schedule(learning_rate, {blow_up_at: 1e36})
    network = {"features": (2, 4), "dropout": 0.0} if plain else {"features": (4, 8), "norm": "batch", "dropout": 0.1}
    return Config(
        data="folder",
        model=functools.partial(UNet, padding=padding, **network, **unet_options(upsample, "float32")),
        optimizer=optax.adam(rate),
        loss=spoilt if spoil else losses.cross_entropy,
        steps=steps,
        batch_size=batch_size,
        size=(size, size),
        augment=() if plain else (augment.flip,),
        ema_decay=0.8,
        eval_every=4,
        save_every=2,
        log_every=1,
    )
'''


def pytest_configure(config):
    """The scripts compile the same few programs again and again, also in processes of their own: once is enough."""
    folder = tempfile.mkdtemp(prefix="jaxseg-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def write_discs(source: Path, count: int = 12, side: int = 32) -> None:
    """images/ and labels/ of bright discs on a dark ground."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (source / kind).mkdir(parents=True)
    for i in range(count):
        label = Image.new("L", (side, side))
        (x, y), r = rng.integers(side // 4, 3 * side // 4, 2).tolist(), int(rng.integers(side // 8, side // 4))
        ImageDraw.Draw(label).ellipse((x - r, y - r, x + r, y + r), fill=1)
        image = 40 + 150 * np.asarray(label) + rng.normal(0, 10, (side, side))
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(source / "images" / f"disc{i:02}.png")
        label.save(source / "labels" / f"disc{i:02}.png")


@pytest.fixture(scope="session")
def discs(tmp_path_factory):
    """A folder with source/ (12 discs), data/ (the same, prepared) and tiny.py (a config)."""
    from jaxseg.cli import main

    root = tmp_path_factory.mktemp("discs")
    write_discs(root / "source")
    (root / "tiny.py").write_text(TINY)
    assert main(["data", "prepare", "folder", "--source", str(root / "source"), "--data-dir", str(root / "data")]) == 0
    return root


@pytest.fixture(scope="session")
def trained(discs, tmp_path_factory):
    """The run folder of `jaxseg train tiny.py`; not to be changed."""
    from jaxseg.cli import main

    workdir = tmp_path_factory.mktemp("runs") / "trained"
    assert main(["train", str(discs / "tiny.py"), "--data-dir", str(discs / "data"), "--workdir", str(workdir)]) == 0
    return workdir
