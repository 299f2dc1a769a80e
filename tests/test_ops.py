"""Laws of jaxseg.ops: adjointness, inverses, ties, equality with torch and lax, and what XLA is given to compile."""

import importlib.util
import itertools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxseg import ops
from jaxseg.errors import InputError

DTYPES = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
LEADING = pytest.mark.parametrize("leading", [(), (2,), (2, 1, 3)])
SIZES = pytest.mark.parametrize("size", [(6, 8), (5, 8), (6, 7), (5, 7), (1, 1)])
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed (pip install -e .[parity]): nothing is compared with torch"
)

pool = jax.jit(ops.max_pool_with_indices)
unpool = jax.jit(ops.max_unpool)


def _random(*shape, seed=0, ties=False):
    r = np.random.default_rng(seed)
    return np.asarray(r.integers(-1, 2, shape) if ties else r.normal(size=shape), np.float32)


def _windows(x):
    """[..., H, W, C] -> [..., ceil(H/2), ceil(W/2), C, 4], what lies outside being -inf."""
    *n, h, w, _ = x.shape
    x = np.pad(x, [(0, 0)] * len(n) + [(0, h % 2), (0, w % 2), (0, 0)], constant_values=-np.inf)
    return np.stack([x[..., i::2, j::2, :] for i in (0, 1) for j in (0, 1)], axis=-1)


@jax.jit
def _pool_gradient(x, g):
    return jax.vjp(ops.max_pool, x)[1](g)[0]


def _hlo(f, *args):
    """Names of the operations that XLA is given and of those it makes of them."""
    lowered = jax.jit(f).lower(*args)
    given = re.findall(r'stablehlo\.(\w+)|"stablehlo\.(\w+)"', lowered.as_text())
    made = re.findall(r"= [^=]*?\b([a-z][a-z0-9-]*)\(", lowered.compile().as_text())
    return {a or b for a, b in given} | {name.replace("-", "_") for name in made}


def _forward_and_backward(f):
    """f and its gradient in all its floating arguments."""

    def both(*args):
        y, vjp = jax.vjp(f, *args)
        return y, vjp(y)

    return both


MOVES = {"scatter", "select_and_scatter", "gather", "dynamic_slice", "dynamic_gather", "dynamic_update_slice"}


def test_the_reading_of_hlo_sees_what_must_not_be_there():
    x = jnp.ones((1, 4, 4, 2))
    reduce_window = partial(jax.lax.reduce_window, init_value=-jnp.inf, computation=jax.lax.max, padding="VALID")
    builtin_pool = partial(reduce_window, window_dimensions=(1, 2, 2, 1), window_strides=(1, 2, 2, 1))
    assert "select_and_scatter" in _hlo(_forward_and_backward(builtin_pool), x)
    seen = _hlo(_forward_and_backward(lambda x: x[:, jnp.array([3, 1])]), x)
    assert {"gather", "scatter"} <= seen
    assert "dot_general" in _hlo(partial(jax.image.resize, shape=(1, 8, 8, 2), method="bilinear"), x)
    builtin = partial(jax.lax.conv_transpose, strides=(2, 2), padding="VALID")
    assert "convolution" in _hlo(_forward_and_backward(builtin), x, jnp.ones((2, 2, 2, 3)))


# Pooling and unpooling.


@SIZES
@LEADING
def test_pooling_takes_the_first_maximum_of_each_window(size, leading):
    for ties in (False, True):
        x = _random(*leading, *size, 3, ties=ties)
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
    x = _random(2, *size, 3)
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
    x, v = _random(2, 6, 8, 5), _random(2, 3, 4, 5, seed=2)
    read = np.take_along_axis(_windows(x), index[..., None].astype(int), -1)[..., 0]
    np.testing.assert_allclose(np.vdot(v, read), np.vdot(unpool(v, index), x), rtol=1e-5)
    gradient = jax.jit(lambda v, x: jax.vjp(lambda v: ops.max_unpool(v, index), v)[1](x)[0])(v, x)
    np.testing.assert_array_equal(gradient, read)


@SIZES
def test_the_gradient_of_pooling_is_unpooling(size):
    for x in (_random(2, *size, 3, ties=True), np.zeros((2, *size, 3), np.float32)):
        y, index = pool(x)
        g = _random(*y.shape, seed=3)
        np.testing.assert_array_equal(_pool_gradient(x, g), unpool(g, index)[:, : size[0], : size[1]])


@needs_torch
@SIZES
def test_pooling_and_unpooling_equal_torch_in_values_indices_and_gradient(size):
    import torch

    h, w = size
    for x in (_random(2, h, w, 3), _random(2, h, w, 3, ties=True), np.zeros((2, h, w, 3), np.float32)):
        tx = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_()
        ty, flat = torch.nn.functional.max_pool2d(tx, 2, 2, ceil_mode=True, return_indices=True)
        y, index = map(np.asarray, pool(x))
        g = _random(*y.shape, seed=4)
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
    x = jnp.asarray(_random(2, 5, 6, 3), dtype)
    y, index = pool(x)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y.astype(np.float32), _windows(np.asarray(x, np.float32)).max(-1))
    back = unpool(y, index)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back.astype(np.float32), unpool(y.astype(np.float32), index))
    g = jnp.asarray(_random(*y.shape), dtype)
    assert _pool_gradient(x, g).dtype == dtype
    np.testing.assert_array_equal(_pool_gradient(x, g), unpool(g, index)[:, :5])


def test_pooling_and_unpooling_under_vmap_jvp_and_twice_differentiated():
    x, dx = _random(3, 2, 5, 6, 2), _random(3, 2, 5, 6, 2, seed=1)
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
    x = jnp.asarray(_random(2, *size, 3))
    y, index = pool(x)
    for seen in (
        _hlo(_forward_and_backward(ops.max_pool), x),
        _hlo(ops.max_pool_with_indices, x),
        _hlo(_forward_and_backward(lambda y: ops.max_unpool(y, index)), y),
        _hlo(jax.grad(lambda x: (ops.max_unpool(*ops.max_pool_with_indices(x)) ** 2).sum()), x),
    ):
        assert "select" in seen  # it does read something
        assert not seen & MOVES


# Transposed convolution.


@LEADING
@pytest.mark.parametrize("r", [1, 2, 3, 4])
def test_conv_transpose_is_the_adjoint_of_the_strided_convolution(r, leading):
    x, kernel, y = _random(*leading, 3, 4, 5), _random(r, r, 5, 2, seed=1), _random(*leading, 3 * r, 4 * r, 2, seed=2)
    flat = y.reshape(-1, *y.shape[-3:])
    strided = jax.lax.conv_general_dilated(flat, kernel.swapaxes(2, 3), (r, r), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    enlarged = jax.jit(ops.conv_transpose)(x, kernel)
    assert enlarged.shape == y.shape
    np.testing.assert_allclose(np.vdot(enlarged, y), np.vdot(x, strided.reshape(x.shape)), rtol=1e-4)


@pytest.mark.parametrize("r", [2, 3, 4])
def test_conv_transpose_equals_lax(r):
    x, kernel = _random(2, 5, 3, 4), _random(r, r, 4, 6, seed=1)
    expected = jax.lax.conv_transpose(x, kernel[::-1, ::-1], (r, r), "VALID")
    np.testing.assert_allclose(jax.jit(ops.conv_transpose)(x, kernel), expected, rtol=1e-5, atol=1e-5)


@needs_torch
@pytest.mark.parametrize("r", [2, 3, 4])
def test_conv_transpose_equals_torch_in_value_and_gradients(r):
    import torch

    x, w, g = _random(2, 5, 3, 4), _random(4, 6, r, r, seed=1), _random(2, 5 * r, 3 * r, 6, seed=2)
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
        x, kernel = (jnp.asarray(a, jnp.float64) for a in (_random(1, 2, 3, 2), _random(3, 3, 2, 2, seed=1)))
        check_grads(jax.jit(ops.conv_transpose), (x, kernel), order=2, atol=1e-7, rtol=1e-7)


def test_conv_transpose_compiles_to_matrix_products_only():
    seen = _hlo(_forward_and_backward(ops.conv_transpose), jnp.ones((2, 4, 4, 3)), jnp.ones((2, 2, 3, 5)))
    assert "dot_general" in seen
    assert not seen & (MOVES | {"convolution"})


@DTYPES
def test_conv_transpose_keeps_the_float_and_vmaps(dtype):
    x, kernel = (jnp.asarray(a, dtype) for a in (_random(3, 2, 4, 5), _random(2, 2, 5, 4, seed=1)))
    y = jax.jit(ops.conv_transpose)(x, kernel)
    assert y.dtype == dtype
    expected = ops.conv_transpose(x.astype(np.float32), kernel.astype(np.float32))
    np.testing.assert_allclose(y.astype(np.float32), expected, atol=float(16 * jnp.finfo(dtype).eps))
    np.testing.assert_allclose(jax.jit(jax.vmap(ops.conv_transpose, (0, None)))(x, kernel), y, atol=float(16 * jnp.finfo(dtype).eps))


# Enlarging by 2.

ENLARGE = pytest.mark.parametrize("method", ["nearest", "bilinear"])
X2 = {"nearest": jax.jit(ops.nearest_x2), "bilinear": jax.jit(ops.bilinear_x2)}


@ENLARGE
@LEADING
@pytest.mark.parametrize("size", [(4, 6), (5, 1), (1, 1)])
def test_enlarging_equals_jax_image_resize(method, leading, size):
    x = _random(*leading, *size, 3)
    expected = jax.image.resize(x, (*leading, 2 * size[0], 2 * size[1], 3), method)
    np.testing.assert_allclose(X2[method](x), expected, rtol=1e-5, atol=1e-6)


@needs_torch
@ENLARGE
@pytest.mark.parametrize("size", [(4, 6), (5, 1)])
def test_enlarging_equals_torch(method, size):
    import torch

    x = _random(2, *size, 3)
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
    x = jnp.asarray(_random(3, 4, 5, 2), dtype)
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
    seen = _hlo(_forward_and_backward(ops.nearest_x2 if method == "nearest" else ops.bilinear_x2), jnp.ones((2, 4, 5, 3)))
    assert not seen & (MOVES | {"dot", "dot_general", "convolution", "custom_call"})


# Depth to space.


@LEADING
@pytest.mark.parametrize("r", [1, 2, 3])
def test_depth_to_space_and_space_to_depth_are_inverse(r, leading):
    deep, wide = _random(*leading, 3, 4, 2 * r * r), _random(*leading, 3 * r, 4 * r, 2)
    there, back = jax.jit(partial(ops.depth_to_space, scale=r)), jax.jit(partial(ops.space_to_depth, scale=r))
    assert there(deep).shape == wide.shape
    np.testing.assert_array_equal(back(there(deep)), deep)
    np.testing.assert_array_equal(there(back(wide)), wide)
    np.testing.assert_array_equal(jax.jit(jax.grad(lambda x: (there(x) * wide).sum()))(deep), back(wide))


def test_depth_to_space_puts_channel_blocks_in_row_major_cells():
    x = _random(1, 2, 2, 4 * 3)
    y = np.asarray(ops.depth_to_space(x, 2))
    for i, j in itertools.product((0, 1), repeat=2):
        np.testing.assert_array_equal(y[:, i::2, j::2], x[..., (2 * i + j) * 3 : (2 * i + j + 1) * 3])


@needs_torch
@pytest.mark.parametrize("r", [2, 3])
def test_depth_to_space_equals_torch_pixel_shuffle(r):
    import torch

    x = _random(2, 3, 4, 5 * r * r)  # torch's channels are [C, r, r], ours [r, r, C]
    theirs = x.reshape(2, 3, 4, r * r, 5).swapaxes(-2, -1).reshape(x.shape)
    expected = torch.nn.functional.pixel_shuffle(torch.tensor(theirs).permute(0, 3, 1, 2), r)
    np.testing.assert_array_equal(ops.depth_to_space(x, r), expected.permute(0, 2, 3, 1))


@DTYPES
def test_depth_to_space_keeps_the_type_and_vmaps(dtype):
    x = jnp.asarray(_random(3, 2, 4, 8), dtype)
    y = jax.jit(ops.depth_to_space)(x)
    assert y.dtype == dtype
    np.testing.assert_array_equal(jax.jit(jax.vmap(ops.depth_to_space, 1, 1))(x[None]), y[None])
    assert not _hlo(_forward_and_backward(ops.depth_to_space), x) & MOVES


# Errors.


def _zeros(*shape):
    return jnp.zeros(shape)


@pytest.mark.parametrize(
    ("call", "got", "advice"),
    [
        (lambda: ops.max_pool_with_indices(_zeros(4, 4)), "max_pool_with_indices: got shape (4, 4)", "Add the missing axes"),
        (lambda: ops.max_unpool(_zeros(4, 4), _zeros(4, 4)), "max_unpool: got shape (4, 4)", "Add the missing axes"),
        (lambda: ops.max_unpool(_zeros(1, 2, 2, 3), _zeros(1, 2, 2, 5)), "(1, 2, 2, 3) and positions (1, 2, 2, 5)", "Project"),
        (lambda: ops.conv_transpose(_zeros(2, 3), _zeros(2, 2, 3, 4)), "conv_transpose: got shape (2, 3)", "Add the missing axes"),
        (
            lambda: ops.conv_transpose(_zeros(1, 2, 2, 3), _zeros(2, 3, 3, 4)),
            "(2, 3, 3, 4) for input (1, 2, 2, 3)",
            "transpose(2, 3, 0, 1)",
        ),
        (lambda: ops.conv_transpose(_zeros(1, 2, 2, 3), _zeros(3, 4, 2, 2)), "(3, 4, 2, 2)", "transpose(2, 3, 0, 1)"),
        (lambda: ops.conv_transpose(_zeros(1, 2, 2, 3), _zeros(2, 2, 3)), "(2, 2, 3) for input", "required [r, r, 3, O]"),
        (lambda: ops.nearest_x2(_zeros(4, 4)), "nearest_x2: got shape (4, 4)", "Add the missing axes"),
        (lambda: ops.bilinear_x2(_zeros(4, 4)), "bilinear_x2: got shape (4, 4)", "Add the missing axes"),
        (lambda: ops.depth_to_space(_zeros(4, 4)), "depth_to_space: got shape (4, 4)", "Add the missing axes"),
        (lambda: ops.depth_to_space(_zeros(4, 4, 6)), "got 6 channels; required a multiple of scale^2 = 4", "Widen"),
        (lambda: ops.space_to_depth(_zeros(4, 4)), "space_to_depth: got shape (4, 4)", "Add the missing axes"),
        (lambda: ops.space_to_depth(_zeros(5, 4, 1)), "got 5 x 4 pixels; required multiples of scale = 2", "Pad"),
    ],
)
def test_errors_say_what_was_got_and_what_to_do(call, got, advice):
    with pytest.raises(InputError) as error:
        call()
    assert got in str(error.value)
    assert advice in str(error.value)
