"""Laws of jaxseg.ops.zero_insert: where the values are, its adjoint, and its part in a transposed convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from op_laws import LEADING, MOVES, forward_and_backward, hlo_names, random_array

from jaxseg.errors import InputError
from jaxseg.ops.zero_insert import zero_insert


@LEADING
@pytest.mark.parametrize("scale", [1, 2, 3])
def test_values_in_the_top_left_corners_zeros_elsewhere(scale, leading):
    x = random_array(*leading, 3, 4, 2)
    y = np.asarray(zero_insert(x, scale))
    assert y.shape == (*leading, 3 * scale, 4 * scale, 2)
    np.testing.assert_array_equal(y[..., ::scale, ::scale, :], x)
    assert np.count_nonzero(y) == x.size


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.int8, bool])
def test_any_type_and_nothing_spreads(dtype):
    x = jnp.asarray([[1, 0], [1, 1]], dtype)[..., None]
    y = zero_insert(x)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y[::2, ::2], x)
    assert jnp.isnan(zero_insert(jnp.full((2, 3, 1), jnp.nan))).sum() == 6


def test_the_transpose_reads_every_scale_th_pixel():
    x, v, g = random_array(2, 3, 4, 2), random_array(2, 3, 4, 2, seed=1), random_array(2, 9, 12, 2, seed=2)

    @jax.jit
    def derivatives(x, v, g):
        def energy(x):
            return (zero_insert(x, 3) ** 2 * g).sum()

        hvp = jax.jvp(jax.grad(energy), (x,), (v,))[1]
        return jax.vjp(lambda x: zero_insert(x, 3), x)[1](g)[0], jax.jvp(lambda x: zero_insert(x, 3), (x,), (v,))[1], hvp

    back, forward, hvp = derivatives(x, v, g)
    np.testing.assert_array_equal(back, g[:, ::3, ::3])
    np.testing.assert_array_equal(forward, zero_insert(v, 3))
    np.testing.assert_allclose(hvp, 2 * g[:, ::3, ::3] * v, rtol=1e-6)
    mapped = jax.vmap(jax.grad(lambda x, g: (zero_insert(x, 3) * g).sum()), 1, 1)(x.swapaxes(0, 1), g.swapaxes(0, 1))
    np.testing.assert_array_equal(mapped.swapaxes(0, 1), back)


def test_it_is_the_first_half_of_a_transposed_convolution():
    x, kernel = random_array(1, 4, 5, 2), random_array(3, 3, 2, 3, seed=1)
    numbers = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "window_strides": (1, 1)}
    expected = jax.lax.conv_general_dilated(x, kernel, padding=[(1, 2), (1, 2)], lhs_dilation=(2, 2), **numbers)
    y = jax.lax.conv_general_dilated(zero_insert(x), kernel, padding=[(1, 1), (1, 1)], **numbers)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_it_compiles_to_pads_and_slices():
    seen = hlo_names(forward_and_backward(zero_insert), jnp.ones((3, 4, 2)))
    assert "pad" in seen
    assert not seen & (MOVES | {"dot", "dot_general", "convolution", "custom_call"})


@pytest.mark.parametrize(
    ("shape", "scale", "got", "advice"),
    [
        ((4, 4), 2, "zero_insert: got shape (4, 4)", "Add the missing axes"),
        ((4, 4, 1), 0, "zero_insert: got scale 0; required an integer from 1", "reduces"),
        ((4, 4, 1), True, "zero_insert: got scale True", "reduces"),
    ],
)
def test_errors_say_what_was_got_and_what_to_do(shape, scale, got, advice):
    with pytest.raises(InputError) as error:
        zero_insert(jnp.zeros(shape), scale)
    assert got in str(error.value)
    assert advice in str(error.value)
