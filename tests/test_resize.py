"""Laws of jaxseg.ops.resize: equality with torch and jax.image, constants and ramps, no gather and no dense matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from op_laws import DTYPES, LEADING, MOVES, forward_and_backward, hlo_names, needs_torch, random_array

from jaxseg import ops
from jaxseg.errors import InputError

ENLARGE = pytest.mark.parametrize("method", ["nearest", "bilinear"])
X2 = {"nearest": jax.jit(ops.nearest_x2), "bilinear": jax.jit(ops.bilinear_x2)}


@ENLARGE
@LEADING
@pytest.mark.parametrize("size", [(4, 6), (5, 1), (1, 1)])
def test_enlarging_equals_jax_image_resize(method, leading, size):
    x = random_array(*leading, *size, 3)
    expected = jax.image.resize(x, (*leading, 2 * size[0], 2 * size[1], 3), method)
    np.testing.assert_allclose(X2[method](x), expected, rtol=1e-5, atol=1e-6)


@needs_torch
@ENLARGE
@pytest.mark.parametrize("size", [(4, 6), (5, 1)])
def test_enlarging_equals_torch(method, size):
    import torch

    x = random_array(2, *size, 3)
    image = torch.tensor(x).permute(0, 3, 1, 2)
    for mode in {"nearest": ["nearest", "nearest-exact"], "bilinear": ["bilinear"]}[method]:
        expected = torch.nn.functional.interpolate(image, scale_factor=2, mode=mode)
        np.testing.assert_allclose(X2[method](x), expected.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-6)


@ENLARGE
@DTYPES
def test_enlarging_keeps_constants_exactly_and_the_float(method, dtype):
    y = X2[method](jnp.full((2, 3, 5, 4), 3, dtype))
    assert y.shape == (2, 6, 10, 4)
    assert y.dtype == dtype
    assert np.all(np.asarray(y) == 3)
    x = jnp.asarray(random_array(3, 4, 5, 2), dtype)
    np.testing.assert_array_equal(jax.jit(jax.vmap(X2[method], 1, 1))(x[None]), X2[method](x[None]))
    np.testing.assert_allclose(X2[method](x).astype(np.float32), X2[method](x.astype(np.float32)), atol=float(4 * jnp.finfo(dtype).eps))


@ENLARGE
def test_every_pixel_hands_on_a_weight_of_four(method):
    gradient = jax.jit(jax.grad(lambda x: X2[method](x).sum()))(jnp.ones((1, 4, 5, 2)))
    np.testing.assert_allclose(gradient, 4, rtol=1e-6)


def test_bilinear_reproduces_linear_functions_inside():
    def ramp(h, w, step):
        row, column = (np.arange(n)[:, None] * step + (step - 1) / 2 for n in (h, w))  # pixel centres in units of the coarse pixels
        return np.asarray(3 * row - 2 * column.T + 1, np.float32)[None, :, :, None]

    y = np.asarray(X2["bilinear"](ramp(5, 6, 1.0)))
    np.testing.assert_allclose(y[:, 1:-1, 1:-1], ramp(10, 12, 0.5)[:, 1:-1, 1:-1], rtol=1e-6)


@ENLARGE
def test_enlarging_compiles_without_gather_scatter_and_dot(method):
    seen = hlo_names(forward_and_backward(ops.nearest_x2 if method == "nearest" else ops.bilinear_x2), jnp.ones((2, 4, 5, 3)))
    assert not seen & (MOVES | {"dot", "dot_general", "convolution", "custom_call"})


def _zeros(*shape):
    return jnp.zeros(shape)


@pytest.mark.parametrize(
    ("call", "got", "advice"),
    [
        (lambda: ops.nearest_x2(_zeros(4, 4)), "nearest_x2: got shape (4, 4)", "Add the missing axes"),
        (lambda: ops.bilinear_x2(_zeros(4, 4)), "bilinear_x2: got shape (4, 4)", "Add the missing axes"),
    ],
)
def test_errors_say_what_was_got_and_what_to_do(call, got, advice):
    with pytest.raises(InputError) as error:
        call()
    assert got in str(error.value)
    assert advice in str(error.value)
