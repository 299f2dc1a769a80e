"""Laws of whole-image prediction: any size, reflected context, resampling, standardisation."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import random_variables

from jaxseg.errors import InputError
from jaxseg.inference.whole import predict_whole, resized, standardise, stretched
from jaxseg.models import UNet
from jaxseg.models.unet import margin, output_size


def _image(*shape, seed=0):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


def _predict(model, **kwargs):
    return jax.jit(lambda variables, image: predict_whole(model, variables, image, **kwargs))


class Identity(nn.Module):
    """The image as its own logits."""

    def __call__(self, image):
        return image


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((1, 20, 20, 1), r"1 channels last; the model takes 3.*jnp.repeat"),  # which would be taken for grey in all three
        ((1, 20, 20, 4), r"4 channels last; the model takes 3"),
        ((1, 0, 20, 3), r"shape \(1, 0, 20, 3\); required \[N, H, W, C\]"),
        ((20, 20, 3), r"shape \(20, 20, 3\); required \[N, H, W, C\]"),
    ],
)
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_images_of_other_shapes_are_refused(padding, shape, said):
    model = UNet(2, (2, 3), padding=padding)
    variables = random_variables(model, _image(1, 20, 20, 3))
    with pytest.raises(InputError, match=said):
        _predict(model, mean=[0.5] * 3, std=[0.2] * 3)(variables, _image(*shape))


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("size", [(1, 1), (13, 50), (188, 188), (200, 150)])
@pytest.mark.parametrize("depth", [2, 4])
def test_any_size_gives_logits_for_every_pixel(padding, size, depth):
    model = UNet(num_classes=3, features=(2,) * (depth + 1), padding=padding)
    image = jax.ShapeDtypeStruct((2, *size, 1), jnp.float32)
    variables = jax.eval_shape(partial(model.init, jax.random.key(0)), jnp.zeros((1, 188, 188, 1)))
    logits = jax.eval_shape(_predict(model), variables, image)
    assert logits.shape == (2, *size, 3)
    assert logits.dtype == jnp.float32


@pytest.mark.parametrize("size", [(1, 1), (13, 50), (61, 40)])
def test_an_unpadded_model_sees_the_reflected_image(size):
    model = UNet(num_classes=2, features=(2, 3, 4))
    image = _image(2, *size, 1)
    variables = random_variables(model, jnp.zeros((1, 44, 44, 1)))
    logits = _predict(model)(variables, image)
    m = margin(2)
    h, w = (next(s for s in range(side + 2 * m, 999) if output_size(s, 2)) for side in size)
    context = np.pad(image, [(0, 0), (m, h - m - size[0]), (m, w - m - size[1]), (0, 0)], mode="reflect")
    expected = jax.jit(model.apply)(variables, context)[:, : size[0], : size[1]]
    assert logits.shape == (2, *size, 2)
    assert np.all(np.isfinite(logits))
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_inside_the_context_does_not_matter():
    """Pixels further than the margin from the border get what the model says of the bare image."""
    model = UNet(num_classes=2, features=(2, 3, 4))
    m = margin(2)
    assert m % 4 == 0  # the bare image then lies on the same grid of poolings
    image = _image(1, 60, 64, 1)
    variables = random_variables(model, image)
    bare = jax.jit(model.apply)(variables, image)
    assert bare.shape[1:3] == (60 - 2 * m, 64 - 2 * m)
    np.testing.assert_allclose(_predict(model)(variables, image)[:, m : 60 - m, m : 64 - m], bare, rtol=1e-4, atol=1e-5)


def test_a_padded_model_is_applied_as_it_is():
    model = UNet(num_classes=2, features=(2, 3), padding="same")
    image = _image(1, 13, 50, 1)
    variables = random_variables(model, image)
    np.testing.assert_allclose(_predict(model)(variables, image), jax.jit(model.apply)(variables, image), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("factor", [0.25, 0.5, 0.7, 2.0])
@pytest.mark.parametrize("size", [(1, 1), (13, 50)])
def test_resampled_predictions_come_back_to_full_size(factor, size):
    for model in (UNet(2, (2, 2)), UNet(2, (2, 2), padding="same")):
        variables = jax.eval_shape(partial(model.init, jax.random.key(0)), jnp.zeros((1, 20, 20, 1)))
        logits = jax.eval_shape(_predict(model, resize=factor), variables, jax.ShapeDtypeStruct((1, *size, 1), jnp.float32))
        assert logits.shape == (1, *size, 2)
    constant = np.full((1, *size, 2), 0.3, np.float32)
    np.testing.assert_allclose(_predict(Identity(), resize=factor)({}, constant), constant, rtol=1e-5)


def test_resampling_moves_nothing():
    """The logits of a linear ramp are the ramp: whatever is shrunk and enlarged stays at its place."""
    row, column = np.mgrid[:24, :32]
    ramp = (2 * row - column).astype(np.float32)[None, :, :, None]
    for factor in (0.5, 2.0):
        back = np.asarray(_predict(Identity(), resize=factor)({}, ramp))
        np.testing.assert_allclose(back[:, 4:-4, 4:-4], ramp[:, 4:-4, 4:-4], atol=1e-3)


def test_the_model_sees_the_resampled_image():
    model = UNet(num_classes=2, features=(2, 3), padding="same")
    image = _image(1, 13, 50, 1)
    variables = random_variables(model, image)
    h, w = resized((13, 50), 0.5)
    small = jax.image.resize(image, (1, h, w, 1), "linear")
    expected = jax.image.resize(jax.jit(model.apply)(variables, small), (1, 13, 50, 2), "linear")
    np.testing.assert_allclose(_predict(model, resize=0.5)(variables, image), expected, rtol=1e-4, atol=1e-5)


def test_resized_is_at_least_a_pixel():
    assert resized((13, 50), 0.5) == (6, 25)
    assert resized((1, 3), 0.1) == (1, 1)


def test_standardised_images_have_mean_0_and_deviation_1_in_every_channel():
    image = _image(2, 9, 8, 3) * np.float32([1, 20, 300]) + np.float32([5, 0, -7])
    out = np.asarray(standardise(image, image.mean((0, 1, 2)), image.std((0, 1, 2))))
    np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(out.std((0, 1, 2)), 1, rtol=1e-4)
    np.testing.assert_array_equal(standardise(image, 0.0, 1.0), image)


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_prediction_standardises_as_training_does(padding):
    model = UNet(num_classes=2, features=(2, 3), padding=padding)
    image, mean, std = _image(1, 13, 18, 3), (0.2, 0.5, 0.6), (0.1, 0.2, 0.4)
    variables = random_variables(model, jnp.zeros((1, 20, 20, 3)))
    expected = _predict(model)(variables, np.asarray(standardise(image, mean, std)))
    logits = _predict(model, mean=mean, std=std)(variables, image)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert np.max(np.abs(logits - _predict(model)(variables, image))) > 1e-2


def test_a_stretched_image_has_its_own_percentiles_at_0_and_1_whatever_its_exposure():
    image = _image(2, 31, 40, 3)
    exposures = image * np.array([0.05, 1.7], np.float32)[:, None, None, None] + 0.2
    out = stretched(image, (1.0, 99.0))
    np.testing.assert_allclose(np.percentile(out, [1, 99], (1, 2)), np.broadcast_to([[[0]], [[1]]], (2, 2, 3)), atol=1e-5)
    np.testing.assert_allclose(stretched(exposures, (1.0, 99.0)), out, atol=1e-4)
    np.testing.assert_allclose(_predict(Identity(), percentiles=(1.0, 99.0))({}, exposures), out, atol=1e-4)
    assert np.isfinite(stretched(np.zeros((1, 4, 4, 1), np.float32), (1.0, 99.0))).all()
