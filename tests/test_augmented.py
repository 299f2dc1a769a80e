"""Laws of test-time augmentation: the mean over a group is as symmetric as the group, and leaves alone what already is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from random_variables import random_variables

from jaxseg.errors import InputError
from jaxseg.inference.augmented import augmented
from jaxseg.inference.tiles import tiled
from jaxseg.models import UNet

IMAGE = np.random.default_rng(0).uniform(size=(2, 13, 18, 1)).astype(np.float32)
D4 = [(turns, mirrored) for mirrored in (False, True) for turns in range(4)]


def convolve(kernel, image):
    return lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def kernel(seed=1):
    return np.random.default_rng(seed).normal(size=(3, 3, 1, 3)).astype(np.float32)


def act(x, turns, mirrored):
    return np.rot90(x[:, :, ::-1] if mirrored else x, turns, (1, 2))


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.parametrize(("symmetries", "scales"), [(8, (1.0,)), (4, (0.6, 1.0)), (1, (1.5,))])
def test_it_is_as_symmetric_as_its_group(symmetries, scales):
    predict = jax.jit(augmented(convolve, symmetries=symmetries, scales=scales))
    first = np.asarray(predict(kernel(), IMAGE))
    assert first.shape == (2, 13, 18, 3)
    np.testing.assert_allclose(np.exp(first).sum(-1), 1, rtol=1e-5)
    inside = {1: [(0, False)], 4: D4[:4], 8: D4}[symmetries]
    for element in D4:
        difference = abs(np.asarray(predict(kernel(), act(IMAGE, *element).copy())) - act(first, *element)).max()
        assert (difference < 1e-5) if element in inside else (difference > 1e-2), element


def test_it_equals_the_mean_written_out():
    each = []
    for turns, mirrored in D4:
        probabilities = np.exp(log_softmax(convolve(kernel(), act(IMAGE, turns, mirrored).copy())))
        back = np.rot90(probabilities, -turns, (1, 2))
        each.append(back[:, :, ::-1] if mirrored else back)
    np.testing.assert_allclose(augmented(convolve)(kernel(), IMAGE), np.log(np.mean(each, 0)), rtol=1e-4, atol=1e-5)


def test_it_leaves_a_symmetric_model_alone():
    k = kernel()
    symmetric = sum(np.rot90(k[::-1] if mirrored else k, turns) for turns, mirrored in D4)
    np.testing.assert_allclose(augmented(convolve)(symmetric, IMAGE), log_softmax(convolve(symmetric, IMAGE)), rtol=1e-4, atol=1e-4)


def test_one_symmetry_at_scale_one_is_the_model():
    got = augmented(convolve, symmetries=1, scales=(1,))(kernel(), IMAGE)
    np.testing.assert_allclose(got, log_softmax(convolve(kernel(), IMAGE)), rtol=1e-5, atol=1e-5)


def test_scales_show_the_model_larger_images_and_average_its_probabilities():
    sizes = []

    def predict(variables, image):
        sizes.append(image.shape[1:3])
        return jnp.broadcast_to(jnp.asarray([len(sizes), 0.0]), (*image.shape[:3], 2))  # 1, then 2, then 3

    got = augmented(predict, symmetries=1, scales=(0.5, 1.0, 2.0))((), IMAGE)
    assert sizes == [(6, 9), (13, 18), (26, 36)]
    want = np.log(np.mean([1 / (1 + np.exp(-i)) for i in (1, 2, 3)]))
    np.testing.assert_allclose(got[..., 0], want, rtol=1e-5)


def test_probabilities_of_0_have_a_finite_logarithm_and_gradient():
    sure = lambda variables, image: jnp.concatenate([image, image * 0 - 1e4], -1)  # noqa: E731
    value, gradient = jax.value_and_grad(lambda x: augmented(sure, symmetries=1)((), x).sum())(IMAGE)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_it_works_with_vmap_and_around_a_jitted_predict():
    kernels = np.stack([kernel(1), kernel(2)])
    predict = augmented(jax.jit(convolve))
    ensemble = jax.jit(jax.vmap(predict, (0, None)))(kernels, IMAGE)
    for k, one in zip(kernels, ensemble, strict=True):
        np.testing.assert_allclose(predict(k, IMAGE), one, rtol=1e-4, atol=1e-5)


def test_it_works_around_tiles():
    """A network whose tiles equal the whole: also turned, mirrored and averaged."""
    model = UNet(2, features=(2, 4), padding="same", dropout=0.0)
    image = np.random.default_rng(3).uniform(size=(1, 40, 48, 1)).astype(np.float32)
    variables = random_variables(model, image)
    whole = augmented(jax.jit(model.apply), symmetries=4)(variables, image)
    np.testing.assert_allclose(augmented(tiled(model.apply, tile=32), symmetries=4)(variables, image), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"symmetries": 7}, "symmetries=7"),
        ({"scales": ()}, "scales=()"),
        ({"scales": (1.0, 0.0)}, "above 0"),
        ({"scales": (float("nan"),)}, "scales=(nan,)"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(InputError) as error:
        augmented(convolve, **options)
    assert words in str(error.value)


def test_a_predict_that_crops_is_refused():
    with pytest.raises(InputError, match="required logits of the same height and width"):
        augmented(lambda variables, image: image[:, 1:])((), IMAGE)
