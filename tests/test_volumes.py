"""Laws of volumes: the operators of ops/volumes.py, and the U-Net of [N, D, H, W, C], equal to torch's own layers."""

import importlib.util
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from model_laws import check_the_unet_s_skip
from op_laws import forward_and_backward
from random_variables import random_variables

from jaxseg import ops
from jaxseg.errors import InputError
from jaxseg.models import UNet
from jaxseg.models.unet import margin
from jaxseg.upsample import UPSAMPLERS, NearestConv

Tiny = partial(UNet, num_classes=3, features=(3, 4, 5))
TINY = 44  # its smallest legal side that leaves 4 pixels
TORCH = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed (pip install -e .[parity]): no parity test"
)
close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


def _volume(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _first(x):
    """Channels before the other axes, as torch has them."""
    return np.moveaxis(x, -1, 1)


# Operators.


@pytest.mark.parametrize("size", [(4, 6, 8), (3, 5, 7), (1, 1, 1), (2, 1, 9)])
def test_pooling_takes_the_first_largest_of_each_window(size):
    """Values and gradients, ties too, against the windows one by one."""
    x = np.random.default_rng(0).integers(0, 3, (2, *size, 3)).astype(np.float32)
    pooled, transpose = jax.vjp(ops.max_pool_3d, x)
    g = _volume(*pooled.shape)
    values, gradient = np.empty_like(pooled), np.zeros_like(x)
    for n, d, h, w, c in np.ndindex(*pooled.shape):
        window = x[n, 2 * d : 2 * d + 2, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2, c]
        values[n, d, h, w, c] = window.max()
        i, j, k = np.unravel_index(window.argmax(), window.shape)
        gradient[n, 2 * d + i, 2 * h + j, 2 * w + k, c] += g[n, d, h, w, c]
    np.testing.assert_array_equal(pooled, values)
    np.testing.assert_array_equal(transpose(g)[0], gradient)


@pytest.mark.parametrize("kernel", [(2, 2, 2), (1, 2, 3)])
def test_each_coarse_pixel_paints_its_own_cell(kernel):
    x, w = _volume(2, 3, 4, 5, 6), _volume(*kernel, 6, 7, seed=1)
    y = ops.conv_transpose_3d(x, w)
    for d, h, c in itertools.product(*map(range, kernel)):
        np.testing.assert_allclose(y[:, d :: kernel[0], h :: kernel[1], c :: kernel[2]], x @ w[d, h, c], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        ((3, 3, 3, 4, 5), {"padding": "SAME"}),
        ((3, 3, 3, 4, 5), {"padding": "VALID"}),
        ((3, 3, 3, 4, 5), {"padding": ((2, 0), (1, 1), (0, 3)), "window_strides": (2, 1, 3)}),
        ((2, 3, 1, 4, 5), {"padding": "SAME", "window_strides": (2, 2, 2), "rhs_dilation": (2, 1, 1)}),
        ((1, 3, 3, 4, 5), {"padding": "SAME"}),
        ((1, 1, 1, 4, 5), {"padding": "VALID", "window_strides": (2, 2, 2)}),
        ((3, 3, 3, 2, 6), {"padding": "SAME", "feature_group_count": 2}),
        ((3, 3, 3, 4, 5), {"padding": ((1, 1), (1, 1), (0, 1)), "lhs_dilation": (2, 1, 2)}),
        ((7, 3, 3, 4, 5), {"padding": "VALID"}),  # nothing is left
    ],
    ids=str,
)
def test_convolutions_equal_lax_s_in_values_and_derivatives(kernel, options):
    x, w = _volume(2, 6, 8, 7, 4), _volume(*kernel, seed=1)
    options = {"window_strides": (1, 1, 1), "dimension_numbers": ("NDHWC", "DHWIO", "NDHWC"), **options}
    results = []
    for f in (ops.conv_general_dilated, jax.lax.conv_general_dilated):

        def g(x, w, f=f):
            return f(x, w, **options)

        y, vjp = jax.vjp(g, x, w)
        second = jax.jvp(jax.grad(lambda x, w, g=g: (g(x, w) ** 3).sum(), (0, 1)), (x, w), (x[::-1], w[::-1]))[1]
        each = jax.vmap(jax.grad(lambda w, x, g=g: (g(x[None], w) ** 2).sum()), (None, 0))(w, x)
        results.append((y, vjp(y), second, each))
    jax.tree.map(lambda a, b: close(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max(initial=0)), *results)


def test_a_convolution_keeps_nothing_but_its_arguments_for_the_gradient():
    x, w = _volume(1, 6, 8, 7, 4), _volume(3, 3, 3, 4, 5)
    _, vjp = jax.vjp(lambda x, w: ops.conv_general_dilated(x, w, (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")), x, w)
    assert sum(leaf.size for leaf in jax.tree.leaves(vjp)) == x.size + w.size


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="cuDNN and TPUs are left to choose")
def test_xla_gets_convolutions_of_images():
    def program(f):
        both = forward_and_backward(lambda x, w: f(x, w, (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")))
        return jax.jit(both).lower(_volume(1, 6, 8, 7, 4), _volume(3, 3, 3, 4, 5)).as_text()

    assert "[b, 0, 1, 2, f]" in program(jax.lax.conv_general_dilated)
    assert "[b, 0, 1, f]" in program(ops.conv_general_dilated)
    assert "[b, 0, 1, 2, f]" not in program(ops.conv_general_dilated)


@TORCH
def test_operators_equal_torch_s_in_values_and_gradients():
    import torch

    x, w = _volume(2, 3, 5, 4, 6), _volume(2, 2, 2, 6, 7, seed=1)
    theirs = torch.tensor(_first(x), requires_grad=True), torch.tensor(w.transpose(3, 4, 0, 1, 2).copy(), requires_grad=True)
    for ours, f in (
        (ops.conv_transpose_3d, partial(torch.nn.functional.conv_transpose3d, stride=2)),
        (lambda x, w: ops.max_pool_3d(x), lambda x, w: torch.nn.functional.max_pool3d(x, 2, ceil_mode=True) + 0 * w.sum()),
    ):
        y, transpose = jax.vjp(ours, x, w)
        expected = f(*theirs)
        close(_first(y), expected.detach(), rtol=1e-4, atol=1e-5)
        g = _volume(*y.shape, seed=2)
        dx, dw = transpose(g)
        tx, tw = torch.autograd.grad(expected, theirs, torch.tensor(_first(g)))
        close(_first(dx), tx, rtol=1e-4, atol=1e-5)
        close(dw.transpose(3, 4, 0, 1, 2), tw, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("f", [ops.max_pool_3d, lambda x: ops.conv_transpose_3d(x, jnp.zeros((2, 2, 2, 3, 4)))])
def test_what_is_no_volume_is_refused(f):
    with pytest.raises(InputError, match=r"required a volume \[N, D, H, W, C\] with voxels. Add the missing axes"):
        f(jnp.zeros((2, 8, 8, 3)))
    with pytest.raises(InputError, match="int32; required floating point"):
        f(jnp.zeros((2, 4, 8, 8, 3), jnp.int32))


def test_a_kernel_that_does_not_fit_is_refused():
    for shape in ((2, 2, 3, 4), (2, 2, 2, 4, 3)):
        with pytest.raises(InputError, match=r"required \[kd, kh, kw, 3, O\]"):
            ops.conv_transpose_3d(jnp.zeros((2, 4, 8, 8, 3)), jnp.zeros(shape))


# The U-Net.


def _torch_unet(torch, params, model, image):
    """The paper's U-Net on torch's own layers for volumes, [N, C, D, H, W]."""
    functional, depth = torch.nn.functional, len(model.features) - 1

    def convs(x, name):
        for i in (1, 2):
            layer = params[f"{name}_conv{i}"]
            weight, padding = layer["kernel"].transpose(4, 3, 0, 1, 2), 0 if model.padding == "valid" else 1
            x = functional.conv3d(x, torch.tensor(weight), torch.tensor(layer["bias"]), padding=padding).relu()
        return x

    x, skips = image, []
    for level in range(depth):
        x = convs(x, f"down{level}")
        skips.append(x)
        x = functional.max_pool3d(x, 2, ceil_mode=True)
    x = convs(x, f"down{depth}")
    for level in reversed(range(depth)):
        layer, skip = params[f"up{level}_sample"], skips[level]
        x = functional.conv_transpose3d(x, torch.tensor(layer["kernel"].transpose(3, 4, 0, 1, 2)), torch.tensor(layer["bias"]), stride=2)
        if model.padding == "same":
            x = x[:, :, *map(slice, skip.shape[2:])]
        starts = [(s - u) // 2 for s, u in zip(skip.shape[2:], x.shape[2:], strict=True)]
        skip = skip[:, :, *(slice(start, start + u) for start, u in zip(starts, x.shape[2:], strict=True))]
        x = convs(torch.cat([skip, x], dim=1), f"up{level}")
    layer = params["logits"]
    return functional.conv3d(x, torch.tensor(layer["kernel"].transpose(4, 3, 0, 1, 2)), torch.tensor(layer["bias"]))


@TORCH
@pytest.mark.parametrize(("padding", "size"), [("valid", (44, 44, 48)), ("same", (5, 12, 17)), ("same", (8, 8, 8))])
def test_the_unet_equals_torch_s(padding, size):
    import torch

    model, volume = Tiny(padding=padding), _volume(2, *size, 2)
    variables = random_variables(model, volume)
    logits = jax.jit(model.apply)(variables, volume)
    theirs = torch.tensor(_first(volume), requires_grad=True)
    expected = _torch_unet(torch, variables["params"], model, theirs)
    g = _volume(*logits.shape, seed=1)
    gradient = jax.jit(jax.grad(lambda v: (model.apply(variables, v) * g).sum()))(volume)
    (expected_gradient,) = torch.autograd.grad(expected, theirs, torch.tensor(_first(g)))
    for ours, other in ((logits, expected.detach().numpy()), (gradient, expected_gradient.numpy())):
        close(_first(ours), other, rtol=1e-4, atol=1e-4 * np.abs(other).max())


def test_the_paper_s_features_have_90292738_parameters_in_volumes():
    """Of 3x3x3 and 2x2x2 kernels: three times and twice the weights of the 31,030,658 in images."""
    flat, deep = (
        jax.eval_shape(UNet(2, padding="same").init, jax.random.key(0), jnp.zeros((1, *(16,) * rank, 1)))["params"] for rank in (2, 3)
    )
    assert set(flat) == set(deep)
    for name, layer in deep.items():
        side = layer["kernel"].shape[0]
        assert layer["kernel"].shape == (side, *flat[name]["kernel"].shape), name
        assert side == flat[name]["kernel"].shape[0], name
    assert sum(leaf.size for leaf in jax.tree.leaves(deep)) == 90_292_738


@pytest.mark.parametrize("size", [(1, 1, 1), (3, 17, 10)])
def test_padded_convolutions_take_volumes_of_any_size(size):
    model = UNet(2, (2, 2, 2, 2), padding="same", norm="batch")
    volume = _volume(2, *size, 3)
    logits = jax.jit(model.apply)(random_variables(model, volume), volume)
    assert logits.shape == (2, *size, 2)
    assert np.all(np.isfinite(logits))


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("level", [0, 1])
def test_each_skip_is_the_encoders_map_and_reaches_the_logits(padding, level):
    check_the_unet_s_skip(Tiny(padding=padding), level, _volume(1, *((TINY,) * 3 if padding == "valid" else (5, 9, 6)), 1))


def test_turning_a_volume_turns_its_logits():
    model, volume, order = Tiny(padding="same"), _volume(1, 5, 8, 11, 2), (2, 0, 1)
    variables = random_variables(model, volume)

    def turn(leaf, first):
        return np.transpose(leaf, (*range(first), *(first + axis for axis in order), *range(first + 3, leaf.ndim)))

    turned = jax.tree.map(lambda leaf: turn(leaf, 0) if leaf.ndim == 5 else leaf, variables)
    logits = jax.jit(model.apply)(variables, volume)
    close(jax.jit(model.apply)(turned, turn(volume, 1)), turn(np.asarray(logits), 1), rtol=1e-4, atol=1e-5)


def test_a_part_of_a_volume_equals_the_whole_at_multiples_of_the_pooling():
    model, edge = Tiny(features=(2, 3, 3)), 2 * margin(2)
    volume = _volume(1, TINY, TINY + 4, TINY + 8, 1)
    variables = random_variables(model, volume)
    apply = jax.jit(model.apply)
    whole = apply(variables, volume)
    assert whole.shape[1:4] == (TINY - edge, TINY + 4 - edge, TINY + 8 - edge)
    part = apply(variables, volume[:, :, 4:, 8:])
    close(part, whole[:, :, 4:, 8:], rtol=1e-4, atol=1e-5)


def test_a_volume_of_an_illegal_size_is_named():
    with pytest.raises(InputError, match=r"got an image of 44 x 44 x 45 pixels; .* a side of 45 is illegal"):
        jax.eval_shape(Tiny().init, jax.random.key(0), jnp.zeros((1, 44, 44, 45, 1)))


@pytest.mark.parametrize("name", sorted(set(UPSAMPLERS) - {"transposed"}))
def test_upsamplers_for_images_are_refused(name):
    model = Tiny(padding="same", upsample=UPSAMPLERS[name])
    with pytest.raises(InputError, match=rf"upsample={UPSAMPLERS[name].__name__}, which is for images; required TransposedConv"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4, 8, 8, 1)))
    with pytest.raises(InputError, match="upsample=NearestConv"):
        jax.eval_shape(Tiny(upsample=partial(NearestConv)).init, jax.random.key(0), jnp.zeros((1, 44, 44, 44, 1)))


def test_a_volume_is_learned():
    """A bright ball in noise, by Adam: what every part must work for."""
    model = UNet(2, (4, 8), padding="same", norm="batch")
    grid = np.stack(np.meshgrid(*map(np.arange, (8, 12, 12)), indexing="ij"), -1)
    label = (np.linalg.norm(grid - [4, 5, 6], axis=-1) < 3.5).astype(np.int32)[None]
    volume = (label + 0.5 * np.random.default_rng(0).normal(size=label.shape)).astype(np.float32)[..., None]
    variables = jax.jit(model.init)(jax.random.key(0), volume)
    optimizer = optax.adam(0.01)

    @jax.jit
    def step(params, stats, state):
        def loss(params):
            logits, new = model.apply(
                {"params": params, "batch_stats": stats}, volume, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)}
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean(), (new["batch_stats"], logits)

        (_, (stats, logits)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), stats, state, (logits.argmax(-1) == label).mean()

    params, stats, state = variables["params"], variables["batch_stats"], optimizer.init(variables["params"])
    for _ in range(60):
        params, stats, state, right = step(params, stats, state)
    assert right > 0.97
