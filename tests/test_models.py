"""What every model of MODELS keeps, by the narrow settings of configs/cells_models.py."""

import json
import runpy
import typing
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from random_variables import random_variables

from jaxseg.losses import cross_entropy
from jaxseg.model_json import model_from_json, model_to_json
from jaxseg.models import MODELS
from jaxseg.train_state import init_state, train_step

CONFIG = runpy.run_path(str(Path(__file__).parent.parent / "configs" / "cells_models.py"))
NARROW = CONFIG["NARROW"]
EVERY = pytest.mark.parametrize("name", MODELS)


def test_the_config_knows_every_model():
    assert list(MODELS) == list(NARROW) == list(typing.get_args(CONFIG["ModelName"]))
    for name, make in NARROW.items():
        assert make.func is MODELS[name]


def image_for(name: str, size: int = 40) -> np.ndarray:
    return (
        np.random.default_rng(0)
        .normal(size=(1, 200 if name == "deconvnet" else size, 201 if name == "deconvnet" else size + 5, 1))
        .astype(np.float32)
    )


@EVERY
def test_logits_are_float32_of_the_images_size_and_depend_on_the_image(name):
    model, image = NARROW[name](num_classes=3), image_for(name)
    variables = random_variables(model, image)
    logits = jax.jit(model.apply)(variables, image)
    assert logits.dtype == jnp.float32
    assert logits.shape == (*image.shape[:3], 3)
    assert np.isfinite(logits).all()
    assert abs(np.asarray(jax.jit(model.apply)(variables, image + image[:, ::-1])) - logits).max() > 0
    half = jax.eval_shape(NARROW[name](num_classes=3, dtype=jnp.bfloat16).apply, variables, image)
    assert half.dtype == jnp.float32


@EVERY
def test_a_run_folder_describes_it(name):
    model = NARROW[name](num_classes=3)
    again = model_from_json(json.loads(json.dumps(model_to_json(model))))
    assert model_to_json(again) == model_to_json(model)


@pytest.mark.slow
@EVERY
def test_the_training_step_learns(name):
    model, image = NARROW[name](num_classes=3), image_for(name, 64)
    label = np.where(image[..., 0] > 0, 1, np.arange(image.shape[2]) % 2 * 2).astype(np.int32)
    optimizer = optax.adam(3e-3)
    state = init_state(model, optimizer, image.shape)
    step = jax.jit(partial(train_step, model=model, optimizer=optimizer, loss=cross_entropy, mean=jnp.zeros(1), std=jnp.ones(1)))
    losses = []
    for _ in range(12):
        state, metrics = step(state, {"image": image, "label": label})
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
