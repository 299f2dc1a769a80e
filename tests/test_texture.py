"""Laws of jaxseg.ops.texture: equality with SciPy, exactness on polynomials, turning with the image."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from op_laws import random_array
from scipy import ndimage

from jaxseg.errors import InputError
from jaxseg.ops.texture import gaussian, oriented_responses, texture_energy

fast_energy = functools.partial(jax.jit, static_argnames=("sigmas", "orientations"))(texture_energy)
fast_gaussian = functools.partial(jax.jit, static_argnames=("sigma", "orders"))(gaussian)


@pytest.mark.parametrize(("size", "sigma"), [((5, 150), 2.0), ((1, 1), 2.0), ((70, 3), 12.0)])
def test_smoothing_equals_scipy(size, sigma):
    """Also where the kernel is longer than a line, and a line longer than a block."""
    x = random_array(2, *size)
    theirs = np.stack([ndimage.gaussian_filter(image, sigma, truncate=3, mode="reflect") for image in x])
    np.testing.assert_allclose(fast_gaussian(jnp.asarray(x), sigma)[0], theirs, atol=1e-5)


def test_derivatives_are_exact_on_polynomials():
    """Of 2 + 3 y - x + y^2 / 2 + 2 x y - 3 x^2 / 2 at (y, x) = 0, away from the edges."""
    y, x = np.mgrid[-20:21, -20:21].astype(np.float32)
    image = 2 + 3 * y - x + y**2 / 2 + 2 * x * y - 3 * x**2 / 2
    first = fast_gaussian(jnp.asarray(image), 2.0, ((1, 0), (0, 1)))[:, 20, 20]
    second = fast_gaussian(jnp.asarray(image), 2.0, ((2, 0), (1, 1), (0, 2)))[:, 20, 20]
    np.testing.assert_allclose(first / 2, [3, -1], rtol=1e-4)
    np.testing.assert_allclose(second / 4, [1, 2, -3], rtol=1e-4)


def test_steered_responses_are_derivatives_in_their_directions():
    y, x = np.mgrid[-20:21, -20:21].astype(np.float32)
    for o, t in enumerate(np.pi * np.arange(3) / 3):
        along = np.sin(t) * y + np.cos(t) * x
        first, second = oriented_responses(jnp.asarray(along + along**2 / 2), 2.0, orientations=3)
        np.testing.assert_allclose(first[:, 20, 20] / 2, np.cos(t - np.pi * np.arange(3) / 3), atol=1e-4)
        np.testing.assert_allclose(second[:, 20, 20] / 4, np.cos(t - np.pi * np.arange(3) / 3) ** 2, atol=1e-4)
        assert first[o, 20, 20] == pytest.approx(2, rel=1e-4)


def test_energy_turns_with_the_image():
    """A quarter turn of the image turns the energy, and exchanges orientations half of them apart."""
    x = random_array(12, 12, 1)
    energy, turned = (fast_energy(jnp.asarray(image), (1.0, 3.0)) for image in (x, np.rot90(x).copy()))
    back = np.rot90(turned, -1).reshape(12, 12, 2, 4)
    np.testing.assert_allclose(np.roll(back, 2, axis=-1).reshape(12, 12, 8), energy, atol=1e-4)


def test_energy_is_that_of_stripes_across():
    stripes = np.broadcast_to(50 + 20 * np.cos(np.arange(64) * np.pi / 4), (40, 64)).astype(np.float32)
    energy = fast_energy(jnp.asarray(stripes)[..., None], sigmas=(1.5,))[20, 32]
    assert energy[0] > 1.3 * energy[1]
    assert energy[1] == pytest.approx(float(energy[3]), rel=1e-3)
    assert energy[2] < 1e-2


def test_channels_are_apart_and_constants_have_no_energy():
    x = np.stack([np.full((9, 8), 70, np.float32), random_array(9, 8)], -1)
    both = fast_energy(jnp.asarray(x), sigmas=(1.0, 2.0), orientations=3)
    assert both.shape == (9, 8, 12)
    assert both[..., :6].max() < 1e-3
    np.testing.assert_allclose(both[..., 6:], fast_energy(jnp.asarray(x[..., 1:]), sigmas=(1.0, 2.0), orientations=3), rtol=1e-5)


@pytest.mark.parametrize("image", [jnp.zeros((4, 4)), jnp.zeros((4, 4, 1), jnp.int32)])
def test_what_is_no_image_is_refused(image):
    with pytest.raises(InputError, match="texture_energy"):
        texture_energy(image)
