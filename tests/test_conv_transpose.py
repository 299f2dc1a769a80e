"""Laws of jaxseg.ops.conv_transpose: adjointness, equality with torch and lax, what XLA is given to compile."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from op_laws import DTYPES, LEADING, MOVES, forward_and_backward, hlo_names, needs_torch, random_array

from jaxseg import ops
from jaxseg.errors import InputError


def test_the_reading_of_hlo_sees_what_must_not_be_there():
    x = jnp.ones((1, 4, 4, 2))
    reduce_window = partial(jax.lax.reduce_window, init_value=-jnp.inf, computation=jax.lax.max, padding="VALID")
    builtin_pool = partial(reduce_window, window_dimensions=(1, 2, 2, 1), window_strides=(1, 2, 2, 1))
    assert "select_and_scatter" in hlo_names(forward_and_backward(builtin_pool), x)
    seen = hlo_names(forward_and_backward(lambda x: x[:, jnp.array([3, 1])]), x)
    assert {"gather", "scatter"} <= seen
    assert "dot_general" in hlo_names(partial(jax.image.resize, shape=(1, 8, 8, 2), method="bilinear"), x)
    builtin = partial(jax.lax.conv_transpose, strides=(2, 2), padding="VALID")
    assert "convolution" in hlo_names(forward_and_backward(builtin), x, jnp.ones((2, 2, 2, 3)))


@LEADING
@pytest.mark.parametrize("r", [1, 2, 3, 4])
def test_conv_transpose_is_the_adjoint_of_the_strided_convolution(r, leading):
    x, kernel, y = random_array(*leading, 3, 4, 5), random_array(r, r, 5, 2, seed=1), random_array(*leading, 3 * r, 4 * r, 2, seed=2)
    flat = y.reshape(-1, *y.shape[-3:])
    strided = jax.lax.conv_general_dilated(flat, kernel.swapaxes(2, 3), (r, r), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    enlarged = jax.jit(ops.conv_transpose)(x, kernel)
    assert enlarged.shape == y.shape
    np.testing.assert_allclose(np.vdot(enlarged, y), np.vdot(x, strided.reshape(x.shape)), rtol=1e-4)


@pytest.mark.parametrize("r", [2, 3, 4])
def test_conv_transpose_equals_lax(r):
    x, kernel = random_array(2, 5, 3, 4), random_array(r, r, 4, 6, seed=1)
    expected = jax.lax.conv_transpose(x, kernel[::-1, ::-1], (r, r), "VALID")
    np.testing.assert_allclose(jax.jit(ops.conv_transpose)(x, kernel), expected, rtol=1e-5, atol=1e-5)


@needs_torch
@pytest.mark.parametrize("r", [2, 3, 4])
def test_conv_transpose_equals_torch_in_value_and_gradients(r):
    import torch

    x, w, g = random_array(2, 5, 3, 4), random_array(4, 6, r, r, seed=1), random_array(2, 5 * r, 3 * r, 6, seed=2)
    layer = torch.nn.ConvTranspose2d(4, 6, r, r, bias=False)
    layer.weight.data = torch.tensor(w)
    tx = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_()
    ty = layer(tx)
    ty.backward(torch.tensor(g).permute(0, 3, 1, 2))
    y, vjp = jax.vjp(jax.jit(ops.conv_transpose), x, w.transpose(2, 3, 0, 1))
    dx, dkernel = vjp(g)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    close(y, ty.detach().permute(0, 2, 3, 1))
    close(dx, tx.grad.permute(0, 2, 3, 1))
    close(dkernel, layer.weight.grad.permute(2, 3, 0, 1))


def test_conv_transpose_gradients_equal_finite_differences():
    with jax.enable_x64(True):
        x, kernel = (jnp.asarray(a, jnp.float64) for a in (random_array(1, 2, 3, 2), random_array(3, 3, 2, 2, seed=1)))
        check_grads(jax.jit(ops.conv_transpose), (x, kernel), order=2, atol=1e-7, rtol=1e-7)


def test_conv_transpose_compiles_to_matrix_products_only():
    seen = hlo_names(forward_and_backward(ops.conv_transpose), jnp.ones((2, 4, 4, 3)), jnp.ones((2, 2, 3, 5)))
    assert "dot_general" in seen
    assert not seen & (MOVES | {"convolution"})


@DTYPES
def test_conv_transpose_keeps_the_float_and_vmaps(dtype):
    x, kernel = (jnp.asarray(a, dtype) for a in (random_array(3, 2, 4, 5), random_array(2, 2, 5, 4, seed=1)))
    y = jax.jit(ops.conv_transpose)(x, kernel)
    assert y.dtype == dtype
    expected = ops.conv_transpose(x.astype(np.float32), kernel.astype(np.float32))
    np.testing.assert_allclose(y.astype(np.float32), expected, atol=float(16 * jnp.finfo(dtype).eps))
    np.testing.assert_allclose(jax.jit(jax.vmap(ops.conv_transpose, (0, None)))(x, kernel), y, atol=float(16 * jnp.finfo(dtype).eps))


def _zeros(*shape):
    return jnp.zeros(shape)


@pytest.mark.parametrize(
    ("call", "got", "advice"),
    [
        (lambda: ops.conv_transpose(_zeros(2, 3), _zeros(2, 2, 3, 4)), "conv_transpose: got shape (2, 3)", "Add the missing axes"),
        (
            lambda: ops.conv_transpose(_zeros(1, 2, 2, 3), _zeros(2, 3, 3, 4)),
            "(2, 3, 3, 4) for input (1, 2, 2, 3)",
            "transpose(2, 3, 0, 1)",
        ),
        (lambda: ops.conv_transpose(_zeros(1, 2, 2, 3), _zeros(3, 4, 2, 2)), "(3, 4, 2, 2)", "transpose(2, 3, 0, 1)"),
        (lambda: ops.conv_transpose(_zeros(1, 2, 2, 3), _zeros(2, 2, 3)), "(2, 2, 3) for input", "required [r, r, 3, O]"),
    ],
)
def test_errors_say_what_was_got_and_what_to_do(call, got, advice):
    with pytest.raises(InputError) as error:
        call()
    assert got in str(error.value)
    assert advice in str(error.value)
