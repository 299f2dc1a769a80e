"""Laws of milesial's U-Net: its counts, its layout of weights, equality with torch, and with our own U-Net where they are the same."""

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
from jaxseg.models import UNet
from jaxseg.models.milesial import MilesialUNet
from jaxseg.weights import milesial

MODES = pytest.mark.parametrize("bilinear", [False, True])
Tiny = partial(MilesialUNet, 3, (4, 8, 16))


def _image(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("channels", "classes", "bilinear", "count", "keys"),
    [(3, 2, False, 31_037_698, 118), (3, 2, True, 17_263_042, 110), (1, 1, False, 31_036_481, 118)],
)
def test_the_reference_has_as_many_parameters_and_keys(channels, classes, bilinear, count, keys):
    model = MilesialUNet(classes, bilinear=bilinear)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, channels)))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count
    table = milesial.layout(model)
    assert {path for path, _ in table.values()} == set(flatten_dict(variables))
    assert len(table) + sum(key.endswith("running_mean") for key in table) == keys  # and a num_batches_tracked for each batch norm


@MODES
@pytest.mark.parametrize("size", [(4, 5), (13, 22)])
def test_each_skip_reaches_the_logits_at_any_size(bilinear, size):
    check_first_channels_are_skips(Tiny(bilinear=bilinear), _image(1, *size, 2), levels=2)


@MODES
def test_gradients_and_statistics_in_training(bilinear):
    model, image = Tiny(bilinear=bilinear), _image(2, 9, 12, 2)
    variables = random_variables(model, image)

    @jax.jit
    def gradients(params):
        def energy(params):
            logits, state = model.apply({**variables, "params": params}, image, train=True, mutable=["batch_stats"])
            return (logits**2).mean(), state["batch_stats"]

        return jax.grad(energy, has_aux=True)(params)

    gradient, stats = gradients(variables["params"])
    for path, leaf in flatten_dict(gradient, sep="/").items():
        assert np.all(np.isfinite(leaf)), path
        assert np.any(np.abs(leaf) > 1e-6), path
    for path, leaf in flatten_dict(stats, sep="/").items():
        assert np.any(leaf != flatten_dict(variables["batch_stats"], sep="/")[path]), path


def test_it_is_our_own_padded_u_net_where_no_side_is_odd():
    model, image = Tiny(), _image(2, 12, 16, 2)
    variables = random_variables(model, image)
    ours = UNet(3, (4, 8, 16), padding="same", norm="batch")
    logits = np.asarray(jax.jit(model.apply)(variables, image))
    np.testing.assert_allclose(jax.jit(ours.apply)(variables, image), logits, rtol=1e-4, atol=1e-5)
    odd = _image(2, 13, 16, 2)
    assert np.max(np.abs(jax.jit(ours.apply)(variables, odd) - jax.jit(model.apply)(variables, odd))) > 1e-3


@pytest.mark.parametrize("shape", [(1, 15, 32, 3), (1, 32, 15, 3), (32, 32, 3)])
def test_an_image_that_poolings_use_up_is_refused(shape):
    with pytest.raises(InputError, match=r"required \[N, H, W, C\], H and W from 16, since 4 poolings halve them"):
        jax.eval_shape(MilesialUNet(2).init, jax.random.key(0), jnp.zeros(shape))


# Equality with the reference, its modules and names written down here.


def _reference(torch, features, bilinear, channels, classes):
    from torch import nn

    def double_conv(inputs, outputs, mid=None):
        mid = mid or outputs
        convs = [nn.Conv2d(i, o, 3, padding=1, bias=False) for i, o in ((inputs, mid), (mid, outputs))]
        layers = [layer for conv in convs for layer in (conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU())]
        return nn.ModuleDict({"double_conv": nn.Sequential(*layers)})

    class Down(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.maxpool_conv = nn.ModuleList([nn.MaxPool2d(2), double_conv(inputs, outputs)])

        def forward(self, x):
            return self.maxpool_conv[1]["double_conv"](self.maxpool_conv[0](x))

    class Up(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            if bilinear:
                self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
                self.conv = double_conv(inputs, outputs, inputs // 2)
            else:
                self.up = nn.ConvTranspose2d(inputs, inputs // 2, 2, 2)
                self.conv = double_conv(inputs, outputs)

        def forward(self, x, skip):
            x = self.up(x)
            h, w = (skip.shape[axis] - x.shape[axis] for axis in (2, 3))
            x = nn.functional.pad(x, [w // 2, w - w // 2, h // 2, h - h // 2])
            return self.conv["double_conv"](torch.cat([skip, x], dim=1))

    class Reference(nn.Module):
        def __init__(self):
            super().__init__()
            share, depth = 2 if bilinear else 1, len(features) - 1
            self.inc = double_conv(channels, features[0])
            for i in range(1, depth + 1):
                setattr(self, f"down{i}", Down(features[i - 1], features[i] // (share if i == depth else 1)))
                below, above = features[depth + 1 - i], features[depth - i]
                setattr(self, f"up{i}", Up(below, above // (share if i < depth else 1)))
            self.outc = nn.ModuleDict({"conv": nn.Conv2d(features[0], classes, 1)})

        def forward(self, x):
            skips = [self.inc["double_conv"](x)]
            for i in range(1, len(features)):
                skips.append(getattr(self, f"down{i}")(skips[-1]))
            x = skips.pop()
            for i in range(1, len(features)):
                x = getattr(self, f"up{i}")(x, skips.pop())
            return self.outc["conv"](x)

    return Reference()


@needs_torch
@MODES
@pytest.mark.parametrize(("features", "sizes"), [((4, 8, 16), [(12, 16), (13, 22)]), ((64, 128, 256, 512, 1024), [(39, 53)])])
def test_logits_equal_those_of_the_reference(bilinear, features, sizes):
    import torch

    model = MilesialUNet(2, features, bilinear)
    images = [_image(1, *size, 3) for size in sizes]
    check_equals_torch(model, milesial.layout(model), _reference(torch, features, bilinear, 3, 2), images)
