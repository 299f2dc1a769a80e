"""Laws of the simple approaches: equality with the same layers in torch, any encoder, any size, every parameter in use."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from op_laws import needs_torch
from random_variables import random_variables

from jaxseg import ops
from jaxseg.errors import InputError
from jaxseg.models.conv_only import ConvOnly
from jaxseg.models.heatmap import DirectHeatmap, PlainEncoder
from jaxseg.models.vgg import Stage

MODELS = {
    "coarse": DirectHeatmap(3, partial(PlainEncoder, (3, 4)), None),
    "nearest": DirectHeatmap(3, partial(PlainEncoder, (3, 4)), "nearest"),
    "bilinear": DirectHeatmap(3, partial(PlainEncoder, (3, 4))),
    "conv_only": ConvOnly(3, (3, 4)),
}


def _image(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@needs_torch
@pytest.mark.parametrize("side", [16, 21])
@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_torchs(name, side):
    import torch
    from torch.nn import functional

    image = _image(2, side, side + 3, 2)
    variables = random_variables(MODELS[name], image)
    params = {**variables["params"], **variables["params"].get("encoder", {})}

    def conv(x, layer):
        kernel = torch.from_numpy(params[layer]["kernel"].transpose(3, 2, 0, 1).copy())
        return functional.conv2d(x, kernel, torch.from_numpy(params[layer]["bias"]), padding=kernel.shape[-1] // 2)

    x = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
    for layer in ("conv0", "conv1"):
        x = functional.relu(conv(x, layer))
        x = x if name == "conv_only" else functional.max_pool2d(x, 2, ceil_mode=True)
    x = conv(x, "logits")
    if name in ("nearest", "bilinear"):
        x = functional.interpolate(x, (side, side + 3), mode=name)
    expected = x.numpy().transpose(0, 2, 3, 1)
    logits = jax.jit(MODELS[name].apply)(variables, image)
    assert logits.shape == expected.shape
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


@pytest.mark.parametrize(("shape", "coarse"), [((1, 16, 24, 1), (2, 3)), ((2, 17, 3, 4), (3, 1)), ((1, 1, 1, 1), (1, 1))])
def test_maps_have_the_stated_sizes_at_any_image_size(shape, coarse):
    for enlarge, size in {None: coarse, "nearest": shape[1:3], "bilinear": shape[1:3]}.items():
        logits, _ = jax.eval_shape(DirectHeatmap(5, enlarge=enlarge).init_with_output, jax.random.key(0), jnp.zeros(shape))
        assert logits.shape == (shape[0], *size, 5)
    logits, _ = jax.eval_shape(ConvOnly(5).init_with_output, jax.random.key(0), jnp.zeros(shape))
    assert logits.shape == (*shape[:3], 5)
    for dilated in (False, True):
        maps, variables = jax.eval_shape(PlainEncoder(dilated=dilated).init_with_output, jax.random.key(0), jnp.zeros(shape))
        strides = [1, 1, 1] if dilated else [2, 4, 8]
        assert [m.shape[1:3] for m in maps] == [(-(-shape[1] // s), -(-shape[2] // s)) for s in strides]
        assert jax.tree.map(jnp.shape, variables["params"]["conv2"]) == {"bias": (64,), "kernel": (3, 3, 32, 64)}


def test_parameter_counts():
    def count(model):
        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]))

    encoder = 9 * (1 * 16 + 16 * 32 + 32 * 64) + 16 + 32 + 64
    assert count(DirectHeatmap(2)) == encoder + 64 * 2 + 2
    assert count(ConvOnly(2)) == 9 * (1 * 32 + 5 * 32 * 32) + 6 * 32 + 32 * 2 + 2
    assert count(ConvOnly(2, norm="batch")) == count(ConvOnly(2)) + 6 * 32


def test_the_enlarged_map_is_the_coarse_one_enlarged():
    image = _image(1, 12, 17, 1)
    variables = random_variables(MODELS["coarse"], image)
    coarse = jax.jit(MODELS["coarse"].apply)(variables, image)
    for name in ("nearest", "bilinear"):
        np.testing.assert_allclose(jax.jit(MODELS[name].apply)(variables, image), ops.resize(coarse, (12, 17), name), rtol=1e-6, atol=1e-6)


class _Thirds(nn.Module):
    """An encoder of another kind, its last map a `Stage`."""

    dtype: object = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image, *, train=False):
        x = nn.Conv(2, (3, 3), strides=3, name="conv")(image)
        return [image, Stage(x, *ops.max_pool_with_indices(x))]


def test_any_encoder_serves_and_of_a_stage_the_pooled_map():
    image = _image(1, 24, 18, 1)
    model = DirectHeatmap(2, _Thirds, None)
    variables = random_variables(model, image)
    stage = _Thirds().apply({"params": variables["params"]["encoder"]}, image)[-1]
    head = variables["params"]["logits"]
    np.testing.assert_allclose(model.apply(variables, image), stage.pooled @ head["kernel"][0, 0] + head["bias"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", [None, "batch", "group"])
@pytest.mark.parametrize("model", ["heatmap", "dilated", "conv_only"])
def test_gradients_are_finite_and_reach_every_parameter_and_logits_are_float32(model, norm):
    encoder = partial(PlainEncoder, (8, 8), norm=norm, dilated=model == "dilated")
    model = ConvOnly(3, (8, 8), norm, dtype=jnp.bfloat16) if model == "conv_only" else DirectHeatmap(3, encoder, dtype=jnp.bfloat16)
    image = _image(2, 12, 16, 2)
    variables = random_variables(model, image)

    def loss(params):
        logits, state = model.apply({**variables, "params": params}, image, train=True, mutable=["batch_stats"])
        return (logits**2).mean(), (logits, state)

    gradient, (logits, state) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    assert logits.dtype == jnp.float32
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
        assert abs(leaf).max() > 0, path
    before = variables.get("batch_stats", {})
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, state.get("batch_stats", {}))
    assert all(jax.tree.leaves(changed))
    assert len(jax.tree.leaves(changed)) == (4 if norm == "batch" else 0)


@pytest.mark.parametrize(
    ("model", "shape", "words"),
    [
        (ConvOnly(2), (8, 8, 1), "ConvOnly: got an image of shape (8, 8, 1); required [N, H, W, C]"),
        (ConvOnly(2, ()), (1, 8, 8, 1), "ConvOnly: got norm=None, features=()"),
        (ConvOnly(2, (0, 2)), (1, 8, 8, 1), "at least 1 channel each"),
        (ConvOnly(2, norm="layer"), (1, 8, 8, 1), "required norm None, 'batch' or 'group'"),
        (ConvOnly(0), (1, 8, 8, 1), "num_classes=0"),
        (DirectHeatmap(2), (8, 8, 1), "DirectHeatmap: got an image of shape (8, 8, 1); required [N, H, W, C]"),
        (DirectHeatmap(2, enlarge="bicubic"), (1, 8, 8, 1), "required 'nearest', 'bilinear' or None"),
        (DirectHeatmap(0), (1, 8, 8, 1), "num_classes=0"),
        (DirectHeatmap(2, partial(PlainEncoder, ())), (1, 8, 8, 1), "PlainEncoder: got norm=None, features=()"),
        (DirectHeatmap(2, partial(PlainEncoder, norm="layer")), (1, 8, 8, 1), "required norm None, 'batch' or 'group'"),
    ],
)
def test_the_error_says_what_is_required(model, shape, words):
    with pytest.raises(InputError) as error:
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
    assert words in str(error.value)
