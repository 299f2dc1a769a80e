"""Laws of jaxseg.ops.conv_transpose: adjointness, equality with torch and lax, what XLA is given to compile."""

import contextlib
import itertools
import re
import sys
from functools import partial
from unittest import mock

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from op_laws import DTYPES, LEADING, MOVES, compiled_names, forward_and_backward, hlo_names, needs_torch, random_array, spread

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


@contextlib.contextmanager
def as_if_large():
    """Small images take the ways of large ones."""
    with mock.patch.multiple(sys.modules["jaxseg.ops.conv_transpose"], PAINTED=0, COPIED=1):
        yield


def as_if_gpu():
    """Forms are chosen as where no CPU computes."""
    return mock.patch("jax.default_backend", return_value="gpu")


def _configurations():
    """(kernel, stride, padding, output padding, dilation, groups, size, in, out): all that torch takes of these ranges, 1,165 of them."""
    r = np.random.default_rng(0)
    rows, columns = (1, 2, 3, 4, 5, (2, 3)), (1, 2, 3, 4, (1, 2))
    for k, s, p, q, d, g in itertools.product(rows, columns, (0, 1, 2), (0, 1, 2), (1, 2), (1, 2, 4)):
        h, w = (int(n) for n in r.integers(3, 7, 2))
        if q >= max(np.min(s), d) or (3 - 1) * np.min(s) - 2 * p + d * (np.min(k) - 1) + q < 0:
            continue
        yield k, s, p, q, d, g, (h, w), 8 if g == 1 else 4, 4 * int(r.integers(1, 3))
    yield from ((8, 4, 2, 0, 1, 1, (3, 4), 3, 2), (16, 8, 4, 0, 1, 1, (3, 2), 3, 2), (7, 4, 0, 3, 1, 1, (2, 3), 2, 3))
    yield from ((3, 2, 1, 1, 1, 1, (4, 5), 8, 6), (4, 2, 1, 0, 1, 1, (1, 5), 9, 3), (3, 2, 1, 1, 1, 1, (4, 1), 3, 6))
    yield from ((16, 8, 4, 0, 1, 21, (3, 4), 21, 21), (4, 2, 1, 0, 1, 6, (5, 4), 6, 12), (3, 2, 1, 1, 1, 5, (4, 3), 5, 5))


CONFIGURATIONS = list(_configurations())


def _equals_torch(k, s, p, q, d, g, size, i, o):
    import torch

    kh, kw = (k, k) if isinstance(k, int) else k
    x, w = random_array(2, *size, i), random_array(i, o // g, kh, kw, seed=1)
    tx, tw = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_(), torch.tensor(w).requires_grad_()
    ty = torch.nn.functional.conv_transpose2d(tx, tw, None, s, p, q, g, d)
    dy = random_array(*np.array(ty.shape)[[0, 2, 3, 1]], seed=2)
    ty.backward(torch.tensor(dy).permute(0, 3, 1, 2))

    @jax.jit
    def ours(x, kernel, dy):
        y, vjp = jax.vjp(lambda x, kernel: ops.conv_transpose(x, kernel, s, p, q, d, g), x, kernel)
        return y, *vjp(dy)

    theirs = (ty.detach().permute(0, 2, 3, 1), tx.grad.permute(0, 2, 3, 1), tw.grad.permute(2, 3, 0, 1))
    for got, expected in zip(ours(x, w.transpose(2, 3, 0, 1), dy), theirs, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * float(abs(expected).max()))


@needs_torch
@pytest.mark.parametrize("configuration", [*CONFIGURATIONS[::97], *CONFIGURATIONS[-9:]], ids=str)
def test_conv_transpose_equals_torch_in_value_and_gradients(configuration):
    _equals_torch(*configuration)
    with as_if_large():
        _equals_torch(*configuration)


@pytest.mark.parametrize(
    ("layer", "rows"), spread([(3, 2, 1, 1), (4, 2, 1, 0), (5, 3, 0, 2), (3, 4, 0, 0), (9, 2, 4, 1)], [1, 2, 3, 7]), ids=str
)
def test_a_weight_gradient_is_the_same_in_parts_of_any_rows(layer, rows):
    k, s, p, q = layer
    x, kernel = random_array(2, 7, 3, 4), random_array(k, k, 4, 5, seed=1)
    values = 2 * 7 * 3 * k * k * 5
    with mock.patch.object(sys.modules["jaxseg.ops.conv_transpose"], "COPIED", -(-values * rows // 7)):
        y, vjp = jax.vjp(lambda w: ops.conv_transpose(x, w, s, p, q), kernel)
    dy = random_array(*y.shape, seed=2)
    with as_if_gpu():
        expected = jax.vjp(lambda w: ops.conv_transpose(x, w, s, p, q), kernel)[1](dy)[0]
    np.testing.assert_allclose(vjp(dy)[0], expected, rtol=1e-4, atol=1e-4)


@needs_torch
@pytest.mark.slow
@pytest.mark.parametrize("part", range(20))
def test_conv_transpose_equals_torch_in_every_configuration(part):
    assert len(CONFIGURATIONS) > 1000
    for configuration in CONFIGURATIONS[part::20]:
        _equals_torch(*configuration)
        with as_if_large():
            _equals_torch(*configuration)
        jax.clear_caches()


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(
    ("k", "s", "d"), [(3, 1, 1), (2, 2, 1), (3, 2, 1), (4, 2, 1), (2, 3, 1), (5, 3, 1), (3, 2, 2), ((2, 5), (3, 2), 1)]
)
def test_conv_transpose_has_the_paddings_of_lax(padding, k, s, d):
    kernel, x = random_array(*((k, k) if isinstance(k, int) else k), 4, 6, seed=1), random_array(2, 5, 3, 4)
    strides, holes = ((s, s) if isinstance(s, int) else s), (d, d)
    expected = jax.lax.conv_transpose(x, kernel[::-1, ::-1], strides, padding, rhs_dilation=holes)
    np.testing.assert_allclose(ops.conv_transpose(x, kernel, s, padding, dilation=d), expected, rtol=1e-5, atol=1e-5)


# kernel shape, arguments: one of each way that conv_transpose takes; large images and other backends take their own.
WAYS = {
    "cells": ((3, 3, 2, 2), {}),
    "dilated": ((3, 4, 2, 2), {"stride": 2, "padding": 1, "output_padding": 1, "dilation": 2}),
    "sub-pixel": ((5, 5, 2, 2), {"stride": 4, "padding": 1}),
    "depthwise": ((4, 4, 2, 1), {"stride": 2, "padding": 1, "groups": 2}),
    "groups": ((3, 3, 4, 2), {"stride": 2, "dilation": 2, "groups": 2}),
    "sub-pixel, in parts": ((5, 5, 2, 2), {"stride": 4, "padding": 1}),
    "phases": ((3, 4, 2, 2), {"stride": 2, "padding": 1, "output_padding": 1}),
    "phase rows": ((3, 3, 8, 2), {"stride": 2, "padding": 1, "output_padding": 1}),
    "cells of other backends": ((3, 3, 2, 2), {}),
    "sub-pixel of other backends": ((5, 5, 2, 2), {"stride": 4, "padding": 1}),
}


@pytest.fixture
def way(request):
    other = {"phases": as_if_large, "sub-pixel, in parts": as_if_large}
    with as_if_gpu() if "other backends" in request.param else other.get(request.param, contextlib.nullcontext)():
        yield request.param


EVERY_WAY = pytest.mark.parametrize("way", WAYS, indirect=True)


@EVERY_WAY
def test_derivatives_of_every_mode_and_order_equal_finite_differences(way):
    shape, how = WAYS[way]
    with jax.enable_x64(True):
        x, kernel = (jnp.asarray(a, jnp.float64) for a in (random_array(1, 2, 3, shape[2]), random_array(*shape, seed=1)))
        check_grads(jax.jit(partial(ops.conv_transpose, **how)), (x, kernel), order=2, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6)


@EVERY_WAY
def test_hessian_vector_products_and_gradients_of_examples(way):
    shape, how = WAYS[way]
    x, kernel, v = random_array(3, 2, 3, shape[2]), random_array(*shape, seed=1), random_array(*shape, seed=2)

    def loss(kernel, x):
        return (ops.conv_transpose(x, kernel, **how) ** 2).sum()

    @jax.jit
    def everything(kernel, v, x):
        product = jax.jvp(jax.grad(lambda k: loss(k, x)), (kernel,), (v,))[1]  # the loss is quadratic: H v = gradient at v
        each = jax.vmap(jax.grad(loss), (None, 0))(kernel, x)
        kernels = jax.vmap(lambda k: ops.conv_transpose(x, k, **how))(jnp.stack([kernel, v]))
        columns = jax.jacfwd(lambda k: ops.conv_transpose(x, k, **how))(kernel)
        return product, each, kernels, columns, jax.grad(loss)(v, x), jax.grad(loss)(kernel, x), ops.conv_transpose(x, v, **how)

    product, each, kernels, columns, at_v, whole, second = everything(kernel, v, x)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-3)
    close(product, at_v)
    close(each.sum(0), whole)
    close(kernels[1], second)
    close(jnp.tensordot(columns, v, 4), second)


@EVERY_WAY
def test_conv_transpose_works_in_shard_map(way):
    """On a mesh of one device, whose types are checked as on many: the gradient of a replicated kernel is summed over the mesh."""
    shape, how = WAYS[way]
    x, kernel = random_array(2, 3, 3, shape[2]), random_array(*shape, seed=1)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    def loss(kernel, x):
        return (ops.conv_transpose(x, kernel, **how) ** 2).sum()

    whole = partial(jax.shard_map, mesh=mesh, in_specs=(spec(), spec("data")), out_specs=spec())
    mapped = whole(lambda k, x: jax.grad(lambda k, x: jax.lax.psum(loss(k, x), "data"))(k, x))
    np.testing.assert_allclose(jax.jit(mapped)(kernel, x), jax.grad(loss)(kernel, x), rtol=1e-4, atol=1e-4)


def test_the_weight_gradient_is_no_convolution_of_a_dilated_image():
    """What XLA makes slow: in the weight gradient neither the image nor the cotangent may be filled up with zeros."""
    x, kernel = jnp.ones((2, 6, 6, 3)), jnp.ones((4, 4, 3, 5))

    def convolutions(f):
        return re.findall(
            r"stablehlo.convolution.*?lhs_dilate = \[2, 2\]", jax.jit(jax.grad(lambda k: (f(k) ** 2).sum())).lower(kernel).as_text()
        )

    def stock(k):
        return jax.lax.conv_transpose(x, k[::-1, ::-1], (2, 2), "SAME")

    np.testing.assert_allclose(stock(kernel), ops.conv_transpose(x, kernel, 2, 1))
    assert len(convolutions(stock)) == 2  # the forward one, and the weight gradient
    assert len(convolutions(lambda k: ops.conv_transpose(x, k, 2, 1))) == 0  # the forward one is on the coarse grid
    assert len(convolutions(lambda k: ops.conv_transpose(x, k, 2, dilation=2))) == 1  # and here the lax one


def test_kernel_equal_to_stride_is_matrix_products_and_for_the_input_gradient_a_strided_convolution():
    x, kernel = jnp.ones((2, 4, 4, 3)), jnp.ones((2, 2, 3, 5))
    for f, y in ((lambda k: ops.conv_transpose(x, k), kernel), (lambda x: ops.conv_transpose(x, kernel), x)):
        seen = hlo_names(forward_and_backward(f), y)
        assert "dot_general" in seen
        assert not seen & MOVES
        assert ("convolution" in compiled_names(forward_and_backward(f), y)) == (y is x)


def test_weight_gradients_of_overlapping_blocks_are_products_too():
    x, kernel = jnp.ones((2, 4, 4, 3)), jnp.ones((3, 3, 3, 5))
    y, vjp = jax.vjp(lambda kernel: ops.conv_transpose(x, kernel, 2, 1, 1), kernel)
    made = compiled_names(vjp, y)
    assert "dot" in made
    assert "convolution" not in made


@DTYPES
def test_conv_transpose_keeps_the_float_and_vmaps(dtype):
    x, kernel = (jnp.asarray(a, dtype) for a in (random_array(3, 2, 4, 5), random_array(2, 2, 5, 4, seed=1)))
    y = jax.jit(ops.conv_transpose)(x, kernel)
    assert y.dtype == dtype
    expected = ops.conv_transpose(x.astype(np.float32), kernel.astype(np.float32))
    np.testing.assert_allclose(y.astype(np.float32), expected, atol=float(16 * jnp.finfo(dtype).eps))
    np.testing.assert_allclose(jax.jit(jax.vmap(ops.conv_transpose, (0, None)))(x, kernel), y, atol=float(16 * jnp.finfo(dtype).eps))


def test_numbers_of_numpy_are_numbers():
    two, arguments = np.int64(2), (random_array(1, 2, 3, 4), random_array(3, 3, 4, 1, seed=1))
    got = ops.conv_transpose(*arguments, np.array([2, 2]), (np.int32(1), 1), output_padding=np.int64(1), dilation=two, groups=two)
    np.testing.assert_array_equal(got, ops.conv_transpose(*arguments, 2, 1, 1, 2, 2))


def test_output_padding_adds_to_same_padding():
    x, kernel = random_array(1, 2, 3, 2), random_array(3, 3, 2, 2, seed=1)
    y = ops.conv_transpose(x, kernel, 2, "SAME", output_padding=1)
    assert y.shape == (1, 5, 7, 2)
    np.testing.assert_allclose(y[:, :4, :6], ops.conv_transpose(x, kernel, 2, "SAME"), rtol=1e-5, atol=1e-6)


def _zeros(*shape):
    return jnp.zeros(shape)


def _transpose(**how):
    return ops.conv_transpose(_zeros(1, 2, 2, 3), _zeros(2, 2, 3, 4), **how)


@pytest.mark.parametrize(
    ("call", "got", "advice"),
    [
        (lambda: ops.conv_transpose(_zeros(2, 3), _zeros(2, 2, 3, 4)), "conv_transpose: got shape (2, 3)", "Add the missing axes"),
        (lambda: _transpose(groups=2), "groups=2; required", "groups dividing 3"),
        (lambda: _transpose(stride=0), "got stride 0", "from 1"),
        (lambda: _transpose(stride=2, output_padding=2), "output_padding=2", "jnp.pad"),
        (lambda: _transpose(stride=2, padding=3), "padding=3; the output would be -2 x -2", "Pad less"),
        (lambda: _transpose(stride=(1, 2, 3)), "got stride (1, 2, 3)", "or two"),
        (lambda: _transpose(stride=True), "got stride True", "an integer from 1"),
        (lambda: _transpose(stride=2, padding=-1), "got padding -1; required an integer from 0", "jnp.pad"),
        (lambda: _transpose(groups=1.0), "got groups 1.0", "an integer from 1"),
        (lambda: ops.conv_transpose(_zeros(1, 2, 2, 3), _zeros(0, 0, 3, 2), 2), "(0, 0, 3, 2) for input", "kh and kw from 1"),
        (lambda: ops.conv_transpose(_zeros(2, 2, 3).astype(int), _zeros(2, 2, 3, 4)), "conv_transpose: got int32", "astype"),
        (lambda: _transpose(stride=2, padding="same"), "padding='same'", "'SAME'"),
        (lambda: ops.conv_transpose(_zeros(1, 2, 2, 3), _zeros(3, 4, 2, 2)), "(3, 4, 2, 2)", "transpose(2, 3, 0, 1)"),
        (lambda: ops.conv_transpose(_zeros(1, 2, 2, 3), _zeros(2, 2, 3)), "(2, 2, 3) for input", "required [kh, kw, 3, O / groups]"),
    ],
)
def test_errors_say_what_was_got_and_what_to_do(call, got, advice):
    with pytest.raises(InputError) as error:
        call()
    assert got in str(error.value)
    assert advice in str(error.value)


@pytest.mark.parametrize(("taps", "options"), [(2, {}), (3, {"stride": 2}), (4, {"stride": 2, "padding": 1}), (8, {"stride": 4})])
def test_a_symbolic_batch_height_and_width_can_be_exported(taps, options):
    kernel = random_array(taps, taps, 4, 3)
    x = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, h, w, 4"), jnp.float32)
    program = jax.export.export(jax.jit(lambda x: ops.conv_transpose(x, kernel, **options)))(x)
    image = random_array(2, 5, 6, 4)
    np.testing.assert_allclose(program.call(image), ops.conv_transpose(image, kernel, **options), rtol=1e-5, atol=1e-5)


@EVERY_WAY
def test_no_images_have_gradients_of_zero(way):
    shape, how = WAYS[way]
    x, kernel = jnp.zeros((0, 2, 3, shape[2])), jnp.ones(shape)
    y, vjp = jax.vjp(partial(ops.conv_transpose, **how), x, kernel)
    dx, dkernel = vjp(y)
    assert (y.shape[0], dx.shape) == (0, x.shape)
    np.testing.assert_array_equal(dkernel, 0)


def test_an_empty_image_and_complex_kernels_are_refused():
    with pytest.raises(InputError, match="from one pixel on"):
        ops.conv_transpose(jnp.ones((1, 0, 4, 3)), jnp.ones((3, 3, 3, 2)), 2)
    with pytest.raises(InputError, match="complex64; required floating"):
        ops.conv_transpose(jnp.ones((1, 4, 4, 3)), jnp.ones((2, 2, 3, 2), jnp.complex64))
