"""Laws of jaxseg.ops.colour: equality with scikit-image, inverses, finite slopes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.color import rgb2lab

from jaxseg.errors import InputError
from jaxseg.ops.colour import lab_to_rgb, rgb_to_lab


def colours():
    """Corners of the cube, greys around the knees of both curves, and random ones: [5, 20, 3]."""
    corners = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1]), -1).reshape(-1, 3)
    greys = np.array([0.001, 0.0405, 0.041, 0.1, 0.5])[:, None].repeat(3, 1)
    return np.concatenate([corners, greys, np.random.default_rng(0).random((87, 3))]).astype(np.float32).reshape(5, 20, 3)


def test_lab_equals_scikit_image():
    np.testing.assert_allclose(rgb_to_lab(jnp.asarray(colours())), rgb2lab(colours()), atol=1e-3)


def test_there_and_back():
    np.testing.assert_allclose(lab_to_rgb(rgb_to_lab(jnp.asarray(colours()))), colours(), atol=1e-5)


@pytest.mark.parametrize(("function", "dark"), [(rgb_to_lab, 0.0), (lab_to_rgb, 0.0)])
def test_slopes_are_finite_at_black(function, dark):
    assert np.isfinite(jax.jacobian(function)(jnp.full(3, dark))).all()


@pytest.mark.parametrize("function", [rgb_to_lab, lab_to_rgb])
@pytest.mark.parametrize("array", [jnp.zeros((4, 4, 4)), jnp.zeros((4, 4, 3), jnp.uint8), jnp.zeros(())])
def test_what_is_no_colour_is_refused(function, array):
    with pytest.raises(InputError, match=function.__name__):
        function(array)
