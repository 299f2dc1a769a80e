"""Laws of the U-Net: the paper's counts and sizes, every skip connection, tiles, both paddings, and equality with torch."""

import importlib.util
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from model_laws import check_one_compilation, check_the_unet_s_skip
from random_variables import random_variables

from jaxseg.errors import InputError
from jaxseg.models import UNet
from jaxseg.models.unet import input_size, legal_sizes, margin, output_size
from jaxseg.upsample import MaxUnpool, center_crop

Tiny = partial(UNet, num_classes=3, features=(3, 4, 5))
TINY = 44  # its smallest legal side that leaves 4 pixels


def _image(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _with_layers(model, variables, image, **kwargs):
    """Logits, and the output of every layer by name."""

    @jax.jit
    def apply(variables, image):
        logits, state = model.apply(variables, image, capture_intermediates=True, mutable=["intermediates", "batch_stats"], **kwargs)
        return logits, {name: layer["__call__"][0] for name, layer in state["intermediates"].items() if name != "__call__"}

    return apply(variables, image)


# The paper's numbers.


def test_the_paper_has_31030658_parameters():
    variables = jax.eval_shape(UNet(num_classes=2).init, jax.random.key(0), jnp.zeros((1, 572, 572, 1)))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 31_030_658
    assert len(variables["params"]) == 23
    names = {f"{side}{level}_conv{i}" for level in range(5) for side in ("down", "up") for i in (1, 2)} - {"up4_conv1", "up4_conv2"}
    assert set(variables["params"]) == names | {f"up{level}_sample" for level in range(4)} | {"logits"}  # checkpoints hold these names


def test_the_paper_chain_of_sizes():
    def layers(image):
        variables = UNet(num_classes=2).init(jax.random.key(0), image)
        logits, state = UNet(num_classes=2).apply(variables, image, capture_intermediates=True, mutable=["intermediates"])
        return logits, {name: layer["__call__"][0] for name, layer in state["intermediates"].items() if name != "__call__"}

    logits, shapes = jax.eval_shape(layers, jnp.zeros((1, 572, 572, 1)))
    assert logits.shape == (1, 388, 388, 2)
    expected = {"down0_conv1": (570, 64), "down0_conv2": (568, 64), "down1_conv1": (282, 128), "down1_conv2": (280, 128)}
    expected |= {"down2_conv2": (136, 256), "down3_conv2": (64, 512), "down4_conv1": (30, 1024), "down4_conv2": (28, 1024)}
    expected |= {"up3_sample": (56, 512), "up3_conv1": (54, 512), "up3_conv2": (52, 512), "up2_sample": (104, 256), "up2_conv2": (100, 256)}
    expected |= {"up1_sample": (200, 128), "up1_conv2": (196, 128), "up0_sample": (392, 64), "up0_conv2": (388, 64), "logits": (388, 2)}
    for name, (side, channels) in expected.items():
        assert shapes[name].shape == (1, side, side, channels), name


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_legal_sizes_of_any_depth(depth):
    legal = {side: output for side in range(1, 999) if (output := output_size(side, depth))}
    for side in range(1, 300):
        before, after = [s for s in legal if s <= side], [s for s in legal if s >= side]
        assert legal_sizes(side, depth) == (before[-1] if before else None, after[0])
        assert input_size(side, depth) == next(s for s, output in legal.items() if output >= side)


def test_legal_sizes_are_12_mod_16_from_188_and_lose_184():
    for side in range(1, 800):
        legal = side >= 188 and side % 16 == 12
        assert output_size(side) == (side - 184 if legal else None), side
        if side >= 188:
            lower, upper = legal_sizes(side)
            assert lower <= side <= upper
            assert lower % 16 == upper % 16 == 12
            assert upper - lower == (0 if legal else 16)
        else:
            assert legal_sizes(side) == (None, 188)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_logits_have_the_stated_size_at_every_legal_size(depth):
    model = UNet(num_classes=2, features=(2,) * (depth + 1))
    legal = [side for side in range(1, 110) if output_size(side, depth)][-12:]
    assert len(legal) > 1
    for side in legal:
        image = jnp.zeros((1, side, legal[-1], 1))
        logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
        assert logits.shape == (1, side - 2 * margin(depth), legal[-1] - 2 * margin(depth), 2)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 512, 512, 1), "got an image of 512 x 512 pixels; with unpadded convolutions and 4 poolings a side of 512 is illegal"),
        ((1, 512, 512, 1), "nearest legal sizes are 508 and 524. Pad the image by reflection or crop it, or use padding='same'"),
        ((1, 572, 696, 1), "a side of 696 is illegal. The nearest legal sizes are 684 and 700"),
        ((1, 570, 572, 1), "a side of 570 is illegal. The nearest legal sizes are 556 and 572"),
        ((1, 100, 188, 1), "a side of 100 is illegal. The nearest legal sizes are 188 (the smallest)"),
        ((572, 572, 1), "got an image of shape (572, 572, 1); required [N, H, W, C] or [N, D, H, W, C]. Add the missing axes"),
    ],
)
def test_the_error_for_an_illegal_size_names_the_nearest_legal_ones(shape, words):
    with pytest.raises(InputError) as error:
        jax.eval_shape(UNet(num_classes=2).init, jax.random.key(0), jnp.zeros(shape))
    assert words in str(error.value)


@pytest.mark.parametrize("wrong", [{"padding": "VALID"}, {"norm": "layer"}, {"features": (8,)}])
def test_the_error_for_a_wrong_field_names_the_right_ones(wrong):
    with pytest.raises(InputError, match=r"required padding 'valid' or 'same', norm None, 'batch' or 'group', and at least 2 levels"):
        jax.eval_shape(Tiny(**wrong).init, jax.random.key(0), jnp.zeros((1, TINY, TINY, 1)))


# Skip connections.


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("level", [0, 1])
def test_each_skip_is_the_encoders_map_and_reaches_the_logits(padding, level):
    check_the_unet_s_skip(Tiny(padding=padding), level, _image(1, *((TINY, TINY) if padding == "valid" else (13, 18)), 2))


def test_every_parameter_is_reached_and_the_gradients_are_finite():
    model = Tiny()
    image = _image(2, TINY, TINY, 1)
    variables = random_variables(model, image)
    gradients = jax.jit(jax.grad(lambda v: (model.apply(v, image) ** 2).mean()))(variables)
    for path, leaf in flatten_dict(gradients["params"], sep="/").items():
        assert np.all(np.isfinite(leaf)), path
        assert np.any(np.asarray(leaf) != 0), path
    for level, width in enumerate(model.features[:-1]):  # [skip, up]: both halves of the decoder's first kernel
        kernel = np.asarray(gradients["params"][f"up{level}_conv1"]["kernel"])
        assert np.any(kernel[:, :, :width] != 0)
        assert np.any(kernel[:, :, width:] != 0)


class OtherPositions(MaxUnpool):
    """Max unpooling that mirrors every stored position in its window."""

    def __call__(self, x, indices=()):
        return super().__call__(x, [3 - index for index in indices])


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_max_unpooling_puts_every_level_back_to_the_encoders_positions(padding):
    image = _image(1, *((TINY, TINY) if padding == "valid" else (13, 18)), 1)
    model = Tiny(padding=padding, upsample=MaxUnpool)
    variables = random_variables(model, image)
    logits, layers = _with_layers(model, variables, image)
    for level in (0, 1):
        sparse = layers[f"up{level}_sample"]
        encoder = nn.relu(layers[f"down{level}_conv2"])
        if padding == "valid":
            encoder = center_crop(encoder, *sparse.shape[1:3])
        h, w = (side // 2 * 2 for side in encoder.shape[1:3])
        windows, sparse = (np.asarray(a)[:, :h, :w].reshape(1, h // 2, 2, w // 2, 2, -1) for a in (encoder, sparse))
        largest = windows.max((2, 4), keepdims=True)
        assert np.all((sparse == 0) | (windows == largest))  # what is not zero stands at a maximum of the encoder's window
        assert np.any(sparse != 0)
    other = jax.jit(Tiny(padding=padding, upsample=OtherPositions).apply)(variables, image)
    assert np.max(np.abs(np.asarray(other) - logits)) > 1e-3


# Sizes, tiles and the two paddings.


@pytest.mark.parametrize("size", [(1, 1), (17, 31), (33, 48)])
def test_padded_convolutions_take_any_size(size):
    model = UNet(num_classes=2, features=(2, 2, 2, 2, 2), padding="same")
    image = _image(2, *size, 3)
    logits = jax.jit(model.apply)(random_variables(model, image), image)
    assert logits.shape == (2, *size, 2)
    assert np.all(np.isfinite(logits))


def test_a_tile_equals_the_whole_at_multiples_of_the_pooling():
    model = Tiny()
    tile, step, edge = TINY, 4, 2 * margin(2)
    image = _image(1, tile + 4 * step, tile + 4 * step, 1)
    variables = random_variables(model, image)
    apply = jax.jit(model.apply)
    whole = np.asarray(apply(variables, image))
    assert whole.shape[1] == tile + 4 * step - edge
    for top, left in [(0, 0), (step, 0), (2 * step, 3 * step), (4 * step, 4 * step)]:
        part = apply(variables, image[:, top : top + tile, left : left + tile])
        expected = whole[:, top : top + tile - edge, left : left + tile - edge]
        np.testing.assert_allclose(part, expected, rtol=1e-5, atol=1e-6)
    off = apply(variables, image[:, 1 : 1 + tile, :tile])  # the poolings' grid is another
    assert np.max(np.abs(off - whole[:, 1 : 1 + tile - edge, : tile - edge])) > 1e-3


@pytest.mark.parametrize("depth", [1, 2])
def test_padded_and_unpadded_agree_where_the_border_is_out_of_sight(depth):
    features = (3, 4, 5)[: depth + 1]
    side, first, m = legal_sizes(30, depth)[1], 2**depth + 2, margin(depth)
    # The unpadded network's poolings start 2 pixels in at every level; with first = 2 mod 2^depth both pool the same windows.
    image = _image(1, side + 2 * first + 1, side + 2 * first + 3, 1)  # odd sides: every pooling has half-empty windows at the far edges
    unpadded, padded = (UNet(num_classes=2, features=features, padding=padding) for padding in ("valid", "same"))
    variables = random_variables(padded, image)
    inner = jax.jit(unpadded.apply)(variables, image[:, first : first + side, first : first + side])
    outer = jax.jit(padded.apply)(variables, image)
    assert outer.shape[:3] == image.shape[:3]
    outer = outer[:, first + m : first + side - m, first + m : first + side - m]
    np.testing.assert_allclose(inner, outer, rtol=1e-4, atol=1e-5)


# Normalisation, dropout, types.


@pytest.mark.parametrize("norm", [None, "batch", "group"])
def test_every_norm_in_training_and_at_inference(norm):
    model = Tiny(norm=norm, padding="same", features=(8, 16), dropout=0.0)
    image = _image(3, 8, 10, 1)
    variables = random_variables(model, image)
    assert ("batch_stats" in variables) == (norm == "batch")
    assert ("bias" in variables["params"]["down0_conv1"]) == (norm is None)  # a norm subtracts it again

    @jax.jit
    def both(variables, image):
        logits, state = model.apply(variables, image, train=True, mutable=["batch_stats"])
        return model.apply(variables, image), model.apply(variables, image[:1]), model.apply(variables, image[::-1]), logits, state

    logits, alone, reversed_logits, train_logits, state = both(variables, image)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    close(alone, logits[:1])  # an image's logits depend on no other image
    close(reversed_logits, logits[::-1])
    assert np.all(np.isfinite(train_logits))
    if norm == "batch":
        assert np.max(np.abs(train_logits - logits)) > 1e-2
        first = np.asarray(_with_layers(model, variables, image)[1]["down0_conv1"])
        before, after = (stats["batch_stats"]["down0_norm1"] for stats in (variables, state))
        close(after["mean"], 0.9 * before["mean"] + 0.1 * first.mean((0, 1, 2)))
        close(after["var"], 0.9 * before["var"] + 0.1 * first.var((0, 1, 2)))
    else:
        close(train_logits, logits)


def test_bfloat16_computes_in_bfloat16_and_returns_float32_logits():
    image = _image(1, 8, 8, 1)
    model = Tiny(padding="same", norm="batch", dtype=jnp.bfloat16)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    variables = random_variables(model, image)
    logits, layers = _with_layers(model, variables, image)
    assert logits.dtype == jnp.float32
    assert {layer.dtype for name, layer in layers.items() if not name.endswith("norm1")} == {jnp.dtype("bfloat16")}
    expected = jax.jit(Tiny(padding="same", norm="batch").apply)(variables, image)
    np.testing.assert_allclose(logits, expected, atol=0.1 * float(np.abs(expected).max()))


def test_dropout_is_for_training_and_the_two_coarsest_levels_only():
    image = _image(1, 24, 24, 1)
    model = UNet(num_classes=2, features=(8, 8, 8, 8), padding="same", dropout=0.25)
    variables = random_variables(model, image)
    eval_logits, at_eval = _with_layers(model, variables, image)

    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)

    @jax.jit
    def train(key):
        return _with_layers(model, variables, image, train=True, rngs={"dropout": key})

    train_logits, at_train = train(jax.random.key(1))
    assert {name for name in at_train if "dropout" in name} == {"down2_dropout", "down3_dropout"}
    for name in ("down0_conv2", "down1_conv2", "down2_conv1", "down2_conv2"):
        close(at_eval[name], at_train[name])
    active = np.asarray(nn.relu(at_train["down2_conv2"]))
    dropped = np.asarray(at_train["down2_dropout"])
    kept = dropped[active > 0] > 0
    assert 0.15 < 1 - kept.mean() < 0.35
    np.testing.assert_allclose(dropped[dropped > 0], active[dropped > 0] / 0.75, rtol=1e-5)
    close(at_eval["down2_dropout"], nn.relu(at_eval["down2_conv2"]))
    assert np.max(np.abs(train_logits - eval_logits)) > 1e-3
    again, _ = train(jax.random.key(1))
    np.testing.assert_array_equal(again, train_logits)
    assert np.max(np.abs(train(jax.random.key(2))[0] - train_logits)) > 1e-3


def test_jit_compiles_once():
    check_one_compilation(UNet(num_classes=2, features=(2, 2), padding="same"), _image(1, 6, 6, 1))


def test_initialisation_is_he_normal_with_zero_biases():
    image = jnp.zeros((1, 8, 8, 16))
    model = UNet(num_classes=4, features=(64, 128), padding="same")
    params = jax.jit(model.init)(jax.random.key(0, impl="rbg"), image)["params"]
    for path, leaf in flatten_dict(params, sep="/").items():
        if path.endswith("bias"):
            assert not np.any(leaf), path
        else:
            h, w, i, _ = leaf.shape
            nodes = i if "sample" in path else h * w * i  # a pixel of the up-convolution sees one input pixel
            np.testing.assert_allclose(np.std(leaf), np.sqrt(2 / nodes), rtol=0.15 if path.startswith("logits") else 0.03, err_msg=path)


# Equality with torch.


def _torch_unet(torch, params, features, image):
    """The paper's U-Net on torch's own layers, [N, C, H, W]."""
    functional, depth = torch.nn.functional, len(features) - 1

    def convs(x, name):
        for i in (1, 2):
            layer = params[f"{name}_conv{i}"]
            x = functional.conv2d(x, torch.tensor(layer["kernel"].transpose(3, 2, 0, 1)), torch.tensor(layer["bias"])).relu()
        return x

    x, skips = image, []
    for level in range(depth):
        x = convs(x, f"down{level}")
        skips.append(x)
        x = functional.max_pool2d(x, 2)
    x = convs(x, f"down{depth}")
    for level in reversed(range(depth)):
        layer = params[f"up{level}_sample"]
        x = functional.conv_transpose2d(x, torch.tensor(layer["kernel"].transpose(2, 3, 0, 1)), torch.tensor(layer["bias"]), stride=2)
        top, left = ((skip - up) // 2 for skip, up in zip(skips[level].shape[2:], x.shape[2:], strict=True))
        skip = skips[level][:, :, top : top + x.shape[2], left : left + x.shape[3]]
        x = convs(torch.cat([skip, x], dim=1), f"up{level}")
    layer = params["logits"]
    return functional.conv2d(x, torch.tensor(layer["kernel"].transpose(3, 2, 0, 1)), torch.tensor(layer["bias"]))


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed (pip install -e .[parity]): no parity test")
@pytest.mark.parametrize("size", [(188, 188), (204, 220)])
def test_logits_equal_those_of_torch(size):
    import torch

    model = UNet(num_classes=2, features=(4, 6, 8, 10, 12))
    image = _image(1, *size, 3)
    variables = random_variables(model, image)
    logits = np.asarray(jax.jit(model.apply)(variables, image))
    with torch.no_grad():
        expected = (
            _torch_unet(torch, variables["params"], model.features, torch.tensor(image).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
        )
    assert logits.shape == expected.shape
    assert np.max(np.abs(logits - expected)) <= 1e-4 * np.max(np.abs(expected))


@pytest.mark.parametrize(
    "field", [{"features": (0, 8)}, {"features": (8, 100_000)}, {"dropout": 1.0}, {"dropout": -0.1}, {"num_classes": 0}]
)
def test_numbers_out_of_range_are_refused(field):
    model = UNet(**{"num_classes": 2, "features": (4, 8), "padding": "same", **field})
    with pytest.raises(InputError, match=next(iter(field))):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
