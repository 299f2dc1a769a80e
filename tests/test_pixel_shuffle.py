"""Laws of jaxseg.ops.pixel_shuffle: inverses, channel orders, equality with torch; an initialisation that begins as enlargement."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from op_laws import DTYPES, MOVES, forward_and_backward, hlo_names, needs_torch, random_array

from jaxseg.errors import InputError
from jaxseg.ops.pixel_shuffle import depth_to_space, icnr, space_to_depth

ORDERS = pytest.mark.parametrize("order", ["dcr", "crd"])
SCALES = pytest.mark.parametrize("r", [1, 2, 3])


@ORDERS
@pytest.mark.parametrize(("r", "leading"), [(1, (2,)), (2, ()), (2, (2, 1, 3)), (3, (2,))])
def test_depth_to_space_and_space_to_depth_are_inverse_and_adjoint(r, leading, order):
    deep, wide = random_array(*leading, 3, 4, 2 * r * r), random_array(*leading, 3 * r, 4 * r, 2)
    there, back = (jax.jit(partial(f, scale=r, order=order)) for f in (depth_to_space, space_to_depth))
    assert there(deep).shape == wide.shape
    np.testing.assert_array_equal(back(there(deep)), deep)
    np.testing.assert_array_equal(there(back(wide)), wide)
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.vdot(there(x), wide))(deep), back(wide))


@ORDERS
@SCALES
def test_channels_go_to_the_rows_and_columns_of_their_order(r, order):
    x = random_array(2, 2, 3, r * r * 3)
    y = np.asarray(depth_to_space(x, r, order=order))
    for i, j, c in itertools.product(range(r), range(r), range(3)):
        channel = (i * r + j) * 3 + c if order == "dcr" else c * r * r + i * r + j
        np.testing.assert_array_equal(y[:, i::r, j::r, c], x[..., channel])


def test_the_default_order_is_dcr():
    x = random_array(2, 2, 12)
    np.testing.assert_array_equal(depth_to_space(x), depth_to_space(x, 2, order="dcr"))
    y = random_array(4, 2, 3)
    np.testing.assert_array_equal(space_to_depth(y), space_to_depth(y, 2, order="dcr"))


@needs_torch
@pytest.mark.parametrize(("r", "size", "c"), [(1, (3, 4), 5), (2, (1, 1), 5), (2, (5, 2), 1), (3, (3, 4), 5), (4, (5, 2), 3)])
def test_crd_equals_torch_pixel_shuffle_and_unshuffle(r, size, c):
    import torch

    x = random_array(2, *size, c * r * r)
    tx = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_()
    ty = torch.nn.functional.pixel_shuffle(tx, r)
    np.testing.assert_array_equal(depth_to_space(x, r, order="crd"), ty.detach().permute(0, 2, 3, 1))
    g = random_array(*ty.permute(0, 2, 3, 1).shape, seed=1)
    ty.backward(torch.tensor(g).permute(0, 3, 1, 2))
    np.testing.assert_array_equal(jax.vjp(partial(depth_to_space, scale=r, order="crd"), x)[1](g)[0], tx.grad.permute(0, 2, 3, 1))
    theirs = torch.nn.functional.pixel_unshuffle(torch.tensor(g).permute(0, 3, 1, 2), r)
    np.testing.assert_array_equal(space_to_depth(g, r, order="crd"), theirs.permute(0, 2, 3, 1))


@ORDERS
@DTYPES
def test_the_type_is_kept_and_axes_vmap_without_moves(dtype, order):
    f = partial(depth_to_space, order=order)
    x = jnp.asarray(random_array(3, 2, 4, 8), dtype)
    y = jax.jit(f)(x)
    assert y.dtype == dtype
    np.testing.assert_array_equal(jax.jit(jax.vmap(f, 1, 1))(x[None]), y[None])
    assert not hlo_names(forward_and_backward(f), x) & MOVES
    assert not hlo_names(forward_and_backward(partial(space_to_depth, order=order)), x) & MOVES


@ORDERS
def test_derivatives_of_first_and_second_order(order):
    with jax.enable_x64(True):
        x, y = random_array(2, 3, 8).astype(np.float64), random_array(4, 6, 2).astype(np.float64)
        for f, a in ((depth_to_space, x), (space_to_depth, y)):
            check_grads(lambda a, f=f: f(a, order=order) ** 3, (a,), order=2, modes=["fwd", "rev"])


def _convolve(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@ORDERS
@pytest.mark.parametrize("r", [2, 3])
@pytest.mark.parametrize("init", [jax.nn.initializers.lecun_normal(), jax.nn.initializers.variance_scaling(2.0, "fan_in", "normal")])
def test_icnr_begins_as_the_nearest_enlargement_of_a_convolution(init, r, order):
    key, x = jax.random.key(3), random_array(2, 5, 6, 4)
    kernel = icnr(init, r, order)(key, (3, 3, 4, r * r * 2), jnp.float32)
    y = np.asarray(depth_to_space(_convolve(x, kernel), r, order=order))
    coarse = _convolve(x, init(key, (3, 3, 4, 2), jnp.float32))
    np.testing.assert_allclose(y, np.repeat(np.repeat(coarse, r, 1), r, 2), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(y.reshape(2, 5, r, 6, r, 2).std((2, 4)), 0, atol=1e-6)  # neighbours of a cell are equal
    assert y.std() > 0.1


@ORDERS
@DTYPES
def test_icnr_keeps_the_type_and_the_spread_of_its_initialiser(dtype, order):
    kernel = icnr(jax.nn.initializers.normal(0.5), 2, order)(jax.random.key(0), (3, 3, 16, 4 * 32), dtype)
    assert kernel.shape == (3, 3, 16, 128)
    assert kernel.dtype == dtype
    assert abs(float(kernel.astype(np.float32).std()) - 0.5) < 0.02
    assert icnr(jax.nn.initializers.zeros, 2, order)(jax.random.key(0), (8,)).dtype == jnp.float32  # a bias; float32 unless told


def _zeros(*shape):
    return jnp.zeros(shape)


@pytest.mark.parametrize(
    ("call", "got", "advice"),
    [
        (lambda: depth_to_space(_zeros(4, 4)), "depth_to_space: got shape (4, 4)", "Add the missing axes"),
        (lambda: depth_to_space(_zeros(4, 4, 6)), "got 6 channels; required a multiple of scale^2 = 4", "Widen"),
        (lambda: space_to_depth(_zeros(4, 4)), "space_to_depth: got shape (4, 4)", "Add the missing axes"),
        (lambda: space_to_depth(_zeros(5, 4, 1)), "got 5 x 4 pixels; required multiples of scale = 2", "Pad"),
        (
            lambda: depth_to_space(_zeros(4, 4, 4), order="rcd"),
            "depth_to_space: got order 'rcd'",
            'required "dcr" (TensorFlow) or "crd" (torch)',
        ),
        (lambda: space_to_depth(_zeros(4, 4, 1), order="DCR"), "space_to_depth: got order 'DCR'", "Choose one"),
        (lambda: depth_to_space(_zeros(4, 4, 4), 0), "depth_to_space: got scale 0", "from 1"),
        (lambda: depth_to_space(_zeros(4, 4, 4), 2.0), "depth_to_space: got scale 2.0; required an integer", "enlargement"),
        (lambda: space_to_depth(_zeros(4, 4, 4), -2), "space_to_depth: got scale -2", "from 1"),
        (lambda: icnr(jax.nn.initializers.zeros, 2, "torch"), "icnr: got order 'torch'", "Choose one"),
        (lambda: icnr(jax.nn.initializers.zeros, 0), "icnr: got scale 0", "from 1"),
        (lambda: icnr(jax.nn.initializers.zeros)(jax.random.key(0), (3, 3, 4, 6)), "icnr: got 6 channels", "Widen"),
    ],
)
def test_errors_say_what_was_got_and_what_to_do(call, got, advice):
    with pytest.raises(InputError) as error:
        call()
    assert got in str(error.value)
    assert advice in str(error.value)
