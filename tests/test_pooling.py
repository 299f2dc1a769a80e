"""Laws of jaxseg.ops.pooling: ties, adjointness, inverses, equality with torch, no scatter, the index computed once, no all-gather."""

import functools
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads
from op_laws import DTYPES, LEADING, MOVES, forward_and_backward, hlo_names, needs_torch, random_array

from jaxseg import ops
from jaxseg.errors import InputError
from jaxseg.ops import pooling

SIZES = pytest.mark.parametrize("size", [(6, 8), (5, 8), (6, 7), (5, 7), (1, 1)])
QUICK = {"xla_backend_optimization_level": 0}  # compiling is what takes the time here

# (window, stride, padding, ceil_mode, size), where the padding is at most half the window
CONFIGS = [
    (window, stride, padding, ceil_mode, size)
    for window in [(1, 1), (2, 2), (3, 3), (4, 4), (2, 3), (3, 1), (4, 2)]
    for stride in [(1, 1), (2, 2), (3, 3), (2, 1)]
    for padding in [(0, 0), (1, 1), (1, 0)]
    if 2 * padding[0] <= window[0] and 2 * padding[1] <= window[1]
    for ceil_mode in (True, False)
    for size in [(6, 8), (7, 9)]
]
OVERLAPPING = ((3, 3), (2, 2), (1, 1))
GEOMETRIES = pytest.mark.parametrize(
    "geometry", [((2, 2), (2, 2), (0, 0)), OVERLAPPING, ((3, 2), (1, 1), (1, 0)), ((2, 2), (3, 3), (1, 1))]
)

pool = jax.jit(ops.max_pool_with_indices)
unpool = jax.jit(ops.max_unpool)


def _windows(x):
    """[..., H, W, C] -> [..., ceil(H/2), ceil(W/2), C, 4], what lies outside being -inf."""
    *n, h, w, _ = x.shape
    x = np.pad(x, [(0, 0)] * len(n) + [(0, h % 2), (0, w % 2), (0, 0)], constant_values=-np.inf)
    return np.stack([x[..., i::2, j::2, :] for i in (0, 1) for j in (0, 1)], axis=-1)


def _general_windows(x, window, stride, padding, counts):
    """[..., H, W, C] -> [..., H2, W2, C, window pixels], what lies outside being -inf."""
    i, j = (np.arange(n)[:, None] * s + np.arange(k) for n, s, k in zip(counts, stride, window, strict=True))
    low = [(0, 0)] * (x.ndim - 3)
    behind = [max(0, int(p.max()) + 1 - size - before) for p, size, before in zip((i, j), x.shape[-3:-1], padding, strict=True)]
    x = np.pad(x, [*low, (padding[0], behind[0]), (padding[1], behind[1]), (0, 0)], constant_values=-np.inf)
    x = np.moveaxis(x[..., i[:, None, :, None], j[None, :, None, :], :], -1, -3)
    return x.reshape(*x.shape[:-2], -1)


def _last_writers(flat, size):
    """Which of the windows keeps its pixel when all write in row-major order, for flat positions [N, H2, W2, C]."""
    n, _, _, c = flat.shape
    flat = np.asarray(flat).reshape(n, -1, c)
    writer = np.full((n, size[0] * size[1], c), -1)
    for window in range(flat.shape[1]):
        np.put_along_axis(writer, flat[:, window, None], window, 1)
    return np.take_along_axis(writer, flat, 1) == np.arange(flat.shape[1])[:, None], writer


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


@GEOMETRIES
def test_any_windows_take_the_first_maximum_and_send_the_gradient_there(geometry):
    for ceil_mode, ties in itertools.product((True, False), (True, False)):
        x = random_array(2, 7, 8, 3, ties=ties)

        @functools.partial(jax.jit, compiler_options=QUICK)
        def pool_and_back(x, ceil_mode=ceil_mode):
            y, vjp, index = jax.vjp(lambda x: pooling.max_pool_with_indices(x, *geometry, ceil_mode=ceil_mode), x, has_aux=True)
            return y, index, vjp(jnp.sin(y) + 1)[0]

        y, index, gradient = map(np.asarray, pool_and_back(x))
        windows = _general_windows(x, *geometry, y.shape[1:3])
        np.testing.assert_array_equal(y, windows.max(-1))
        np.testing.assert_array_equal(index, windows.argmax(-1))
        flat = np.asarray(pooling.flat_indices(index, x.shape[1:3], *geometry)).reshape(2, -1, 3)
        want = np.zeros((2, 7 * 8, 3), np.float32)
        n, c = np.arange(2)[:, None, None], np.arange(3)
        np.add.at(want, (n, flat, c), np.sin(y).reshape(flat.shape) + 1)
        np.testing.assert_allclose(gradient, want.reshape(x.shape), rtol=1e-6, atol=1e-6)


def test_ceil_mode_leaves_no_pixel_over_and_floor_mode_stays_inside():
    def starts(k, s, p, size, ceil_mode):
        y = jax.eval_shape(lambda: pooling.max_pool(jnp.zeros((size, 4, 1)), (k, 1), (s, 1), (p, 0), ceil_mode=ceil_mode))
        return np.arange(y.shape[0]) * s - p

    for k, s, p, size in itertools.product((1, 2, 3, 4), (1, 2, 3), (0, 1), range(4, 9)):
        if 2 * p <= k:
            last = starts(k, s, p, size, True)[-1]
            assert last < size <= max(last + k - p, last + s)
            last = starts(k, s, p, size, False)[-1]
            assert last + k <= size + p < last + k + s


@GEOMETRIES
def test_positions_never_lie_in_the_padding(geometry):
    """Whatever is -inf, all of it included: then it is the first pixel of the window that is in the image."""
    pool = jax.jit(lambda x: pooling.max_pool_with_indices(x, *geometry), compiler_options=QUICK)
    for share in (1, 0.8):
        x = random_array(2, 5, 6, 2)
        x[np.random.default_rng(1).random(x.shape) < share] = -np.inf
        y, index = pool(x)
        inside = np.isfinite(_general_windows(np.zeros_like(x), *geometry, y.shape[1:3]))
        windows = np.where(inside, _general_windows(np.maximum(x, -1e30), *geometry, y.shape[1:3]), -np.inf)
        np.testing.assert_array_equal(index, windows.argmax(-1))


def test_the_first_nan_of_a_window_is_its_maximum_also_when_windows_overlap():
    x = random_array(2, 6, 7, 3)
    x[np.random.default_rng(1).random(x.shape) < 0.2] = np.nan
    y, index = jax.jit(lambda x: pooling.max_pool_with_indices(x, *OVERLAPPING))(x)
    windows = _general_windows(x, *OVERLAPPING, y.shape[1:3])
    np.testing.assert_array_equal(y, windows.max(-1))
    np.testing.assert_array_equal(index, windows.argmax(-1))
    assert 0 < np.isnan(np.asarray(y)).mean() < 1


def _compare_with_torch(window, stride, padding, ceil_mode, size):
    import torch

    geometry = (window, stride, padding)

    def everything(x, g, v, u):
        y, vjp, index = jax.vjp(lambda x: pooling.max_pool_with_indices(x, *geometry, ceil_mode=ceil_mode), x, has_aux=True)
        flat = pooling.flat_indices(index, size, *geometry)
        back, unpool_vjp = jax.vjp(lambda v: pooling.max_unpool(v, index, *geometry, size=size), v)
        return y, index, flat, pooling.window_indices(flat, size, *geometry), vjp(g)[0], back, unpool_vjp(u)[0]

    compare = jax.jit(everything, compiler_options=QUICK)
    for x in (random_array(2, *size, 3), random_array(2, *size, 3, ties=True), np.zeros((2, *size, 3), np.float32)):
        tx = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_()
        ty, tflat = torch.nn.functional.max_pool2d(tx, window, stride, padding, ceil_mode=ceil_mode, return_indices=True)
        shape = tuple(ty.permute(0, 2, 3, 1).shape)
        g, v, u = (random_array(*shape, seed=1), random_array(*shape, seed=2), random_array(2, *size, 3, seed=3))
        y, index, flat, index_again, gradient, back, back_gradient = map(np.asarray, compare(x, g, v, u))
        np.testing.assert_array_equal(y, ty.detach().permute(0, 2, 3, 1))
        np.testing.assert_array_equal(flat, tflat.permute(0, 2, 3, 1))
        np.testing.assert_array_equal(index_again, index)
        assert flat.dtype == np.int32
        assert index_again.dtype == index.dtype == np.int8
        ty.backward(torch.tensor(g).permute(0, 3, 1, 2))
        np.testing.assert_allclose(gradient, tx.grad.permute(0, 2, 3, 1), rtol=1e-6, atol=1e-6)
        tv = torch.tensor(v).permute(0, 3, 1, 2).contiguous().requires_grad_()
        tback = torch.nn.functional.max_unpool2d(tv, tflat, window, stride, padding, output_size=size)
        np.testing.assert_array_equal(back, tback.detach().permute(0, 2, 3, 1))
        tback.backward(torch.tensor(u).permute(0, 3, 1, 2))
        winners = _last_writers(flat, size)[0].reshape(shape)
        np.testing.assert_array_equal(back_gradient, np.where(winners, tv.grad.permute(0, 2, 3, 1), 0))


@needs_torch
@pytest.mark.parametrize("config", CONFIGS[5::23], ids=str)
def test_any_windows_equal_torch_in_values_positions_and_gradients(config):
    _compare_with_torch(*config)


@needs_torch
@pytest.mark.slow
def test_all_windows_equal_torch_in_values_positions_and_gradients():
    assert len(CONFIGS) >= 60
    for config in CONFIGS:
        _compare_with_torch(*config)


@needs_torch
def test_the_default_sizes_of_unpooling_are_those_of_torch():
    import torch

    for (window, stride, padding), size in itertools.product([(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 1)], [(3, 4), (1, 2)]):
        x, index = torch.ones(1, 1, *size), torch.zeros(1, 1, *size, dtype=torch.int64)
        want = torch.nn.functional.max_unpool2d(x, index, window, stride, padding).shape[2:]
        zeros = jnp.zeros((1, *size, 1))
        y = jax.eval_shape(lambda x, i, g=(window, stride, padding): pooling.max_unpool(x, i, *g), zeros, zeros.astype(jnp.int8))
        assert y.shape[1:3] == tuple(want)


@pytest.mark.parametrize("geometry", [OVERLAPPING, ((3, 2), (1, 1), (1, 0)), ((4, 4), (2, 2), (0, 0))])
def test_the_last_window_wins_a_pixel_and_gets_its_gradient_alone(geometry):
    size = (7, 8)
    x = random_array(2, *size, 3, ties=True)
    y, index = jax.jit(lambda x: pooling.max_pool_with_indices(x, *geometry))(x)
    v, u = random_array(*y.shape, seed=1), random_array(2, *size, 3, seed=2)

    @jax.jit
    def unpool_and_back(v, u):
        back, vjp = jax.vjp(lambda v: pooling.max_unpool(v, index, *geometry, size=size), v)
        return back, vjp(u)[0]

    back, gradient = unpool_and_back(v, u)
    winners, writer = _last_writers(pooling.flat_indices(index, size, *geometry), size)
    assert not winners.all()
    want = np.where(writer >= 0, np.take_along_axis(v.reshape(2, -1, 3), np.maximum(writer, 0), 1), 0)
    np.testing.assert_array_equal(back, want.reshape(x.shape))
    read = np.take_along_axis(u.reshape(2, -1, 3), np.asarray(pooling.flat_indices(index, size, *geometry)).reshape(2, -1, 3), 1)
    np.testing.assert_array_equal(gradient, np.where(winners, read, 0).reshape(y.shape))
    np.testing.assert_allclose(np.vdot(back, u), np.vdot(v, gradient), rtol=1e-5)  # the two are adjoint


@pytest.mark.parametrize("geometry", [((2, 2), (2, 2), (1, 1)), OVERLAPPING])
def test_values_whose_positions_lie_outside_are_dropped(geometry):
    window, stride, padding = geometry
    size = (5, 6)
    shape = jax.eval_shape(lambda x: pooling.max_pool(x, *geometry), jnp.zeros((1, *size, 1))).shape
    unpool = jax.jit(lambda v, i: pooling.max_unpool(v, i, *geometry, size=size))
    for position in (-128, -2, -1, 0, window[0] * window[1] - 1, window[0] * window[1], 127):
        want = np.zeros(size)
        i, j = divmod(position, window[1])
        for o, p in np.ndindex(shape[1:3]):
            row, column = o * stride[0] - padding[0] + i, p * stride[1] - padding[1] + j
            if 0 <= position < window[0] * window[1] and 0 <= row < size[0] and 0 <= column < size[1]:
                want[row, column] = 1
        np.testing.assert_array_equal(unpool(np.ones(shape, np.float32), np.full(shape, position, np.int8))[0, :, :, 0], want)
    # Nor does a dropped value drive out another: the last of two windows that both name -1 leaves the first one's pixel alone.
    index = np.full(shape, -1, np.int8)
    index[0, 0, 0] = window[0] * window[1] - 1
    assert np.asarray(unpool(np.ones(shape, np.float32), index)).sum() == 1


@GEOMETRIES
def test_flat_and_window_positions_are_each_others_inverse(geometry):
    window = geometry[0]
    counts = jax.eval_shape(lambda: pooling.max_pool(jnp.zeros((6, 7, 1)), *geometry)).shape[:2]
    pixels = _general_windows(np.arange(42.0).reshape(6, 7, 1), *geometry, counts)[:, :, 0]  # [H2, W2, window pixels]
    index = np.broadcast_to(np.arange(window[0] * window[1], dtype=np.int8), pixels.shape)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def there_and_back(index, other):
        flat = pooling.flat_indices(index, (6, 7), *geometry)
        return flat, *(pooling.window_indices(f, (6, 7), *geometry) for f in (flat, other))

    flat, back, other = map(np.asarray, there_and_back(index, np.full((*counts, 1), 41)))
    inside = np.isfinite(pixels)
    np.testing.assert_array_equal(flat[inside], pixels[inside])
    np.testing.assert_array_equal(back[inside], index[inside])
    assert back.dtype == np.int8
    # What lies outside its window becomes -1.
    np.testing.assert_array_equal(other[:, :, 0], np.where((pixels == 41).any(-1), (pixels == 41).argmax(-1), -1))


def test_positions_are_int8_while_they_fit():
    x = random_array(12, 22, 1)
    for window, dtype in (((8, 16), jnp.int8), ((129, 1), jnp.int16), ((11, 12), jnp.int16)):
        big = jnp.zeros((130, 30, 1))
        assert jax.eval_shape(lambda x, w=window: pooling.max_pool_with_indices(x, w, ceil_mode=False), big)[1].dtype == dtype
    _, index = jax.jit(lambda x: pooling.max_pool_with_indices(x, (11, 12), ceil_mode=False), compiler_options=QUICK)(x)
    assert int(index[0, 0, 0]) == x[:11, :12].argmax()
    assert pooling.flat_indices(np.full((1, 1, 1), 127, np.int8), (1, 128), (1, 128)) == 127
    with jax.enable_x64(True):
        assert jax.eval_shape(lambda: pooling.flat_indices(index, (12, 22), (11, 12))).dtype == jnp.int32
    back = pooling.window_indices(pooling.flat_indices(index, (12, 22), (11, 12)), (12, 22), (11, 12))
    assert back.dtype == jnp.int16
    np.testing.assert_array_equal(back, index)


@DTYPES
def test_overlapping_windows_are_exact_in_every_float(dtype):
    x = jnp.asarray(random_array(2, 6, 7, 3), dtype)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(x):
        y, vjp, index = jax.vjp(lambda x: pooling.max_pool_with_indices(x, *OVERLAPPING), x, has_aux=True)
        return y, index, vjp(jnp.ones_like(y))[0], pooling.max_unpool(y, index, *OVERLAPPING, size=(6, 7))

    wide = run(x.astype(jnp.float32))
    for got, want, kind in zip(run(x), wide, (dtype, jnp.int8, dtype, dtype), strict=True):
        assert got.dtype == kind
        np.testing.assert_array_equal(got.astype(np.float32), want.astype(np.float32))


def test_overlapping_windows_differentiate_in_every_mode():
    """f(x) = sum(pool(x)^3): with R the matrix that reads at the maxima, J = R, the gradient is 3 y^2 R, and H v = R' (6 y R v)."""
    x, v = random_array(3, 5, 6, 2), random_array(3, 5, 6, 2, seed=1)

    def pool(x):
        return pooling.max_pool(x, *OVERLAPPING)

    def f(x):
        return (pool(x) ** 3).sum()

    y, index = jax.jit(lambda x: pooling.max_pool_with_indices(x, *OVERLAPPING), compiler_options=QUICK)(x)
    flat = np.asarray(pooling.flat_indices(index, (5, 6), *OVERLAPPING)).reshape(3, -1, 2)
    reading = np.zeros((3, 2, flat.shape[1], 30), np.float32)  # R of each image and channel
    np.put_along_axis(reading, flat.transpose(0, 2, 1)[..., None], 1, -1)
    y, channels_first = np.asarray(y).reshape(3, -1, 2), v.reshape(3, 30, 2).transpose(0, 2, 1)

    def spread(g):  # R' g
        return np.einsum("ncop,noc->npc", reading, g).reshape(x.shape)

    def read(v):  # R v
        return np.einsum("ncop,ncp->noc", reading, v)

    def same(got, want):
        np.testing.assert_allclose(got, np.asarray(want).reshape(got.shape), rtol=1e-5, atol=1e-5)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def derivatives(x, v):
        corner = x[0, ..., :1]
        jvp = jax.jvp(pool, (x,), (v,))[1]
        gradients = jax.grad(f)(x), jax.vmap(jax.grad(f))(x)
        forward_over_reverse = jax.jvp(jax.grad(f), (x,), (v,))[1]
        reverse_over_reverse = jax.grad(lambda x: jnp.vdot(jax.grad(f)(x), v))(x)
        return jvp, gradients, (forward_over_reverse, reverse_over_reverse), (jax.jacfwd(pool)(corner), jax.jacrev(pool)(corner))

    jvp, gradients, products, jacobians = derivatives(x, v)
    same(jvp, read(channels_first))
    for gradient in gradients:
        same(gradient, spread(3 * y**2))
    for product in products:
        same(product, spread(6 * y * read(channels_first)))
    for jacobian in jacobians:
        same(jacobian, reading[0, 0])
    mapped = jax.jit(jax.vmap(pool, 1, 1), compiler_options=QUICK)(x.swapaxes(0, 1))
    same(mapped.swapaxes(0, 1), y)


def test_first_and_second_derivatives_agree_with_finite_differences():
    with jax.enable_x64(True):
        x = np.random.default_rng(0).permutation(4 * 5 * 2).reshape(4, 5, 2) / 10  # no two nearer than 0.1
        index = jax.jit(lambda x: pooling.max_pool_with_indices(x, *OVERLAPPING)[1], compiler_options=QUICK)(x)

        def f(x):
            y = pooling.max_pool(x, *OVERLAPPING)
            return jnp.sin(pooling.max_unpool(y * y, index, *OVERLAPPING, size=(4, 5)))

        close = {"order": 1, "eps": 1e-4, "rtol": 1e-5, "atol": 1e-6}
        check_grads(jax.jit(f), (x,), modes=("fwd", "rev"), **close)
        check_grads(jax.jit(jax.grad(lambda x: jnp.vdot(f(x), jnp.cos(x)))), (x,), modes=("rev",), **close)


@pytest.mark.parametrize(("window", "stride", "padding"), [(3, 2, 1), (2, (3, 1), (1, 0))])
def test_any_windows_compile_without_scatter_and_gather(window, stride, padding):
    """Pooling and unpooling with their gradients, and all these in forward mode."""
    x = jnp.asarray(random_array(2, 8, 9, 3))

    def squares(x):
        y, index = pooling.max_pool_with_indices(x, window, stride, padding)
        return (pooling.max_unpool(y**2, index, window, stride, padding, size=(8, 9)) ** 2).sum()

    seen = hlo_names(lambda x: jax.jvp(jax.value_and_grad(squares), (x,), (x,)), x)
    assert "select" in seen
    assert not seen & MOVES


def test_those_lowerings_are_seen_where_they_are():
    x = jnp.zeros((1, 8, 8, 1))
    nn_max_pool = functools.partial(lax.reduce_window, init_value=-jnp.inf, computation=lax.max, window_dimensions=(1, 2, 2, 1))
    assert MOVES & hlo_names(forward_and_backward(functools.partial(nn_max_pool, window_strides=(1, 2, 2, 1), padding="VALID")), x)
    assert MOVES & hlo_names(lambda x: x.at[:, jnp.arange(3)].set(0), x)


@pytest.mark.parametrize(("window", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1)])
def test_the_transpose_keeps_the_positions_only(window, stride, padding):
    x = jnp.asarray(random_array(2, 32, 32, 8))
    y, vjp = jax.jit(lambda x: jax.vjp(lambda x: pooling.max_pool(x, window, stride, padding), x), compiler_options=QUICK)(x)
    kept = sorted(jax.tree.leaves(vjp), key=lambda leaf: leaf.size)
    assert (kept[-1].shape, kept[-1].dtype) == (y.shape, jnp.int8)
    assert sum(leaf.size for leaf in kept[:-1]) < 100  # constants


@pytest.mark.parametrize(("window", "stride", "padding"), [(3, 2, 1), (3, 1, 1)])
def test_the_gradient_of_overlapping_windows_computes_the_positions_once(window, stride, padding):
    """In forward and backward together, no loop over the whole image reads the image: it would compute positions for each of its pixels.

    XLA is free to do so; that the pooling is written so that it does not is worth a factor of 10 to 50 on a CPU.
    """
    x = jnp.zeros((2, 32, 32, 8))

    def image_readers(pool):
        text = jax.jit(forward_and_backward(pool)).lower(x).compile().as_text()
        entry = text[text.index("ENTRY") :]
        (image,) = re.findall(r"%(\S+) = \S+ parameter\(0\)", entry)
        return re.findall(rf"= (.*\(.*%{re.escape(image)}[,)].*)", entry)

    readers = image_readers(lambda x: pooling.max_pool(x, window, stride, padding, ceil_mode=False))
    assert sorted(re.match(r"\w+", reader)[0] for reader in readers) == ["f32", "s8"]  # the maxima and the positions


def sharded_and_not(out: Path) -> None:
    """What the child process does: the height over 8 devices, and on one; collectives and differences into `out`."""
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    assert jax.device_count() == 8
    height = NamedSharding(Mesh(np.array(jax.devices()), ("height",)), PartitionSpec(None, "height"))
    x = random_array(2, 64, 12, 3, ties=True)
    result = {}

    def compare(name, f, *args):
        placed = [jax.device_put(a, height) for a in args]
        compiled = jax.jit(f, out_shardings=height).lower(*placed).compile()
        same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), compiled(*placed), jax.jit(f)(*args))
        result[name] = [sorted(set(re.findall(r"\b(all-[a-z]+|collective-permute)\(", compiled.as_text()))), all(jax.tree.leaves(same))]

    for name, geometry in (("2x2", (2, 2, 0)), ("3x3", (3, 2, 1))):
        window, stride, padding = geometry
        pool = functools.partial(pooling.max_pool_with_indices, window=window, stride=stride, padding=padding, ceil_mode=False)
        y, index = pool(x)

        def unpool(y, index, geometry=geometry):
            return pooling.max_unpool(y, index, *geometry, size=(64, 12))

        compare(f"pool {name}", lambda x, pool=pool: (pool(x), jax.vjp(lambda x: pool(x)[0], x)[1](pool(x)[0])), x)
        compare(f"unpool {name}", lambda y, i, u=unpool: (u(y, i), jax.vjp(lambda y: u(y, i), y)[1](u(y, i))), y, index)
    compare("reversed by a gather", lambda x: x[:, jnp.arange(64)[::-1]], x)
    out.write_text(json.dumps(result))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    out = tmp_path_factory.mktemp("sharded") / "result.json"
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    code = f"import sys, pathlib; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_pooling as t; "
    code += f"t.sharded_and_not(pathlib.Path({str(out)!r}))"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


@pytest.mark.parametrize("name", ["2x2", "3x3"])
def test_sharding_the_height_changes_no_bit_and_gathers_nothing(sharded, name):
    for which in ("pool", "unpool"):
        collectives, same = sharded[f"{which} {name}"]
        assert same
        # 2x2 windows lie each on one device; others reach over to the neighbour.
        assert collectives == ([] if name == "2x2" else ["collective-permute"])


def test_an_all_gather_is_seen_where_there_is_one(sharded):
    assert "all-gather" in sharded["reversed by a gather"][0]


@pytest.mark.parametrize("stride", [10, 17])  # overlapping or not
def test_unpooling_takes_positions_of_any_type(stride):
    index = np.random.default_rng(0).integers(0, 256, (1, 3, 3, 1))
    unpool = jax.jit(lambda index: pooling.max_unpool(jnp.ones(index.shape), index, 17, stride))
    np.testing.assert_array_equal(unpool(jnp.asarray(index, jnp.uint8)), unpool(jnp.asarray(index, jnp.int32)))
    assert not unpool(jnp.full(index.shape, -1, jnp.int8)).any()


def test_a_position_that_is_dropped_has_no_flat_position():
    index = np.array([[-1, 0, 4, 2]])[..., None]  # outside, in the padding, outside, in the image
    flat = pooling.flat_indices(jnp.asarray(index), (1, 6), 2, padding=1)
    assert flat[0, :, 0].tolist() == [-1, -1, -1, 5]
    assert pooling.window_indices(flat, (1, 6), 2, padding=1)[0, :, 0].tolist() == [-1, -1, -1, 2]


def test_numbers_of_numpy_are_numbers():
    x = random_array(6, 6, 2)
    got = pooling.max_pool(x, np.int64(3), np.array([2, 1]), (np.int32(1), 0))
    np.testing.assert_array_equal(got, pooling.max_pool(x, 3, (2, 1), (1, 0)))


def _zeros(*shape):
    return jnp.zeros(shape)


@pytest.mark.parametrize(
    ("call", "got", "advice"),
    [
        (lambda: ops.max_pool_with_indices(_zeros(4, 4)), "max_pool_with_indices: got shape (4, 4)", "Add the missing axes"),
        (lambda: ops.max_unpool(_zeros(4, 4), _zeros(4, 4)), "max_unpool: got shape (4, 4)", "Add the missing axes"),
        (lambda: ops.max_unpool(_zeros(1, 2, 2, 3), _zeros(1, 2, 2, 5)), "(1, 2, 2, 3) and positions (1, 2, 2, 5)", "Project"),
        (lambda: pooling.max_pool(_zeros(4, 4)), "max_pool: got shape (4, 4)", "Add the missing axes"),
        (lambda: pooling.max_pool(jnp.zeros((4, 4, 1), jnp.uint8)), "max_pool: got uint8", "astype"),
        (lambda: pooling.max_pool(_zeros(4, 4, 1), 0), "max_pool: got window 0; required an integer from 1", "or two"),
        (lambda: pooling.max_pool(_zeros(4, 4, 1), 2.0), "got window 2.0; required an integer from 1", "or two"),
        (lambda: pooling.max_pool(_zeros(4, 4, 1), (2, 2, 2)), "got window (2, 2, 2); required an integer from 1", "or two"),
        (lambda: pooling.max_pool(_zeros(4, 4, 1), 2, (1, 0)), "got stride (1, 0); required an integer from 1", "or two"),
        (lambda: pooling.max_pool(_zeros(4, 4, 1), 2, 2, -1), "got padding -1; required an integer from 0", "or two"),
        (lambda: pooling.max_pool(_zeros(4, 4, 1), (2, 3), 2, (1, 2)), "got padding (1, 2) for a window of (2, 3)", "Pad the image"),
        (lambda: pooling.max_pool(_zeros(4, 4, 1), 200), "got a window of (200, 200); required at most 32768", "whole axes"),
        (lambda: pooling.max_pool(_zeros(9, 2, 1), 3, 1), "got an axis of 2 pixels; required a window of 3", "smaller window"),
        (lambda: pooling.max_unpool(_zeros(3, 4, 1), _zeros(3, 4, 1), size=(5, 10)), "size (5, 10) for 3 x 4 windows", "that was pooled"),
        (lambda: pooling.max_unpool(_zeros(3, 4, 1), _zeros(3, 4, 1), size=(0, 8)), "got size (0, 8); required an integer from 1", "two"),
        (lambda: pooling.flat_indices(_zeros(3, 4), (6, 8)), "flat_indices: got shape (3, 4)", "Add the missing axes"),
        (lambda: pooling.flat_indices(_zeros(3, 4, 1), (6, 10)), "flat_indices: got size (6, 10)", "less than a stride from (6, 8)"),
        (lambda: pooling.window_indices(_zeros(3, 4), (6, 8)), "window_indices: got shape (3, 4)", "Add the missing axes"),
        (lambda: pooling.window_indices(_zeros(3, 4, 1), (4, 8)), "window_indices: got size (4, 8)", "padding of that pooling"),
    ],
)
def test_errors_say_what_was_got_and_what_to_do(call, got, advice):
    with pytest.raises(InputError) as error:
        call()
    assert got in str(error.value)
    assert advice in str(error.value)
