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
    apply = jax.jit(model.apply)
    logits = apply(variables, image)
    assert logits.dtype == jnp.float32
    assert logits.shape == (*image.shape[:3], 3)
    assert np.isfinite(logits).all()
    assert abs(np.asarray(apply(variables, image + image[:, ::-1])) - logits).max() > 0
    assert apply._cache_size() == 1  # compiled once
    turned = image.swapaxes(1, 2)  # the odd side's and the even side's places changed
    assert jax.eval_shape(model.apply, variables, turned).shape == (*turned.shape[:3], 3)
    half = jax.eval_shape(NARROW[name](num_classes=3, dtype=jnp.bfloat16).apply, variables, image)
    assert half.dtype == jnp.float32


@EVERY
def test_a_run_folder_describes_it(name):
    model = NARROW[name](num_classes=3)
    again = model_from_json(json.loads(json.dumps(model_to_json(model))))
    assert model_to_json(again) == model_to_json(model)


def gradient(model, variables, image):
    """Of the mean square of the logits in training, with the new statistics."""

    def f(params):
        logits, updates = model.apply(
            {**variables, "params": params}, image, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)}
        )
        return sum((head**2).mean() for head in jax.tree.leaves(logits)), updates

    return jax.value_and_grad(f, has_aux=True)(variables["params"])


@pytest.mark.parametrize("name", ["conv_only", *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS if name != "conv_only")])
def test_recomputation_changes_no_name_value_or_gradient(name):
    """`remat` keeps a block's input alone, as the program's equations say; what the training step sees is the same."""
    model, image = NARROW[name](num_classes=3), image_for(name)
    variables = random_variables(model, image)
    plain, again = (jax.jit(partial(gradient, net)).trace(variables, image) for net in (model, model.clone(remat=True)))
    plain_blocks, blocks = (
        [
            equation
            for equation in traced.jaxpr.jaxpr.eqns
            if "prevent_cse" in equation.params and "conv_general_dilated" in str(equation.params["jaxpr"])
        ]
        for traced in (plain, again)
    )
    assert not plain_blocks  # poolings recompute, too
    assert len(blocks) > 1
    quickly = {"xla_backend_optimization_level": 0}  # each runs once
    want, got = (traced.lower().compile(compiler_options=quickly)(variables, image) for traced in (plain, again))
    rounding = 1e-6 * max(float(abs(a).max()) for a in jax.tree.leaves(want))  # all that a bias before a batch norm gets
    for (path, a), b in zip(jax.tree.leaves_with_path(want), jax.tree.leaves(got), strict=True):
        # By its length: computed again, a unit that is all but 0 may fall on the other side of its ReLU.
        assert np.linalg.norm(b - a) <= 1e-2 * np.linalg.norm(a) + rounding * np.sqrt(a.size), path


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
