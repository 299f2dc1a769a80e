"""Laws of jaxseg.ops.pooling: ties, adjointness, inverses, equality with torch, no scatter."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from op_laws import DTYPES, LEADING, MOVES, forward_and_backward, hlo_names, needs_torch, random_array

from jaxseg import ops
from jaxseg.errors import InputError

SIZES = pytest.mark.parametrize("size", [(6, 8), (5, 8), (6, 7), (5, 7), (1, 1)])

pool = jax.jit(ops.max_pool_with_indices)
unpool = jax.jit(ops.max_unpool)


def _windows(x):
    """[..., H, W, C] -> [..., ceil(H/2), ceil(W/2), C, 4], what lies outside being -inf."""
    *n, h, w, _ = x.shape
    x = np.pad(x, [(0, 0)] * len(n) + [(0, h % 2), (0, w % 2), (0, 0)], constant_values=-np.inf)
    return np.stack([x[..., i::2, j::2, :] for i in (0, 1) for j in (0, 1)], axis=-1)


@jax.jit
def _pool_gradient(x, g):
    return jax.vjp(ops.max_pool, x)[1](g)[0]


@SIZES
@LEADING
def test_pooling_takes_the_first_maximum_of_each_window(size, leading):
    for ties in (False, True):
        x = random_array(*leading, *size, 3, ties=ties)
        y, index = pool(x)
        assert y.dtype == x.dtype
        assert index.dtype == jnp.int8
        np.testing.assert_array_equal(y, _windows(x).max(-1))
        np.testing.assert_array_equal(index, _windows(x).argmax(-1))


def test_every_window_of_ties_nan_and_infinities():
    windows = np.array(list(itertools.product([np.nan, -np.inf, -1.0, 0.0, np.inf], repeat=4)), np.float32)
    x = windows.reshape(-1, 2, 2, 1)
    y, index = pool(x)
    np.testing.assert_array_equal(index.reshape(-1), windows.argmax(-1))
    np.testing.assert_array_equal(y.reshape(-1), windows.max(-1))
    gradient = _pool_gradient(x, np.full(y.shape, 3, np.float32))
    np.testing.assert_array_equal(gradient.reshape(-1, 4), 3 * np.eye(4)[windows.argmax(-1)])


def test_windows_of_minus_infinity_at_an_odd_edge_point_into_the_image():
    x = np.full((1, 3, 3, 1), -np.inf, np.float32)
    y, index = pool(x)
    assert np.all(np.asarray(y) == -np.inf)
    assert np.all(np.asarray(index) == 0)
    assert np.all(np.isfinite(_pool_gradient(x, np.ones(y.shape, np.float32))))


@SIZES
def test_unpool_of_pool_keeps_the_maxima_and_zeros_the_rest(size):
    x = random_array(2, *size, 3)
    y, index = pool(x)
    back = np.asarray(unpool(y, index))
    h, w = size
    assert back.shape == (2, h + h % 2, w + w % 2, 3)
    kept = back[:, :h, :w]
    assert np.all((kept == x) | (kept == 0))
    assert np.count_nonzero(back) == np.count_nonzero(kept) == y.size  # one pixel a window, none of it in the padding
    np.testing.assert_array_equal(_windows(back).sum(-1), y)


def test_unpooling_is_the_adjoint_of_reading_at_the_positions():
    index = np.random.default_rng(1).integers(0, 4, (2, 3, 4, 5)).astype(np.int8)
    x, v = random_array(2, 6, 8, 5), random_array(2, 3, 4, 5, seed=2)
    read = np.take_along_axis(_windows(x), index[..., None].astype(int), -1)[..., 0]
    np.testing.assert_allclose(np.vdot(v, read), np.vdot(unpool(v, index), x), rtol=1e-5)
    gradient = jax.jit(lambda v, x: jax.vjp(lambda v: ops.max_unpool(v, index), v)[1](x)[0])(v, x)
    np.testing.assert_array_equal(gradient, read)


@SIZES
def test_the_gradient_of_pooling_is_unpooling(size):
    for x in (random_array(2, *size, 3, ties=True), np.zeros((2, *size, 3), np.float32)):
        y, index = pool(x)
        g = random_array(*y.shape, seed=3)
        np.testing.assert_array_equal(_pool_gradient(x, g), unpool(g, index)[:, : size[0], : size[1]])


@needs_torch
@SIZES
def test_pooling_and_unpooling_equal_torch_in_values_indices_and_gradient(size):
    import torch

    h, w = size
    for x in (random_array(2, h, w, 3), random_array(2, h, w, 3, ties=True), np.zeros((2, h, w, 3), np.float32)):
        tx = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_()
        ty, flat = torch.nn.functional.max_pool2d(tx, 2, 2, ceil_mode=True, return_indices=True)
        y, index = map(np.asarray, pool(x))
        g = random_array(*y.shape, seed=4)
        ty.backward(torch.tensor(g).permute(0, 3, 1, 2))
        row = 2 * np.arange(y.shape[1])[:, None, None] + index // 2
        column = 2 * np.arange(y.shape[2])[:, None] + index % 2
        np.testing.assert_array_equal(row * w + column, flat.permute(0, 2, 3, 1))
        np.testing.assert_array_equal(y, ty.detach().permute(0, 2, 3, 1))
        np.testing.assert_array_equal(_pool_gradient(x, g), tx.grad.permute(0, 2, 3, 1))
        back = torch.nn.functional.max_unpool2d(ty.detach(), flat, 2, 2, output_size=(h, w))
        np.testing.assert_array_equal(unpool(y, index)[:, :h, :w], back.permute(0, 2, 3, 1))


@DTYPES
def test_pooling_and_unpooling_are_exact_in_every_float(dtype):
    x = jnp.asarray(random_array(2, 5, 6, 3), dtype)
    y, index = pool(x)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y.astype(np.float32), _windows(np.asarray(x, np.float32)).max(-1))
    back = unpool(y, index)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back.astype(np.float32), unpool(y.astype(np.float32), index))
    g = jnp.asarray(random_array(*y.shape), dtype)
    assert _pool_gradient(x, g).dtype == dtype
    np.testing.assert_array_equal(_pool_gradient(x, g), unpool(g, index)[:, :5])


def test_pooling_and_unpooling_under_vmap_jvp_and_twice_differentiated():
    x, dx = random_array(3, 2, 5, 6, 2), random_array(3, 2, 5, 6, 2, seed=1)
    y, index = pool(x)
    for axis in (0, 1):
        mapped = jax.jit(jax.vmap(lambda x: ops.max_unpool(*ops.max_pool_with_indices(x)), axis, axis))(x)
        np.testing.assert_array_equal(mapped, unpool(y, index))
    (_, i), (dy, _) = jax.jit(lambda x, dx: jax.jvp(ops.max_pool_with_indices, (x,), (dx,)))(x, dx)
    read = np.take_along_axis(_windows(dx), np.asarray(i)[..., None].astype(int), -1)[..., 0]
    np.testing.assert_array_equal(dy, read)
    _, dback = jax.jit(lambda y, dy: jax.jvp(lambda y: ops.max_unpool(y, index), (y,), (dy,)))(y, dy)
    np.testing.assert_array_equal(dback, unpool(dy, index))
    # The Hessian of sum(pool(x)^2 / 2) is the projection on the maxima.
    hessian = jax.jit(jax.hessian(lambda x: (ops.max_pool(x) ** 2).sum() / 2))(x[0, 0])
    mask = np.asarray(unpool(np.ones_like(y[0, 0]), index[0, 0]))[:5]
    np.testing.assert_array_equal(hessian.reshape(mask.size, mask.size), np.diag(mask.ravel()))


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_pooling_and_unpooling_compile_without_scatter_and_gather(size):
    x = jnp.asarray(random_array(2, *size, 3))
    y, index = pool(x)
    for seen in (
        hlo_names(forward_and_backward(ops.max_pool), x),
        hlo_names(ops.max_pool_with_indices, x),
        hlo_names(forward_and_backward(lambda y: ops.max_unpool(y, index)), y),
        hlo_names(jax.grad(lambda x: (ops.max_unpool(*ops.max_pool_with_indices(x)) ** 2).sum()), x),
    ):
        assert "select" in seen  # it does read something
        assert not seen & MOVES


def _zeros(*shape):
    return jnp.zeros(shape)


@pytest.mark.parametrize(
    ("call", "got", "advice"),
    [
        (lambda: ops.max_pool_with_indices(_zeros(4, 4)), "max_pool_with_indices: got shape (4, 4)", "Add the missing axes"),
        (lambda: ops.max_unpool(_zeros(4, 4), _zeros(4, 4)), "max_unpool: got shape (4, 4)", "Add the missing axes"),
        (lambda: ops.max_unpool(_zeros(1, 2, 2, 3), _zeros(1, 2, 2, 5)), "(1, 2, 2, 3) and positions (1, 2, 2, 5)", "Project"),
    ],
)
def test_errors_say_what_was_got_and_what_to_do(call, got, advice):
    with pytest.raises(InputError) as error:
        call()
    assert got in str(error.value)
    assert advice in str(error.value)
