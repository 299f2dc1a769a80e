"""Laws of MONAI's BasicUNet: its counts, its layout of weights, and equality with torch in all three modes of upsampling."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from model_laws import check_equals_torch, check_first_channels_are_skips
from op_laws import needs_torch
from random_variables import random_variables

from jaxseg.errors import InputError
from jaxseg.models.basic_unet import BasicUNet
from jaxseg.weights import monai

MODES = pytest.mark.parametrize("mode", ["deconv", "nontrainable", "pixelshuffle"])
Tiny = partial(BasicUNet, 3, (4, 6, 8, 3))


def _image(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (BasicUNet(2), 1_978_466),
        (BasicUNet(2, (64, 128, 256, 512, 1024, 128)), 31_333_826),
        (BasicUNet(2, upsample="nontrainable"), 1_845_314),
        (BasicUNet(2, upsample="pixelshuffle"), 3_388_258),
    ],
)
def test_monai_has_as_many_parameters(model, count):
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 1)))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == count
    assert {path for path, _ in monai.layout(model).values()} == set(flatten_dict(variables))


@MODES
@pytest.mark.parametrize("size", [(4, 5), (13, 22)])
def test_each_skip_reaches_the_logits_at_any_size(mode, size):
    check_first_channels_are_skips(Tiny(upsample=mode), _image(1, *size, 2), levels=2)


@MODES
def test_gradients_reach_every_parameter(mode):
    model, image = Tiny(upsample=mode), _image(2, 9, 12, 2)
    variables = random_variables(model, image)
    gradient = jax.jit(jax.grad(lambda variables: (model.apply(variables, image, train=True) ** 2).mean()))(variables)
    for path, leaf in flatten_dict(gradient["params"], sep="/").items():
        assert np.all(np.isfinite(leaf)), path
        if not ("_conv" in path and path.endswith("bias")):  # the norm subtracts it again
            assert np.any(np.abs(leaf) > 1e-6), path


@pytest.mark.parametrize("shape", [(1, 15, 32, 1), (1, 32, 15, 1), (32, 32, 1)])
def test_an_image_that_poolings_use_up_is_refused(shape):
    with pytest.raises(InputError, match=r"required \[N, H, W, C\], H and W from 16, since 4 poolings halve them"):
        jax.eval_shape(BasicUNet(2).init, jax.random.key(0), jnp.zeros(shape))


def test_an_unknown_mode_is_refused():
    with pytest.raises(InputError, match="got upsample='bilinear'; required one of deconv, nontrainable, pixelshuffle"):
        jax.eval_shape(Tiny(upsample="bilinear").init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))


def test_pixel_shuffling_starts_without_a_checkerboard():
    model, image = Tiny(upsample="pixelshuffle"), jnp.zeros((1, 8, 8, 1))
    kernel = jax.jit(lambda key: model.init(key, image)["params"]["up1_sample"]["kernel"])(jax.random.key(0, impl="rbg"))
    cells = kernel.reshape(*kernel.shape[:3], -1, 4)  # torch's order: a cell's four pixels are neighbours
    np.testing.assert_array_equal(cells, np.broadcast_to(cells[..., :1], cells.shape))


# Equality with MONAI, its modules and names written down here.


def _reference(torch, features, mode, channels, classes):
    from torch import nn

    *encoder, last = features

    def two_conv(inputs, outputs):
        def conv(inputs):
            adn = nn.ModuleDict({"N": nn.InstanceNorm2d(outputs, affine=True)})
            return nn.ModuleDict({"conv": nn.Conv2d(inputs, outputs, 3, padding=1), "adn": adn})

        return nn.ModuleDict({"conv_0": conv(inputs), "conv_1": conv(outputs)})

    def run(convs, x):
        for conv in convs.values():
            x = nn.functional.leaky_relu(conv["adn"]["N"](conv["conv"](x)), 0.1)
        return x

    def upsample(inputs, outputs):
        if mode == "deconv":
            return nn.ModuleDict({"deconv": nn.ConvTranspose2d(inputs, outputs, 2, 2)})
        if mode == "nontrainable":
            return nn.ModuleDict({} if inputs == outputs else {"preconv": nn.Conv2d(inputs, outputs, 1)})
        return nn.ModuleDict({"pixelshuffle": nn.ModuleDict({"conv_block": nn.Conv2d(inputs, 4 * outputs, 3, padding=1)})})

    def enlarge(layers, x):
        if mode == "deconv":
            return layers["deconv"](x)
        if mode == "nontrainable":
            x = layers["preconv"](x) if "preconv" in layers else x
            return nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        x = nn.functional.pixel_shuffle(layers["pixelshuffle"]["conv_block"](x), 2)
        return nn.functional.avg_pool2d(nn.functional.pad(x, (1, 0, 1, 0)), 2, stride=1)

    class Reference(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv_0 = two_conv(channels, encoder[0])
            for i in range(1, len(encoder)):
                setattr(self, f"down_{i}", nn.ModuleDict({"convs": two_conv(encoder[i - 1], encoder[i])}))
                up = encoder[i] // (1 if i == 1 else 2)
                convs = two_conv(encoder[i - 1] + up, last if i == 1 else encoder[i - 1])
                setattr(self, f"upcat_{i}", nn.ModuleDict({"upsample": upsample(encoder[i], up), "convs": convs}))
            self.final_conv = nn.Conv2d(last, classes, 1)

        def forward(self, x):
            skips = [run(self.conv_0, x)]
            for i in range(1, len(encoder)):
                skips.append(run(getattr(self, f"down_{i}")["convs"], nn.functional.max_pool2d(skips[-1], 2)))
            x = skips.pop()
            for i in reversed(range(1, len(encoder))):
                layers, skip = getattr(self, f"upcat_{i}"), skips.pop()
                x = enlarge(layers["upsample"], x)
                x = nn.functional.pad(x, (0, skip.shape[3] - x.shape[3], 0, skip.shape[2] - x.shape[2]), "replicate")
                x = run(layers["convs"], torch.cat([skip, x], dim=1))
            return self.final_conv(x)

    return Reference()


@needs_torch
@MODES
@pytest.mark.parametrize(("features", "sizes"), [((4, 6, 8, 3), [(12, 16), (13, 22)]), ((32, 32, 64, 128, 256, 32), [(39, 53)])])
def test_logits_equal_those_of_monai(mode, features, sizes):
    import torch

    model = BasicUNet(2, features, mode)
    images = [_image(1, *size, 3) for size in sizes]
    check_equals_torch(model, monai.layout(model), _reference(torch, features, mode, 3, 2), images)
