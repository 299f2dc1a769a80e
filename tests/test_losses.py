"""Laws of the losses: masking, normalisation, finite gradients, equality with torch, and the same gradient on any number of devices."""

import importlib.util
import json
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.errors import InputError
from jaxseg.losses import LOSSES, cross_entropy, cross_entropy_dice, focal, soft_dice

ALL = pytest.mark.parametrize("name", [n for n in LOSSES if n != "cross_entropy_dice"])  # a sum of two of the others
K = 4


def _batch(seed=0, shape=(2, 5, 6), ignored=0.3):
    r = np.random.default_rng(seed)
    label = r.integers(0, K, shape)
    label[r.random(shape) < ignored] = 255
    logits = r.normal(size=(*shape, K)) * 2
    weight = r.random(shape) + 0.1
    return jnp.array(logits, jnp.float32), jnp.array(label, jnp.int32), jnp.array(weight, jnp.float32)


@partial(jax.jit, static_argnames=("name", "ignore_index", "gamma"))
def _value_and_grad(name, logits, label, *, gamma=None, **kwargs):
    kwargs |= {} if gamma is None else {"gamma": gamma}
    return jax.value_and_grad(LOSSES[name])(logits, label, **kwargs)


def _value(name, logits, label, **kwargs):
    return _value_and_grad(name, logits, label, **kwargs)[0]


def _softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_cross_entropy_and_focal_equal_the_weighted_mean_over_valid_pixels():
    logits, label, weight = _batch()
    class_weights = [1.0, 2.0, 0.5, 3.0]
    valid = np.asarray(label) != 255
    target = np.asarray(label)[valid]
    p = _softmax(np.asarray(logits, np.float64))[valid][np.arange(target.size), target]
    w = np.asarray(weight, np.float64)[valid] * np.asarray(class_weights)[target]
    got = _value("cross_entropy", logits, label, weight=weight, class_weights=jnp.array(class_weights))
    np.testing.assert_allclose(got, (w * -np.log(p)).sum() / w.sum(), rtol=1e-5)
    got = _value("focal", logits, label, weight=weight, class_weights=jnp.array(class_weights), gamma=2)
    np.testing.assert_allclose(got, (w * (1 - p) ** 2 * -np.log(p)).sum() / w.sum(), rtol=1e-5)
    np.testing.assert_allclose(focal(logits, label, gamma=0), cross_entropy(logits, label), rtol=1e-6)


def test_soft_dice_equals_its_definition_and_leaves_absent_classes_out():
    logits, label, weight = _batch()
    label = jnp.where(label == 2, 0, label)
    valid = (np.asarray(label) != 255).ravel()
    w = np.asarray(weight, np.float64).ravel()[valid]
    p = _softmax(np.asarray(logits, np.float64)).reshape(-1, K)[valid] * w[:, None]
    t = np.eye(K)[np.asarray(label).ravel()[valid]]
    dice = [2 * (p[:, k] * t[:, k]).sum() / (p[:, k].sum() + (w * t[:, k]).sum()) for k in (0, 1, 3)]
    np.testing.assert_allclose(soft_dice(logits, label, weight=weight), 1 - np.mean(dice), rtol=1e-5)


def test_soft_dice_of_a_perfect_prediction_is_0_and_of_a_miss_1():
    label = jnp.array([[[0, 1, 1, 0]]])
    sure = 40.0 * jax.nn.one_hot(label, 2)
    np.testing.assert_allclose(soft_dice(sure, label), 0, atol=1e-6)
    np.testing.assert_allclose(soft_dice(-sure, label), 1, atol=1e-6)


def test_cross_entropy_dice_is_the_weighted_sum():
    logits, label, weight = _batch()
    expected = 0.7 * cross_entropy(logits, label, weight=weight) + 0.3 * soft_dice(logits, label, weight=weight)
    np.testing.assert_allclose(cross_entropy_dice(logits, label, weight=weight, dice_share=0.3), expected, rtol=1e-6)


@ALL
def test_ignored_pixels_have_no_influence(name):
    logits, label, _ = _batch()
    ignored = (label == 255)[..., None]
    value, grad = _value_and_grad(name, logits, label)
    for junk in (1e4, jnp.nan):
        other, other_grad = _value_and_grad(name, jnp.where(ignored, junk, logits), label)
        assert other == value
        np.testing.assert_array_equal(other_grad, grad)
    np.testing.assert_array_equal(jnp.where(ignored, grad, 0), jnp.zeros_like(grad))
    # Another number for "ignored" is the same loss, be it negative or a class number.
    np.testing.assert_allclose(_value(name, logits, jnp.where(label == 255, -1, label), ignore_index=-1), value, rtol=1e-6)
    with_zero = _value(name, logits, jnp.where(label == 0, 255, label))
    np.testing.assert_allclose(_value(name, logits, jnp.where(label == 255, 0, label), ignore_index=0), with_zero, rtol=1e-6)


@ALL
def test_weight_0_is_ignored_and_a_common_factor_changes_nothing(name):
    logits, label, weight = _batch()
    value, _ = _value_and_grad(name, logits, label)
    filled = jnp.where(label == 255, 1, label)
    by_weight, _ = _value_and_grad(name, logits, filled, weight=(label != 255).astype(jnp.float32))
    np.testing.assert_allclose(by_weight, value, rtol=1e-6)
    a, _ = _value_and_grad(name, logits, label, weight=weight)
    b, _ = _value_and_grad(name, logits, label, weight=weight * 1e-3)
    np.testing.assert_allclose(a, b, rtol=1e-5)


@ALL
def test_nothing_to_learn_gives_0_and_zero_gradient(name):
    logits, label, weight = _batch()
    for kwargs in ({"label": jnp.full_like(label, 255)}, {"label": jnp.where(label == 255, 0, label), "weight": weight * 0}):
        value, grad = _value_and_grad(name, logits, **kwargs)
        assert value == 0
        np.testing.assert_array_equal(grad, jnp.zeros_like(grad))


@ALL
@pytest.mark.parametrize("wrong", [-1, K, 254, -(2**31)])
def test_an_illegal_label_is_loud(name, wrong):
    logits, label, _ = _batch()
    value, grad = _value_and_grad(name, logits, label.at[0, 0, 0].set(wrong))
    assert np.isnan(value)
    assert np.isnan(grad[:, 1:][label[:, 1:] != 255]).all()
    assert np.isnan(_value(name, logits, jnp.full_like(label, 255).at[0, 0, 0].set(wrong)))


@ALL
def test_gradient_is_the_finite_difference(name):
    with jax.enable_x64(True):  # the central difference of a float32 loss is too coarse; the loss itself stays float32
        logits, label, weight = _batch(shape=(1, 3, 3))
        f = jax.jit(lambda x: LOSSES[name](x, label, weight=weight))
        direction = jnp.array(np.random.default_rng(1).normal(size=logits.shape), jnp.float32)
        slope = (jax.grad(f)(logits) * direction).sum()
        step = 1e-2
        np.testing.assert_allclose((f(logits + step * direction) - f(logits - step * direction)) / (2 * step), slope, rtol=2e-3, atol=2e-5)


@ALL
@pytest.mark.parametrize("size", [1e3, 1e30])
def test_gradients_of_extreme_logits_are_finite(name, size):
    logits, label, _ = _batch()
    value, grad = _value_and_grad(name, jnp.sign(logits) * size, label)
    assert np.isfinite(value)
    assert np.isfinite(grad).all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 5.0])
def test_focal_gradient_is_finite_where_the_prediction_is_certain(gamma):
    label = jnp.array([[[0, 1]]])
    for sign in (1, -1):
        value, grad = _value_and_grad("focal", sign * 200.0 * jax.nn.one_hot(label, 2), label, gamma=gamma)
        assert np.isfinite(value)
        assert np.isfinite(grad).all()


@ALL
def test_half_precision_logits_are_summed_in_float32(name):
    logits = jnp.zeros((1, 96, 96, 2), jnp.bfloat16)
    label = jnp.zeros((1, 96, 96), jnp.int32).at[0, :48].set(1)
    value, grad = _value_and_grad(name, logits, label)
    assert value.dtype == jnp.float32
    assert grad.dtype == jnp.bfloat16
    np.testing.assert_allclose(value, _value(name, logits.astype(jnp.float32), label), rtol=1e-6)


@ALL
def test_wrong_shapes_and_types_are_refused(name):
    logits, label, weight = _batch()
    loss = LOSSES[name]
    for args, kwargs in (
        ((logits[:, :4], label), {}),
        ((logits[..., 0], label), {}),
        ((logits, label.astype(jnp.float32)), {}),
        ((logits.astype(jnp.int32), label), {}),
        ((logits, label), {"weight": weight[0]}),
    ):
        with pytest.raises(InputError, match=name):
            loss(*args, **kwargs)
    with pytest.raises(InputError, match="class_weights"):
        cross_entropy(logits, label, class_weights=[1.0, 2.0])
    with pytest.raises(InputError, match="gamma"):
        focal(logits, label, gamma=-1)
    with pytest.raises(InputError, match="dice_share"):
        cross_entropy_dice(logits, label, dice_share=2)


def test_cross_entropy_equals_torch():
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed (pip install -e .[parity]): cross_entropy is not compared with torch.nn.functional")
    import torch

    logits, label, _ = _batch()
    class_weights = [0.2, 1.0, 3.0, 0.7]
    x = torch.tensor(np.asarray(logits)).permute(0, 3, 1, 2).requires_grad_()
    expected = torch.nn.functional.cross_entropy(
        x, torch.tensor(np.asarray(label), dtype=torch.int64), weight=torch.tensor(class_weights), ignore_index=255
    )
    expected.backward()
    value, grad = _value_and_grad("cross_entropy", logits, label, class_weights=jnp.array(class_weights))
    np.testing.assert_allclose(value, expected.item(), rtol=1e-6)
    np.testing.assert_allclose(grad, x.grad.permute(0, 2, 3, 1).numpy(), atol=1e-7)


_PMAP = """
import json
import jax, jax.numpy as jnp, numpy as np
from jaxseg.losses import LOSSES
assert jax.device_count() == 8
r = np.random.default_rng(0)
image = r.normal(size=(8, 6, 6, 3)).astype(np.float32)
kernel = r.normal(size=(3, 4)).astype(np.float32)
weight = (r.random((8, 6, 6)) + 0.1).astype(np.float32)
label = r.integers(0, 4, (8, 6, 6)).astype(np.int32)
for d in range(8):
    label[d].ravel()[: 5 * d] = 255  # 0, 5 ... 35 of 36 pixels ignored
label[3:][label[3:] == 1] = 2  # class 1 is missing on most devices
result = {}
for name, loss in LOSSES.items():
    def f(kernel, image, label, weight, axis_name=None):
        return loss(jnp.tanh(image @ kernel) * 3, label, weight=weight, axis_name=axis_name)
    whole = jax.jit(jax.value_and_grad(f))(kernel, image, label, weight)
    def step(kernel, image, label, weight):
        value, grad = jax.value_and_grad(f)(kernel, image, label, weight, axis_name="batch")
        return value, jax.lax.pmean(grad, "batch")
    per_device = [x[:, None] for x in (image, label, weight)]
    step = jax.pmap(step, axis_name="batch", in_axes=(None, 0, 0, 0))
    value, grad = step(kernel, *per_device)
    each = jax.vmap(jax.grad(f), in_axes=(None, 0, 0, 0))
    mean_of_means = jax.jit(each)(kernel, *per_device).mean(0)
    bad = label.copy()
    bad[5, 0, 0] = bad[5, 5, 5] = -1
    poisoned, _ = step(kernel, per_device[0], bad[:, None], per_device[2])
    result[name] = {
        "value": float(np.abs(value - whole[0]).max()),
        "grad": float(np.abs(grad - whole[1]).max()),
        "mean_of_means": float(np.abs(mean_of_means - whole[1]).max()),
        "poisoned": bool(np.isnan(poisoned).all()),
    }
print(json.dumps(result))
"""


def test_eight_devices_with_uneven_ignored_pixels_give_the_gradient_of_the_whole_batch():
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", _PMAP], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for name, error in json.loads(done.stdout.splitlines()[-1]).items():
        assert error["value"] < 1e-6, (name, error)
        assert error["grad"] < 1e-6, (name, error)
        assert error["poisoned"], name
        # The law is worth testing only because the mean of the devices' means is something else.
        assert error["mean_of_means"] > 1e-3, (name, error)
