"""Laws of the encoder U-Net: counts, sizes, every skip, all upsamplers, and equality with segmentation_models.pytorch."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_resnet
from flax.traverse_util import flatten_dict
from model_laws import assert_close, check_one_compilation, nchw, nhwc, package, state_dict
from op_laws import needs_torch, random_array
from random_variables import random_variables

from jaxseg.errors import InputError
from jaxseg.models.encoder_unet import ENCODERS, EncoderUNet
from jaxseg.upsample import UPSAMPLERS
from jaxseg.weights import smp as weights
from jaxseg.weights import torchvision
from jaxseg.weights.adapt import first_conv
from jaxseg.weights.table import from_torch, to_torch

Tiny = partial(EncoderUNet, num_classes=3, encoder="resnet18", width=2, decoder=(6, 5, 4, 3, 2))
LIKE_SMP = ("resnet18", "resnet34", "resnet50", "vgg16")


@pytest.mark.parametrize(
    ("encoder", "parameters", "keys"),
    [("resnet18", 14_328_209, 182), ("resnet34", 24_436_369, 278), ("resnet50", 32_521_105, 380), ("vgg16", 23_748_241, 100)],
)
def test_the_parameters_and_keys_of_segmentation_models_pytorch(encoder, parameters, keys):
    model = EncoderUNet(num_classes=1, encoder=encoder)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == parameters
    table = weights.layout(model)
    assert sorted(path for path, _ in table.values()) == sorted(flatten_dict(variables))
    assert len(table) + sum(key.endswith("running_mean") for key in table) == keys  # torch counts the steps of each batch norm


# Sizes and upsamplers.


@pytest.mark.parametrize(("encoder", "size"), [*((name, (33, 67)) for name in ENCODERS), ("vgg16", (350, 525)), ("resnet18", (350, 525))])
def test_any_size_comes_back(encoder, size):
    model = EncoderUNet(num_classes=3, encoder=encoder)
    logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, *size, 1)))
    assert (logits.shape, logits.dtype) == ((2, *size, 3), jnp.float32)


@pytest.mark.parametrize(
    ("encoder", "upsample"), [*(("vgg16", name) for name in UPSAMPLERS), ("resnet18", "transposed"), ("resnet18", "max_unpool")]
)
def test_any_upsampler_fits_the_skips(encoder, upsample):
    """Floor pooling of 67 pixels leaves a skip wider than twice the map below it, a stride one narrower."""
    model = Tiny(encoder=encoder, upsample=UPSAMPLERS[upsample], dtype=jnp.bfloat16)
    image = jnp.zeros((1, 45, 67, 1))
    if (encoder, upsample) == ("resnet18", "max_unpool"):
        with pytest.raises(InputError, match="got 0 stored pooling positions"):
            jax.eval_shape(model.init, jax.random.key(0), image)
    else:
        logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
        assert (logits.shape, logits.dtype) == ((1, 45, 67, 3), jnp.float32)
        assert variables["params"]["up3_conv1"]["kernel"].shape == (3, 3, 5 + (16 if encoder == "vgg16" else 4), 5)


@pytest.mark.parametrize("size", [(1, 1), (2, 31)])
def test_resnets_take_the_smallest_images(size):
    image = random_array(1, *size, 1)
    assert jax.jit(Tiny().apply)(random_variables(Tiny(), image), image).shape == (1, *size, 3)


# What reaches what.


@pytest.mark.parametrize("encoder", ["vgg16", "resnet18"])
def test_each_skip_comes_second_and_reaches_the_logits(encoder):
    model = Tiny(encoder=encoder)
    image = random_array(1, 45, 64, 2)
    variables = random_variables(model, image)
    channels = (4, 8, 16, 16) if encoder == "vgg16" else (2, 2, 4, 8)  # of the skips, finest first

    @jax.jit
    def apply(factors):
        """Logits with the skip of each level multiplied by its factor."""

        def scale(call, args, kwargs, context):
            name = context.module.name or ""
            if name.startswith("up") and name.endswith("conv1") and name != "up0_conv1":
                level = int(name[2]) - 1
                skip = args[0][..., -channels[level] :]
                args = (args[0].at[..., -channels[level] :].set(factors[level] * skip),)
            return call(*args, **kwargs)

        with nn.intercept_methods(scale):
            return model.apply(variables, image)

    logits = np.asarray(jax.jit(model.apply)(variables, image))
    np.testing.assert_allclose(apply(jnp.ones(4)), logits, rtol=1e-4, atol=1e-5)
    for level in range(4):
        without = np.asarray(apply(jnp.ones(4).at[level].set(0)))
        assert np.max(np.abs(logits - without)) > 1e-3 * np.max(np.abs(logits)), level


def test_max_unpooling_puts_every_level_back_to_the_encoders_positions():
    model = Tiny(encoder="vgg16", upsample=UPSAMPLERS["max_unpool"], decoder=(16, 16, 8, 4, 2))  # the pooled maps' channels: no projection
    image = random_array(1, 45, 67, 1)
    apply = jax.jit(partial(model.apply, capture_intermediates=True, mutable=["intermediates"]))
    layers = apply(random_variables(model, image), image)[1]["intermediates"]
    for level, convs in enumerate((2, 2, 3, 3, 3)):
        sparse = layers[f"up{level}_sample"]["__call__"][0]
        h, w = sparse.shape[1:3]
        encoder = nn.relu(layers["encoder"][f"conv{level + 1}_{convs}"]["__call__"][0])[:, :h, :w]
        windows, sparse = (np.asarray(a).reshape(1, h // 2, 2, w // 2, 2, -1) for a in (encoder, sparse))
        assert np.all((sparse == 0) | (windows == windows.max((2, 4), keepdims=True)))  # what is not zero stands at a maximum
        assert np.any((sparse != 0) & (windows > 0))


def test_every_parameter_is_reached_and_the_gradients_are_finite():
    """With max unpooling, the positions' way too; test_resnet.py has the resnets."""
    model = Tiny(encoder="vgg16", upsample=UPSAMPLERS["max_unpool"])
    image = random_array(2, 32, 35, 2)
    variables = random_variables(model, image)

    @jax.jit
    @jax.grad
    def gradients(params):
        logits, _ = model.apply({**variables, "params": params}, image, train=True, mutable=["batch_stats"])
        return (logits**2).mean()

    for path, leaf in flatten_dict(gradients(variables["params"]), sep="/").items():
        assert np.all(np.isfinite(leaf)), path
        assert np.any(np.asarray(leaf) != 0), path


def test_jit_compiles_once():
    check_one_compilation(Tiny(), random_array(1, 24, 24, 1))


@pytest.mark.parametrize(
    ("model", "shape", "words"),
    [
        (Tiny(), (32, 32, 3), "got an image of shape (32, 32, 3); required [N, H, W, C]"),
        (Tiny(encoder="resnet19"), (1, 32, 32, 3), "required one of resnet18, resnet34, resnet50, vgg16"),
        (Tiny(decoder=(8, 8)), (1, 32, 32, 3), "5 numbers of channels"),
        (Tiny(num_classes=0), (1, 32, 32, 3), "num_classes=0"),
        (Tiny(width=0), (1, 32, 32, 3), "width=0"),
        (Tiny(encoder="vgg16"), (1, 64, 31, 3), "got an image of 64 x 31 pixels; the nearest legal side is 32"),
        (Tiny(encoder="efficientnet_lite0"), (1, 64, 64, 3), "got width=2; efficientnet_lite0 has but one width"),
    ],
)
def test_errors_name_what_is_required(model, shape, words):
    with pytest.raises(InputError) as error:
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
    assert words in str(error.value)


# A classifier's weights.


@pytest.mark.parametrize("encoder", ["vgg16", "resnet18"])
def test_a_classifier_becomes_the_encoder_and_the_rest_stays(encoder):
    model = Tiny(encoder=encoder)
    variables, other = (random_variables(model, jnp.zeros((1, 32, 32, 3)), seed=seed) for seed in (0, 1))
    table = torchvision.classifier_layout(model)
    state = {**to_torch(table, other), "fc.bias": np.zeros(5), "classifier.0.bias": np.zeros(5)}
    mixed = from_torch(table, state, variables, ignored=torchvision.CLASSIFIER_IGNORED, whole=False)
    new, old, theirs = (flatten_dict(tree) for tree in (mixed, variables, other))
    for path in old:
        np.testing.assert_array_equal(new[path], (theirs if path[1] == "encoder" else old)[path])


# Equality with torch.


def torch_unet(state, image):
    """segmentation_models_pytorch.Unet, written down; `state` is used up."""
    import torch
    from torch.nn import functional

    def conv_norm(x, key):
        return torch_resnet.norm(state, torch_resnet.conv(state, x, f"{key}.0"), f"{key}.1").relu()

    if "encoder.conv1.weight" in state:
        *skips, x = torch_resnet.resnet(state, image, "encoder.")
    else:
        x, skips, layer = image, [], 0
        for convs in (2, 2, 3, 3, 3):
            for _ in range(convs):
                x = torch_resnet.conv(state, x, f"encoder.features.{layer}").relu()
                layer += 2
            skips.append(x)
            x = functional.max_pool2d(x, 2)
            layer += 1
        skips = skips[1:]
        x = conv_norm(conv_norm(x, "decoder.center.0"), "decoder.center.1")
    for block, skip in enumerate([*reversed(skips), None]):
        x = functional.interpolate(x, size=(image if skip is None else skip).shape[2:], mode="nearest")
        x = x if skip is None else torch.cat([x, skip], dim=1)
        x = conv_norm(conv_norm(x, f"decoder.blocks.{block}.conv1"), f"decoder.blocks.{block}.conv2")
    return torch_resnet.conv(state, x, "segmentation_head.0")


@needs_torch
@pytest.mark.parametrize(
    ("encoder", "size"), [*((name, (67, 101)) for name in LIKE_SMP), ("resnet18", (64, 96)), ("vgg16", (64, 96)), ("resnet50", (64, 96))]
)
def test_logits_equal_those_of_segmentation_models_pytorch(encoder, size):
    full = (encoder, size) in (("resnet34", (67, 101)), ("vgg16", (67, 101)))
    model = EncoderUNet(num_classes=3, encoder=encoder) if full else Tiny(encoder=encoder, width=4)
    image = random_array(1, *size, 3)
    variables = random_variables(model, image)
    theirs = state_dict(weights.layout(model), variables)
    assert_close(np.asarray(jax.jit(model.apply)(variables, image)), nhwc(torch_unet(theirs, nchw(image))))
    assert not theirs


@needs_torch
@pytest.mark.parametrize("size", [(67, 101), (64, 96)])
@pytest.mark.parametrize("encoder", LIKE_SMP)
def test_the_package_has_the_same_keys_and_logits(encoder, size):
    smp = package("segmentation_models_pytorch")
    model = EncoderUNet(num_classes=3, encoder=encoder)
    image = random_array(1, *size, 3)
    variables = random_variables(model, image)
    theirs = smp.Unet(encoder, encoder_weights=None, classes=3)
    theirs.load_state_dict(state_dict(weights.layout(model), variables))
    assert_close(np.asarray(jax.jit(model.apply)(variables, image)), nhwc(theirs.eval()(nchw(image))))


@needs_torch
@pytest.mark.parametrize("name", LIKE_SMP)
def test_the_packages_classifiers_have_the_keys_of_the_encoder(name):
    classifier = getattr(package("torchvision").models, name)(weights=None)
    keys = {key for key in classifier.state_dict() if not key.endswith("num_batches_tracked")}
    table = torchvision.classifier_layout(EncoderUNet(num_classes=2, encoder=name))
    assert table.keys() <= keys <= table.keys() | set(torchvision.CLASSIFIER_IGNORED)


@needs_torch
@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_the_package_has_the_same_rule_for_other_channels(channels):
    package("segmentation_models_pytorch")
    import torch
    from segmentation_models_pytorch.encoders._utils import patch_first_conv

    kernel = random_array(7, 7, 3, 4)
    layer = torch.nn.Conv2d(3, 4, 7, bias=False)
    layer.weight.data = torch.tensor(kernel.transpose(3, 2, 0, 1).copy())
    patch_first_conv(layer, channels)
    np.testing.assert_allclose(first_conv(kernel, channels), layer.weight.detach().numpy().transpose(2, 3, 1, 0), rtol=1e-6)
