"""What the tests of several models share: laws of any model, and torch's networks beside ours."""

import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from random_variables import random_variables

from jaxseg.upsample import center_crop
from jaxseg.weights.table import to_torch


def check_one_compilation(model, image):
    """Under jit a model is traced once for images of one size. (`chex.assert_max_traces` counts alike functions of other files too.)"""
    variables, traces = random_variables(model, image), []

    @jax.jit
    def apply(variables, image):
        traces.append(image.shape)
        return model.apply(variables, image)

    first = apply(variables, image)
    assert np.any(np.asarray(apply(variables, image + 1)) != first)
    np.testing.assert_array_equal(apply(jax.tree.map(jnp.asarray, variables), jnp.asarray(image)), first)
    assert len(traces) == 1


def check_the_unet_s_skip(model, level, image):
    """The skip of this level is the encoder's map, cropped, and reaches the logits; of images and volumes."""
    variables, width = random_variables(model, image), model.features[level]

    @jax.jit
    def apply(variables, image, factor):
        """Logits with the skip multiplied by `factor`; what the decoder got; what the encoder made."""
        got = {}

        def scale_skip(call, args, kwargs, context):
            if context.module.name == f"up{level}_conv1":
                skip, up = args[0][..., :width], args[0][..., width:]
                got["skip"] = skip
                args = (jnp.concatenate([factor * skip, up], axis=-1),)
            out = call(*args, **kwargs)
            if context.module.name == f"down{level}_conv2":
                got["encoder"] = nn.relu(out)
            return out

        with nn.intercept_methods(scale_skip):
            logits = model.apply(variables, image)
        return logits, got["skip"], center_crop(got["encoder"], *got["skip"].shape[1:-1])

    logits, skip, encoder = apply(variables, image, 1.0)
    np.testing.assert_allclose(logits, jax.jit(model.apply)(variables, image), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(skip, encoder)
    assert np.any(np.asarray(skip) > 0)
    without, _, _ = apply(variables, image, 0.0)
    assert np.max(np.abs(np.asarray(logits) - without)) > 1e-3 * np.max(np.abs(logits))


def check_first_channels_are_skips(model, image, levels):
    """Of what `up{level}_conv1` reads, the first `features[level]` channels, the skip, reach the logits, which have the image's size."""
    variables = random_variables(model, image)

    @jax.jit
    def apply(variables, image, more):
        def add(call, args, kwargs, context):
            for level in range(levels):
                if context.module.name == f"up{level}_conv1":
                    skip = args[0][..., : model.features[level]]
                    args = (args[0].at[..., : model.features[level]].add(more[level] * skip**2),)
            return call(*args, **kwargs)

        with nn.intercept_methods(add):
            return model.apply(variables, image)

    logits = apply(variables, image, jnp.zeros(levels))
    assert (logits.shape, logits.dtype) == ((*image.shape[:3], model.num_classes), jnp.float32)
    for more in np.eye(levels, dtype=np.float32):
        assert np.max(np.abs(apply(variables, image, more) - logits)) > 1e-3


def check_equals_torch(model, table, reference, images):
    """With our random variables, through the table, the torch module gives our logits."""
    import torch

    variables = random_variables(model, images[0])
    missing, unexpected = reference.load_state_dict(state_dict(table, variables), strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    reference.eval()
    for image in images:
        with torch.no_grad():
            assert_close(np.asarray(jax.jit(model.apply)(variables, image)), nhwc(reference(nchw(image))))


def package(name):
    """The package itself, or else a skip: the test that compares with its network as written down is there in any case."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision's operators, built for another torch
        pytest.skip(f"{name} cannot be imported ({str(error).splitlines()[0]}): its network is compared as written down in the test only")


def state_dict(table, variables):
    """Our variables as theirs. Every variable has its key."""
    import torch

    assert sorted(path for path, _ in table.values()) == sorted(flatten_dict(variables))
    return {key: torch.tensor(array) for key, array in to_torch(table, variables).items()}


def nchw(image):
    import torch

    return torch.tensor(image).permute(0, 3, 1, 2)


def nhwc(x):
    return x.detach().permute(0, 2, 3, 1).numpy()


def assert_close(got, expected, relative=1e-4):
    assert got.shape == expected.shape
    assert np.max(np.abs(got - expected)) <= relative * np.max(np.abs(expected))
