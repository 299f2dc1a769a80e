"""One conformance test for every upsampler: its contract alone, and inside a U-Net of either padding."""

import json
import os
import re
import subprocess
import sys
import typing
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from op_laws import spread
from random_variables import random_variables

from jaxseg import ops
from jaxseg.config import UpsampleName
from jaxseg.errors import InputError
from jaxseg.models import UNet
from jaxseg.upsample import UPSAMPLERS, BilinearFilter, MaxUnpool, OverlapTransposedConv, PixelShuffle, TransposedConv, center_crop

EVERY = pytest.mark.parametrize("name", UPSAMPLERS)

_CONV = {"conv/kernel", "conv/bias"}
PARAMETERS = {  # checkpoints hold these names
    "transposed": {"kernel", "bias"},
    "transposed_overlap": {"kernel", "bias"},
    "zero_insert": _CONV,
    "nearest": _CONV,
    "bilinear": _CONV,
    "bicubic": _CONV,
    "bilinear_filter": {"project/kernel", "project/bias", "kernel"},
    "pixel_shuffle": _CONV,
    "carafe": {f"{name}/{part}" for name in ("project", "compressor", "encoder") for part in ("kernel", "bias")},
    "max_unpool": {"project0/kernel", "project0/bias", "project/kernel", "project/bias"},
}


def _inputs(scale, h=3, w=4):
    """An image of 6 channels and the positions of an encoder whose maps have 5 and 4."""
    r = np.random.default_rng(0)
    x = r.normal(size=(2, h, w, 6)).astype(np.float32)
    sizes = [(h, w, 5), (2 * h, 2 * w, 4)][: scale.bit_length() - 1]
    return x, [r.integers(0, 4, (2, *size)).astype(np.int8) for size in sizes]


def _names(params):
    return set(flatten_dict(params, sep="/"))


def _all_reached(gradients):
    for path, leaf in flatten_dict(gradients, sep="/").items():
        assert np.all(np.isfinite(leaf)), path
        assert np.any(np.asarray(leaf) != 0), path


def test_the_command_line_knows_every_upsampler():
    assert list(typing.get_args(UpsampleName)) == list(UPSAMPLERS)


@EVERY
@pytest.mark.parametrize(("scale", "dtype"), [(2, None), (4, None), (2, jnp.bfloat16)])
def test_every_upsampler_keeps_the_contract(name, scale, dtype):
    x, indices = _inputs(scale)
    module = UPSAMPLERS[name](features=3, scale=scale, dtype=dtype)
    variables = random_variables(module, x, indices)
    assert set(variables) == {"params"}
    more = {"project1/kernel", "project1/bias"} if name == "max_unpool" and scale == 4 else set()
    assert _names(variables["params"]) == PARAMETERS[name] | more
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))

    @jax.jit
    def everything(variables, x, indices):
        y = module.apply(variables, x, indices)
        gradients = jax.grad(lambda v: (module.apply(v, x, indices).astype(jnp.float32) ** 2).sum())(variables)
        one_by_one = jax.vmap(lambda x, i: module.apply(variables, x[None], [index[None] for index in i])[0])(x, indices)
        each = jax.vmap(
            lambda x, i: jax.grad(lambda v: (module.apply(v, x[None], [a[None] for a in i]).astype(jnp.float32) ** 2).sum())(variables)
        )(x, indices)
        return y, gradients, one_by_one, each

    y, gradients, one_by_one, each = everything(variables, x, indices)
    assert y.shape == (2, 3 * scale, 4 * scale, 3)
    assert y.dtype == (dtype or jnp.float32)
    assert np.all(np.isfinite(y.astype(np.float32)))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradients))
    _all_reached(gradients["params"])
    tolerance = float(32 * jnp.finfo(y.dtype).eps)
    np.testing.assert_allclose(one_by_one.astype(np.float32), y.astype(np.float32), rtol=tolerance, atol=tolerance)
    for whole, parts in zip(jax.tree.leaves(gradients), jax.tree.leaves(each), strict=True):
        np.testing.assert_allclose(parts.sum(0), whole, rtol=tolerance * 100, atol=tolerance * float(abs(whole).max()) * 10)


def test_prediction_upsampling_begins_as_bilinear_interpolation():
    x, _ = _inputs(2)
    for scale in (2, 3, 4):
        module = BilinearFilter(features=6, scale=scale)
        variables = jax.jit(module.init)(jax.random.key(0), x)
        y = jax.jit(module.apply)(variables, x)
        np.testing.assert_allclose(y, ops.upsample_prediction(x, scale), rtol=1e-5, atol=1e-5)
        inside = (slice(None), slice(scale, -scale), slice(scale, -scale))
        if scale % 2 == 0:
            np.testing.assert_allclose(y[inside], ops.resize(x, y.shape[1:3], "bilinear")[inside], rtol=1e-5, atol=1e-5)


def test_pixel_shuffle_begins_without_a_checkerboard():
    x, _ = _inputs(2)
    y = np.asarray(jax.jit(PixelShuffle(features=3, scale=2).init_with_output)(jax.random.key(0), x)[0])
    np.testing.assert_array_equal(y, np.repeat(np.repeat(y[:, ::2, ::2], 2, 1), 2, 2))


def test_the_overlapping_transposed_convolution_keeps_the_place():
    """With bilinear kernels it is bilinear interpolation, not shifted by a pixel, at even and odd scales as the filter is."""
    x = np.random.default_rng(0).normal(size=(1, 5, 6, 1)).astype(np.float32)
    kernel = np.asarray(ops.bilinear_kernel(4))[..., None, None]
    y = OverlapTransposedConv(features=1, scale=4).apply({"params": {"kernel": kernel, "bias": np.zeros(1)}}, x)
    np.testing.assert_allclose(y, ops.upsample_prediction(x, 4), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "padding"), spread(list(UPSAMPLERS), ["valid", "same"]))
def test_every_upsampler_works_in_a_unet_under_jit_grad_and_vmap(name, padding):
    model = UNet(num_classes=2, features=(4, 6), padding=padding, upsample=UPSAMPLERS[name])
    image = np.random.default_rng(1).normal(size=(2, 1, *((20, 24) if padding == "valid" else (9, 14)), 1)).astype(np.float32)
    variables = random_variables(model, image[0])
    samplers = {path.split("/")[0] for path in _names(variables["params"]) if "sample" in path}
    assert samplers == {"up0_sample"}

    def loss(variables, image):
        logits = model.apply(variables, image)
        return (logits**2).mean(), logits

    @jax.jit
    def everything(variables, image):
        mapped_logits = jax.vmap(model.apply, (None, 0))(variables, image)
        (_, logits), gradients = jax.value_and_grad(loss, has_aux=True)(variables, image[:, 0])
        return logits, gradients, mapped_logits

    logits, gradients, mapped_logits = everything(variables, image)
    assert logits.shape == (2, *((4, 8) if padding == "valid" else (9, 14)), 2)
    assert logits.dtype == jnp.float32
    _all_reached(gradients["params"])
    np.testing.assert_allclose(mapped_logits[:, 0], logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [2, 3, 4, 5])
@pytest.mark.parametrize("name", [name for name in UPSAMPLERS if name != "max_unpool"])
def test_upsamplers_without_positions_take_any_scale(name, scale):
    module = UPSAMPLERS[name](features=3, scale=scale)
    y, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), jnp.zeros((1, 2, 3, 4)))
    assert y.shape == (1, 2 * scale, 3 * scale, 3)


def test_the_transposed_convolution_paints_a_pixel_into_its_own_cell():
    module = TransposedConv(features=2, scale=3)
    x = np.zeros((1, 3, 4, 2), np.float32)
    x[0, 1, 2, 1] = 5
    params = random_variables(module, x)["params"]
    y = np.array(jax.jit(module.apply)({"params": params}, x)) - params["bias"]
    np.testing.assert_allclose(y[0, 3:6, 6:9], 5 * params["kernel"][:, :, 1], rtol=1e-5, atol=1e-6)
    y[0, 3:6, 6:9] = 0
    assert not np.any(y)


def test_max_unpool_at_scale_4_undoes_two_poolings_coarse_to_fine():
    x = np.random.default_rng(0).normal(size=(1, 8, 12, 3)).astype(np.float32)
    middle, fine = ops.max_pool_with_indices(x)
    top, coarse = ops.max_pool_with_indices(middle)
    y = np.asarray(jax.jit(MaxUnpool(features=3, scale=4).apply)({}, top, [coarse, fine]))  # channels agree: nothing to learn
    assert np.count_nonzero(y) == top.size
    np.testing.assert_array_equal(y[y != 0], x[y != 0])


def test_max_unpool_crops_the_positions_about_the_centre():
    x, index = np.ones((1, 1, 2, 1), np.float32), np.zeros((1, 3, 4, 1), np.int8)
    index[0, 1, 1:3, 0] = [1, 2]
    y = MaxUnpool(features=1).apply({}, x, [index])
    np.testing.assert_array_equal(y[0, :, :, 0], [[0, 1, 0, 0], [0, 0, 1, 0]])


def test_center_crop_takes_the_middle():
    x = jnp.arange(7 * 8).reshape(1, 7, 8, 1)
    np.testing.assert_array_equal(center_crop(x, 3, 4), x[:, 2:5, 2:6])
    assert center_crop(x, 7, 8).shape == x.shape
    with pytest.raises(InputError, match=r"got 7 x 8 pixels; required at least 9 x 8"):
        center_crop(x, 9, 8)


def test_errors_say_what_was_got_and_what_to_do():
    x, indices = _inputs(2)
    key = jax.random.key(0)
    with pytest.raises(InputError, match=r"MaxUnpool\(scale=2\): got 0 stored.* required 1, .* Pass the indices"):
        jax.eval_shape(MaxUnpool(features=3).init, key, x)
    with pytest.raises(InputError, match=r"got 1 stored.* required 2"):
        jax.eval_shape(MaxUnpool(features=3, scale=4).init, key, x, indices)
    for scale in (-2, 0, 1, 3, 6):
        with pytest.raises(InputError, match=f"MaxUnpool: got scale {scale}; required a power of 2"):
            jax.eval_shape(MaxUnpool(features=3, scale=scale).init, key, x, indices)


def test_an_upsampler_may_be_a_partial():
    model = UNet(num_classes=2, features=(2, 3), padding="same", upsample=partial(PixelShuffle, dtype=jnp.float32))
    with pytest.raises(TypeError, match="not_a_field"):
        jax.eval_shape(
            UNet(2, (2, 3), "same", upsample=partial(PixelShuffle, not_a_field=1)).init, jax.random.key(0), jnp.zeros((1, 4, 4, 1))
        )
    logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, 5, 6, 1)))
    assert logits.shape == (1, 5, 6, 2)


def collectives_of_a_sharded_height(out: Path) -> None:
    """What the child process does: each upsampler, and a U-Net, with its gradients, the height over 8 devices."""
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(jax.devices()), ("height",))
    height, whole = NamedSharding(mesh, PartitionSpec(None, "height")), NamedSharding(mesh, PartitionSpec())
    result = {}

    def look(name, module, x, *rest):
        variables = random_variables(module, x, *rest)

        def loss(variables, x, *rest):
            y = module.apply(variables, x, *rest)
            return (y**2).mean(), y

        both = jax.value_and_grad(loss, (0, 1), has_aux=True)
        here = jax.device_put((variables, x, *rest), (whole, height, *[height] * len(rest)))
        compiled = jax.jit(both, out_shardings=((whole, height), (whole, height))).lower(*here).compile()
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), compiled(*here), jax.jit(both)(variables, x, *rest))
        result[name] = sorted(set(re.findall(r"\b(all-[a-z]+|collective-permute)\(", compiled.as_text())))

    x, indices = _inputs(2, h=16)
    for name, upsampler in UPSAMPLERS.items():
        look(name, upsampler(features=3), x, *([indices] if name == "max_unpool" else []))
    image = np.random.default_rng(0).normal(size=(1, 64, 16, 1)).astype(np.float32)
    look("unet", UNet(num_classes=2, features=(4, 6), padding="same"), image)
    look("unet with max unpooling", UNet(num_classes=2, features=(4, 6), padding="same", upsample=MaxUnpool), image)
    out.write_text(json.dumps(result))


def test_a_sharded_height_is_never_gathered(tmp_path):
    code = f"import sys, pathlib; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_upsample as t; "
    code += f"t.collectives_of_a_sharded_height(pathlib.Path({str(tmp_path / 'result.json')!r}))"
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["transposed"] == ["all-reduce"]  # of the weights' gradient
    assert not [name for name, collectives in found.items() if "all-gather" in collectives]
