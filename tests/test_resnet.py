"""Laws of the ResNet and of the FCN on it: table 1's counts and sizes, every head and block, and equality with torchvision."""

from functools import partial

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
from jaxseg.models.fcn_resnet import FCNResNet
from jaxseg.models.resnet import RESNETS, ResNet
from jaxseg.weights import torchvision as weights

DILATED = (False, True, True)
Tiny = partial(ResNet, blocks=(1, 2, 2, 2), width=4)
TinyFCN = partial(FCNResNet, num_classes=3, encoder="resnet18", width=4, dropout=0.0)


def count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


# The papers' numbers.


@pytest.mark.parametrize(
    ("name", "parameters"), [("resnet18", 11_176_512), ("resnet34", 21_284_672), ("resnet50", 23_508_032), ("resnet101", 42_500_160)]
)
def test_the_parameters_of_table_1_without_the_classifier(name, parameters):
    variables = jax.eval_shape(RESNETS[name]().init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    assert count(variables) == parameters


@pytest.mark.parametrize(
    ("encoder", "auxiliary", "parameters", "keys"),
    [("resnet50", False, 32_957_013, 0), ("resnet50", True, 35_322_218, 334), ("resnet101", False, 51_949_141, 0)],
)
def test_the_parameters_and_keys_of_torchvisions_fcn(encoder, auxiliary, parameters, keys):
    model = FCNResNet(num_classes=21, encoder=encoder, auxiliary=auxiliary)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    assert count(variables) == parameters
    table = weights.layout(model)
    assert sorted(path for path, _ in table.values()) == sorted(flatten_dict(variables))
    tracked = sum(key.endswith("running_mean") for key in table)  # torch counts the steps of each, num_batches_tracked
    assert len(table) + tracked == keys or not keys


@pytest.mark.parametrize("dilate", [(False, False, False), DILATED])
@pytest.mark.parametrize("size", [(224, 224), (65, 97), (1, 2), (33, 30)])
def test_each_map_is_half_the_one_before_rounded_up_until_dilation_takes_over(size, dilate):
    model = Tiny(dilate=dilate)
    maps, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, *size, 3)))
    steps = (1, 2, 3, 4 - dilate[1], 5 - 2 * dilate[1])
    expected = [(2, *(-(-side // 2**step) for side in size), width) for step, width in zip(steps, (4, 16, 32, 64, 128), strict=True)]
    assert [m.shape for m in maps] == expected


# What reaches what.


@pytest.mark.parametrize("bottleneck", [False, True])
def test_every_parameter_of_every_block_is_reached(bottleneck):
    model = Tiny(bottleneck=bottleneck, dilate=DILATED)
    image = random_array(2, 33, 34, 2)
    gradients = jax.jit(jax.grad(lambda v: (model.apply(v, image)[-1] ** 2).mean()))(random_variables(model, image))
    for path, leaf in flatten_dict(gradients["params"], sep="/").items():
        assert np.all(np.isfinite(leaf)), path
        assert np.any(np.asarray(leaf) != 0), path


def test_both_heads_reach_their_logits_and_train_the_encoder():
    model = TinyFCN(dropout=0.1)
    image = random_array(2, 33, 40, 2)
    variables = random_variables(model, image)

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        variables_, rngs = {**variables, "params": params}, {"dropout": jax.random.key(0)}
        (logits, auxiliary), _ = model.apply(variables_, image, train=True, mutable=["batch_stats"], rngs=rngs)
        return (logits**2).mean() + (auxiliary**2).mean(), (logits, auxiliary)

    (_, (logits, auxiliary)), gradients = loss(variables["params"])
    for path, leaf in flatten_dict(gradients, sep="/").items():
        assert np.all(np.isfinite(leaf)), path
        assert np.any(np.asarray(leaf) != 0), path
    assert logits.shape == auxiliary.shape == (2, 33, 40, 3)
    assert logits.dtype == auxiliary.dtype == jnp.float32
    (_, (same, other)), _ = loss({**variables["params"], "auxiliary_conv": {"kernel": -variables["params"]["auxiliary_conv"]["kernel"]}})
    np.testing.assert_array_equal(same, logits)
    assert np.max(np.abs(other - auxiliary)) > 1e-2


def test_without_the_auxiliary_head_the_logits_are_the_same():
    model = TinyFCN()
    image = random_array(1, 33, 40, 2)
    variables = random_variables(model, image)
    logits = jax.jit(model.apply)(variables, image)
    assert logits.shape == (1, 33, 40, 3)
    plain = {kind: {name: leaf for name, leaf in tree.items() if not name.startswith("auxiliary")} for kind, tree in variables.items()}
    np.testing.assert_array_equal(jax.jit(model.clone(auxiliary=False).apply)(plain, image), logits)


def test_jit_compiles_once():
    check_one_compilation(TinyFCN(), random_array(1, 24, 24, 1))


@pytest.mark.parametrize(
    ("model", "shape", "words"),
    [
        (Tiny(), (32, 32, 3), "got an image of shape (32, 32, 3); required [N, H, W, C]"),
        (Tiny(blocks=(1, 1)), (1, 32, 32, 3), "got blocks=(1, 1)"),
        (Tiny(width=0), (1, 32, 32, 3), "width=0"),
        (TinyFCN(encoder="vgg16"), (1, 32, 32, 3), "required one of resnet18, resnet34, resnet50, resnet101"),
        (TinyFCN(num_classes=0), (1, 32, 32, 3), "num_classes=0"),
        (TinyFCN(dropout=1.0), (1, 32, 32, 3), "dropout=1.0"),
    ],
)
def test_errors_name_what_is_required(model, shape, words):
    with pytest.raises(InputError) as error:
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
    assert words in str(error.value)


# Equality with torch.


@needs_torch
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(("name", "dilate"), [("resnet18", (False, False, False)), ("resnet50", DILATED)])
def test_every_map_equals_torchs(name, dilate, train):
    model = RESNETS[name](width=4, dilate=dilate)
    image = random_array(2, 129, 160, 3)  # fewer pixels a channel, and batch statistics magnify the rounding of float32
    variables = random_variables(model, image)
    maps, state = jax.jit(partial(model.apply, train=train, mutable=["batch_stats"]))(variables, image)
    theirs = state_dict(weights.resnet(name, ""), {kind: {"encoder": tree} for kind, tree in variables.items()})
    means = {key: value for key, value in theirs.items() if key.endswith("running_mean")}  # torch updates them in place
    for ours, expected in zip(maps, torch_resnet.resnet(theirs, nchw(image), "", dilate, train), strict=True):
        assert_close(np.asarray(ours), nhwc(expected))
    assert not theirs
    flat = flatten_dict(state)
    for key, value in means.items():
        path, _ = weights.resnet(name, "")[key]
        assert_close(np.asarray(flat[(path[0], *path[2:])]), value.numpy())


def torch_fcn(state, image):
    """torchvision's fcn_resnet, written down: logits and those of the auxiliary head."""
    from torch.nn import functional

    *_, layer3, layer4 = torch_resnet.resnet(state, image, "backbone.", DILATED)
    for x, key in ((layer4, "classifier"), (layer3, "aux_classifier")):
        x = torch_resnet.norm(state, torch_resnet.conv(state, x, f"{key}.0"), f"{key}.1").relu()
        x = torch_resnet.conv(state, x, f"{key}.4")
        yield functional.interpolate(x, size=image.shape[2:], mode="bilinear", align_corners=False)


def both_logits(model, variables, image):
    return map(np.asarray, jax.jit(partial(model.apply, method="heads"))(variables, image))


@needs_torch
@pytest.mark.parametrize(
    ("model", "size"),
    [
        (FCNResNet(num_classes=21), (65, 97)),
        (FCNResNet(num_classes=21, width=8), (64, 96)),
        (FCNResNet(num_classes=3, encoder="resnet101", width=4), (65, 97)),
    ],
)
def test_logits_equal_those_of_torchvision(model, size):
    image = random_array(1, *size, 3)
    variables = random_variables(model, image)
    theirs = state_dict(weights.layout(model), variables)
    for ours, expected in zip(both_logits(model, variables, image), torch_fcn(theirs, nchw(image)), strict=True):
        assert_close(ours, nhwc(expected))
    assert not theirs


@needs_torch
@pytest.mark.parametrize("size", [(65, 97), (64, 96)])
def test_the_package_has_the_same_keys_and_logits(size):
    torchvision = package("torchvision")
    model = FCNResNet(num_classes=21)
    image = random_array(1, *size, 3)
    variables = random_variables(model, image)
    theirs = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, aux_loss=True, num_classes=21)
    theirs.load_state_dict(state_dict(weights.layout(model), variables))
    expected = theirs.eval()(nchw(image))
    for ours, name in zip(both_logits(model, variables, image), ("out", "aux"), strict=True):
        assert_close(ours, nhwc(expected[name]))
