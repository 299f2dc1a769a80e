"""Laws of jaxseg.ops.prediction: equality with torch's transposed convolution, the crops of the FCN paper, its zero border."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads
from op_laws import DTYPES, LEADING, MOVES, check_linear_map, forward_and_backward, hlo_names, needs_torch, random_array

from jaxseg.errors import InputError
from jaxseg.ops.prediction import bilinear_kernel, upsample_prediction

SCALES = pytest.mark.parametrize("scale", [2, 3, 4, 8, 16, 32])


@SCALES
def test_the_filter_is_the_papers(scale):
    kernel = bilinear_kernel(scale)
    k = 2 * scale - scale % 2
    f = (k + 1) // 2
    c = f - 1 if k % 2 else f - 0.5
    expected = [[(1 - abs(i - c) / f) * (1 - abs(j - c) / f) for j in range(k)] for i in range(k)]
    assert kernel.dtype == np.float32
    np.testing.assert_allclose(kernel, expected, rtol=1e-6)
    sums = [kernel[i::scale, j::scale].sum() for i in range(scale) for j in range(scale)]
    np.testing.assert_allclose(sums, 1, rtol=1e-6)  # each output pixel has the weights of one input pixel


def _whole(x, kernel, scale):
    """The whole transposed convolution, by XLA's dilated convolution."""
    k, c = kernel.shape[0], x.shape[-1]
    kernel = jnp.broadcast_to(jnp.asarray(kernel).reshape(k, k, 1, -1), (k, k, 1, c))[::-1, ::-1]
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), [(k - 1, k - 1)] * 2, (scale, scale), None, numbers, c)


@pytest.mark.parametrize("scale", [1, 2, 3, 8])
def test_any_part_of_the_whole(scale):
    x = random_array(2, 3, 4, 2)
    whole = np.asarray(_whole(x, bilinear_kernel(scale), scale))
    h, w = whole.shape[1:3]
    parts = [(0, (h, w)), (scale // 2, (h - scale, max(1, w - 2 * scale))), (h - 1, (1, 2))]
    f = jax.jit(lambda x: [upsample_prediction(x, scale, offset=offset, size=size) for offset, size in parts])
    for (offset, size), part in zip(parts, f(x), strict=True):
        np.testing.assert_allclose(part, whole[:, offset : offset + size[0], offset : offset + size[1]], rtol=1e-5, atol=1e-6)


@needs_torch
@SCALES
def test_it_equals_torch_in_values_and_gradients(scale):
    import torch

    x, k = random_array(2, 2, 3, 2), 2 * scale - scale % 2
    weight = torch.tensor(bilinear_kernel(scale)).repeat(2, 1, 1, 1)
    tx = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_()
    crop = (scale + 1) // 2 if scale > 2 else 0
    g, g_part = random_array(2, 2 * scale, 3 * scale, 2, seed=1), random_array(2, 2 * scale - 1, 3 * scale - 2, 2, seed=2)

    @jax.jit
    def ours(x, g, g_part):
        f, part = partial(upsample_prediction, scale=scale), partial(upsample_prediction, scale=scale, offset=crop, size=g_part.shape[1:3])
        return f(x), part(x), jax.vjp(f, x)[1](g)[0], jax.vjp(part, x)[1](g_part)[0]

    def nchw(v):
        return torch.tensor(v).permute(0, 3, 1, 2)

    middle = torch.nn.functional.conv_transpose2d(tx, weight, stride=scale, padding=-(-(k - scale) // 2), groups=2)
    part = torch.nn.functional.conv_transpose2d(tx, weight, stride=scale, groups=2)
    part = part[:, :, crop : crop + g_part.shape[1], crop : crop + g_part.shape[2]]
    gradients = [torch.autograd.grad(y, tx, nchw(v))[0] for y, v in [(middle, g), (part, g_part)]]
    for got, expected in zip(ours(x, g, g_part), (middle.detach(), part.detach(), *gradients), strict=True):
        np.testing.assert_allclose(got, expected.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize(("scale", "k", "channels"), [(2, 4, (3,)), (2, 3, (3,)), (3, 3, ()), (4, 9, (3,))])
def test_a_learned_filter_equals_the_dilated_convolution_in_values_and_gradients(scale, k, channels):
    x, kernel, low = random_array(2, 3, 4, 3), random_array(k, k, *channels, seed=1), -(-(k - scale) // 2)
    g = random_array(2, 3 * scale, 4 * scale, 3, seed=2)

    @jax.jit
    def both(x, kernel, g):
        def ours(x, kernel):
            return upsample_prediction(x, scale, kernel=kernel)

        def expected(x, kernel):
            return _whole(x, kernel, scale)[:, low : low + 3 * scale, low : low + 4 * scale]

        return [(y, *vjp(g)) for y, vjp in (jax.vjp(f, x, kernel) for f in (ours, expected))]

    for got, expected in zip(*both(x, kernel, g), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-5)


def test_learning_begins_at_the_fixed_filter():
    x = random_array(1, 4, 3, 2)
    for how in ({}, {"offset": 3, "size": (7, 6)}):
        f = partial(upsample_prediction, scale=4, **how)
        fixed, learned = jax.jit(lambda x, f=f: (f(x), f(x, kernel=bilinear_kernel(4))))(x)
        np.testing.assert_allclose(learned, fixed, rtol=1e-5, atol=1e-6)


def test_the_crops_of_the_fcn_paper():
    def shape(h, w, scale, offset, size):
        return jax.eval_shape(partial(upsample_prediction, scale=scale, offset=offset, size=size), jnp.zeros((1, h, w, 21))).shape[1:3]

    def whole(h, w, scale, size):  # so much and no more
        assert shape(h, w, scale, 0, size) == size
        with pytest.raises(InputError, match=f"the whole has {size[0]} x {size[1]} pixels"):
            shape(h, w, scale, 1, size)

    whole(12, 16, 32, (416, 544))
    assert shape(12, 16, 32, 19, (375, 500)) == (375, 500)
    whole(12, 16, 2, (26, 34))
    whole(26, 34, 16, (432, 560))
    assert shape(26, 34, 16, 27, (375, 500)) == (375, 500)
    whole(26, 34, 2, (54, 70))
    whole(54, 70, 8, (440, 568))
    assert shape(54, 70, 8, 31, (375, 500)) == (375, 500)
    whole(2, 2, 32, (96, 96))


def test_zeros_surround_the_scores():
    y = np.asarray(upsample_prediction(jnp.ones((1, 4, 5, 1)), 8))[0, ..., 0]
    np.testing.assert_array_equal(y[4:-4, 4:-4], 1)
    assert np.all(y[0] < 0.6)
    assert np.all(y[:, -1] < 0.6)


@DTYPES
def test_the_type_stays(dtype):
    x = jnp.asarray(random_array(1, 3, 2, 2), dtype)
    y = upsample_prediction(x, 4)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, upsample_prediction(x.astype(jnp.float32), 4).astype(dtype))
    assert upsample_prediction(x, 2, kernel=bilinear_kernel(2)).dtype == dtype


@LEADING
def test_any_leading_axes(leading):
    x = random_array(*leading, 3, 2, 2)
    for kernel in (None, bilinear_kernel(3)):
        f = jax.jit(partial(upsample_prediction, scale=3, kernel=kernel))
        y = f(x)
        np.testing.assert_allclose(y, f(x.reshape(-1, 3, 2, 2)).reshape(*leading, 9, 6, 2), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("scale", [3, 16])  # summed, multiplied
def test_forward_reverse_and_second_derivatives(scale):
    x, v = random_array(2, 2, 3, 1), random_array(2, 2, 3, 1, seed=1)
    f = jax.jit(partial(upsample_prediction, scale=scale))
    check_linear_map(f, x, v)


def test_derivatives_equal_finite_differences():
    with jax.enable_x64(True):
        x, kernel = (v.astype(np.float64) for v in (random_array(2, 2, 1), random_array(3, 3, 1, seed=1)))
        check_grads(jax.jit(lambda x: upsample_prediction(x, 2) ** 2), (x,), order=2)
        check_grads(jax.jit(lambda x, kernel: upsample_prediction(x, 2, kernel=kernel)), (x, kernel), order=1)


def test_the_fixed_filter_compiles_without_gather_scatter_dot_and_convolution():
    seen = hlo_names(forward_and_backward(partial(upsample_prediction, scale=8)), jnp.ones((2, 3, 4, 3)))
    assert "slice" in seen
    assert not seen & (MOVES | {"dot", "dot_general", "convolution", "custom_call"})


@pytest.mark.parametrize(
    ("call", "got", "advice"),
    [
        (lambda x: upsample_prediction(x[0], 2), "upsample_prediction: got shape (4, 3)", "Add the missing axes"),
        (lambda x: upsample_prediction(x, 0), "upsample_prediction: got scale 0", "an integer from 1"),
        (lambda x: bilinear_kernel(0), "bilinear_kernel: got scale 0", "an integer from 1"),
        (lambda x: upsample_prediction(x, 2, kernel=jnp.ones((4, 4, 5))), "(4, 4, 5) for scale 2 and 3 classes", "bilinear_kernel(2)"),
        (lambda x: upsample_prediction(x, 4, kernel=jnp.ones((3, 3))), "got a kernel of shape (3, 3)", "k at least 4"),
        (lambda x: upsample_prediction(x, 2, size=(4, 4)), "got offset=None and size=(4, 4)", "both or neither"),
        (lambda x: upsample_prediction(x, 2, offset=0, size=(4, 4, 3)), "got size (4, 4, 3)", "or two"),
        (lambda x: upsample_prediction(x, 2, offset=0.5, size=(4, 4)), "got offset 0.5", "an integer from 0"),
        (lambda x: upsample_prediction(x, 1.5), "upsample_prediction: got scale 1.5", "an integer from 1"),
        (lambda x: bilinear_kernel(1.5), "bilinear_kernel: got scale 1.5", "an integer from 1"),
        (lambda x: upsample_prediction(x.astype(int), 2), "upsample_prediction: got int32", "astype"),
        (lambda x: upsample_prediction(x, 2, offset=-1, size=(4, 4)), "got offset -1", "an integer from 0"),
        (lambda x: upsample_prediction(x, 2, offset=3, size=(8, 7)), "the whole has 10 x 10 pixels", "ask for less"),
        (lambda x: upsample_prediction(x, 2, offset=3, size=(7, 8)), "the whole has 10 x 10 pixels", "ask for less"),
    ],
)
def test_errors_say_what_was_got_and_what_to_do(call, got, advice):
    with pytest.raises(InputError) as error:
        call(jnp.zeros((4, 4, 3)))
    assert got in str(error.value)
    assert advice in str(error.value)


def test_an_empty_map_and_a_kernel_without_axes_are_refused():
    with pytest.raises(InputError, match="from one pixel on"):
        upsample_prediction(jnp.ones((1, 0, 4, 3)), 2)
    with pytest.raises(InputError, match=r"kernel of shape \(\)"):
        upsample_prediction(jnp.ones((1, 4, 4, 3)), 2, kernel=jnp.float32(3))
