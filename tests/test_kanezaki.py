"""Differentiable feature clustering: the same training as torch's, stopping, blocks, images apart, what it finds."""

import importlib.util

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.errors import InputError
from jaxseg.unsupervised.kanezaki import Conv3x3, FeatureClustering, _first_weights, clustering_loss, kanezaki, kanezaki_levels


def flag(shape=(12, 36)):
    """Three bands of different colours under a little noise."""
    bands = np.repeat([[0.9, 0.1, 0.1], [0.1, 0.8, 0.2], [0.1, 0.2, 0.9]], -(-shape[1] // 3), 0)[: shape[1]]
    noise = np.random.default_rng(0).uniform(0, 0.05, (*shape, 3))
    return jnp.asarray(bands + noise, jnp.float32)


OPTIONS = {"channels": 6, "shrink": 1}  # static: one compilation for many of the tests


def test_convolution_is_flaxs():
    x = jax.random.normal(jax.random.key(0), (2, 5, 7, 3))
    params = {"kernel": jax.random.normal(jax.random.key(1), (3, 3, 3, 4)), "bias": jnp.arange(4.0)}
    ours, flaxs = (jax.jit(layer.apply)({"params": params}, x) for layer in (Conv3x3(4), nn.Conv(4, (3, 3))))
    np.testing.assert_allclose(ours, flaxs, atol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_training_is_torchs():
    """Six steps of gradient descent with momentum on the paper's network, with its batch norms, and its loss: labels and responses."""
    import torch
    from torch.nn import functional

    image, continuity, rate = flag() * jnp.linspace(0.4, 1, 12)[:, None, None], 1.5, 0.1
    model = FeatureClustering(6)
    params = _first_weights(6, 0)
    weights = {}
    for name in ("conv1", "conv2"):
        weights[name] = [
            torch.tensor(np.asarray(params[name]["kernel"]).transpose(3, 2, 0, 1)),
            torch.tensor(np.asarray(params[name]["bias"])),
        ]
    weights["response"] = [torch.tensor(np.asarray(params["response"]["kernel"]).T[..., None, None])]
    norms = {name: [torch.ones(6), torch.zeros(6)] for name in ("norm1", "norm2", "response_norm")}
    leaves = [w.requires_grad_() for group in (*weights.values(), *norms.values()) for w in group]
    optimizer = torch.optim.SGD(leaves, lr=rate, momentum=0.9)
    pixels = torch.tensor(np.asarray(image)).permute(2, 0, 1)[None]

    def respond():
        x = pixels
        for i in (1, 2):
            x = functional.conv2d(x, *weights[f"conv{i}"], padding=1).relu()
            x = functional.batch_norm(x, None, None, *norms[f"norm{i}"], training=True)
        x = functional.conv2d(x, weights["response"][0])
        return functional.batch_norm(x, None, None, *norms["response_norm"], training=True)

    @jax.jit
    def step(params, velocity):
        gradient = jax.grad(lambda p: clustering_loss(model.apply({"params": p}, image[None]), continuity))(params)
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, gradient)
        return jax.tree.map(lambda p, v: p - rate * v, params, velocity), velocity

    velocity = jax.tree.map(jnp.zeros_like, params)
    for _ in range(6):
        x = respond()
        label = x.argmax(1)
        steps = (x[:, :, 1:] - x[:, :, :-1]).abs().mean() + (x[..., 1:] - x[..., :-1]).abs().mean()
        optimizer.zero_grad()
        (functional.cross_entropy(x, label) + continuity * steps).backward()
        optimizer.step()
        params, velocity = step(params, velocity)
    theirs = respond().detach().permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(jax.jit(model.apply)({"params": params}, image[None]), theirs, atol=2e-3)
    label = kanezaki(image, iterations=6, min_labels=1, continuity=continuity, learning_rate=rate, **OPTIONS)
    numbered = np.unique(theirs[0].argmax(-1), return_inverse=True)[1].reshape(label.shape)
    assert np.mean(label == numbered) > 0.99  # all but where two responses are nearly equal
    assert np.mean(label[::-1] == numbered) < 0.9


def test_finds_the_bands():
    """Away from borders, which two layers of 3x3 see, each band has a label of its own."""
    label = np.asarray(kanezaki(flag(), iterations=60, **OPTIONS))
    middles = [np.unique(label[3:-3, columns]).tolist() for columns in (slice(3, 9), slice(15, 21), slice(27, 33))]
    assert [len(middle) for middle in middles] == [1, 1, 1]
    assert len({middle[0] for middle in middles}) == 3


def test_labels_are_int32_from_0_without_gaps_and_repeatable():
    label = kanezaki(flag(), iterations=3, **OPTIONS)
    assert (label.dtype, label.shape) == (jnp.int32, (12, 36))
    assert np.unique(label).tolist() == list(range(int(label.max()) + 1))
    np.testing.assert_array_equal(label, kanezaki(flag(), iterations=3, **OPTIONS))


def test_stops_at_the_minimum_and_at_the_last_iteration():
    """With as many labels allowed as channels one update is made, whatever is allowed; no iteration beyond the last changes anything."""
    one = kanezaki(flag(), iterations=1, **OPTIONS)
    np.testing.assert_array_equal(kanezaki(flag(), iterations=50, min_labels=6, **OPTIONS), one)
    assert (kanezaki(flag(), iterations=50, min_labels=1, **OPTIONS) != one).any()


def test_levels_of_one_training_are_those_of_trainings_apart():
    """Also where a level is passed at once, and where training has ended before."""
    options = OPTIONS | {"iterations": 20}
    levels = list(kanezaki_levels(flag(), (5, 4, 4, 1), **options))
    assert len({int(level.max()) for level in levels}) > 1
    for number, level in zip((5, 4, 4, 1), levels, strict=True):
        np.testing.assert_array_equal(kanezaki(flag(), min_labels=number, **options), level)


def test_64_bit_numbers_are_taken():
    """The network then has them too, so labels may be others."""
    with jax.enable_x64(True):
        label = kanezaki(flag(), iterations=3, **OPTIONS)
    assert (label.dtype, label.shape) == (jnp.int32, (12, 36))
    assert np.unique(label).tolist() == list(range(int(label.max()) + 1))


def test_levels_that_grow_are_refused():
    with pytest.raises(InputError, match=r"min_labels \(3, 4\); required the largest first"):
        next(kanezaki_levels(flag(), (3, 4)))


@pytest.mark.slow
def test_vmap_segments_each_image_as_alone():
    """Though they stop after different numbers of steps."""
    images = jnp.stack([flag(), flag()[::-1, ::-1] ** 2])
    options = OPTIONS | {"iterations": 20, "min_labels": 4}
    together = jax.jit(jax.vmap(lambda image: kanezaki(image, **options)))(images)
    for image, label in zip(images, together, strict=True):
        np.testing.assert_array_equal(kanezaki(image, **options), label)


def test_shrunk_labels_hold_for_blocks():
    """Of an image of blocks, cut at the border, the labels are those of the image whose pixels the blocks are."""
    small = flag()
    large = small.repeat(3, 0).repeat(3, 1)[:-1, :-2]
    options = {"channels": 6, "iterations": 2}
    label = kanezaki(small, shrink=1, **options)
    np.testing.assert_array_equal(kanezaki(large, shrink=3, **options), label.repeat(3, 0).repeat(3, 1)[:-1, :-2])


@pytest.mark.parametrize(
    ("name", "value"), [("min_labels", 0), ("shrink", 1.5), ("continuity", -1.0), ("learning_rate", float("nan")), ("channels", True)]
)
def test_options_out_of_range_are_refused(name, value):
    with pytest.raises(InputError, match=f"{name} {value}"):
        kanezaki(flag(), **{name: value})
