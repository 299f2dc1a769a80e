"""Laws of the table of models: it has them all, and its numbers are those of the papers, of hand computations and of other code."""

import json
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from jaxseg import models as family
from jaxseg.cli import main
from jaxseg.errors import InputError
from jaxseg.model_table import ENTRIES, WHOLE, flops, output_stride, parameters, variants
from jaxseg.models import MODELS
from jaxseg.models.heatmap import DirectHeatmap, PlainEncoder
from jaxseg.receptive_field import receptive_field


def test_every_model_is_in_the_table_with_the_options_that_its_rows_name():
    assert list(ENTRIES) == list(MODELS)
    for key, (name, make) in variants().items():
        assert make.func is MODELS[name]
        assert key == name or key.startswith(f"{name}/")
        if "/" in key and name != "nnunet":
            assert key.split("/")[1] in make.keywords.values()
    assert list(variants(["fcn", "unet"])) == ["unet", "fcn/32s", "fcn/16s", "fcn/8s", "fcn/8s_at_once"]
    assert list(variants(["encoder_unet/vgg16"])) == ["encoder_unet/vgg16"]
    with pytest.raises(InputError, match=r"models: got fcn/4s; required some of unet, fcn, .*fcn/32s"):
        variants(["unet", "fcn/4s"])


@pytest.mark.parametrize(
    ("key", "channels", "classes", "counted"),
    [
        ("unet", 1, 2, 31_030_658),
        ("fcn/32s", 3, 21, 136_152_917),
        ("fcn/16s", 3, 21, 134_815_994),
        ("fcn/8s", 3, 21, 134_489_759),
        ("fcn/8s_at_once", 3, 21, 134_489_759),
        ("fcn_resnet/resnet50", 3, 21, 35_322_218),
        ("segnet", 3, 11, 29_449_355),
        ("deconvnet", 3, 21, 251_805_653),
        ("encoder_unet/resnet34", 3, 1, 24_436_369),
        ("encoder_unet/vgg16", 3, 1, 23_748_241),
        ("milesial", 3, 2, 31_037_698),
        ("basic_unet", 1, 2, 1_978_466),
    ],
)
def test_parameters_are_those_of_the_papers_and_public_code(key, channels, classes, counted):
    assert parameters(variants([key])[key][1](num_classes=classes), channels) == counted


class Tiny(nn.Module):
    """A strided, a grouped and a transposed convolution, a matrix product, and a head that no result depends on."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), strides=2, name="strided")(x)
        nn.Conv(100, (5, 5), name="unused")(x)
        x = jax.jit(nn.relu)(nn.Conv(8, (3, 3), kernel_dilation=2, feature_group_count=4, name="grouped")(x))
        x = nn.ConvTranspose(6, (4, 4), strides=(2, 2), name="transposed")(x)
        return nn.Dense(5, name="dense")(x)


def test_flops_are_those_counted_by_hand():
    image = jnp.ones((2, 16, 24, 3))
    variables = jax.eval_shape(Tiny().init, jax.random.key(0), image)
    small, large = 2 * 8 * 12, 2 * 16 * 24  # pixels
    by_hand = 2 * (small * 9 * 3 * 8 + small * 9 * 2 * 8 + large * 4 * 8 * 6 + large * 6 * 5)  # of 4x4 taps 2x2 meet a pixel
    assert flops(Tiny().apply, variables, image) == by_hand
    assert flops(jax.jit(Tiny().apply), variables, image) == by_hand

    def repeated(x):
        return jax.lax.scan(lambda x, _: (x @ jnp.ones((4, 4)), None), x, length=3)[0]

    assert flops(repeated, jnp.ones((5, 4))) == 3 * 2 * 5 * 4 * 4


def test_the_unets_flops_are_those_of_its_layers():
    features, size, by_hand = (64, 128, 256, 512, 1024), 256, 0
    for level, width in enumerate(features):
        pixels, before = (size >> level) ** 2, features[level - 1] if level else 3
        by_hand += 2 * 9 * pixels * (before * width + width * width)  # contracting
        if level < 4:  # expanding: 4 taps of the level below reach 4 different pixels, then the concatenation
            by_hand += 2 * pixels * 2 * width * width + 2 * 9 * pixels * (2 * width * width + width * width)
    by_hand += 2 * size**2 * 64 * 2
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    unet = family.UNet(2, padding="same", dtype=jnp.bfloat16)
    assert flops(unet.apply, jax.eval_shape(unet.init, jax.random.key(0), image), image) == by_hand


@pytest.mark.parametrize("levels", [1, 3, 5])
def test_the_output_stride_is_that_of_all_poolings(levels):
    encoder = partial(PlainEncoder, (2,) * levels)
    assert output_stride(DirectHeatmap(2, encoder)) == 2**levels
    assert output_stride(DirectHeatmap(2, partial(encoder, dilated=True))) == 1


def test_the_command_prints_what_the_functions_say(capsys):
    names = ["unet", "fcn_resnet/resnet50", "basic_unet", "conv_only"]
    assert main(["models", *names, "--size", "64", "--classes", "3", "--json"]) == 0
    rows = {found["name"]: found for found in json.loads(capsys.readouterr().out)}
    assert list(rows) == names
    unet = family.UNet(1, features=(1,) * 5, padding="same", dtype=jnp.bfloat16)
    field = receptive_field(lambda image: unet.init_with_output(jax.random.key(0), image)[0], (1, 320, 320, 1))
    assert rows["unet"]["receptive_field"] == field[0].size == 204
    assert [rows[name]["receptive_field"] for name in names[1:]] == [451, WHOLE, 13]
    assert [rows[name]["output_stride"] for name in names] == [16, 8, 16, 1]
    assert rows["conv_only"]["parameters"] == 9 * (3 * 32 + 5 * 32 * 32) + 6 * 32 + 32 * 3 + 3
    by_hand = 2 * 64 * 64 * 9 * (3 * 32 + 5 * 32 * 32) + 2 * 64 * 64 * 32 * 3
    assert rows["conv_only"]["gflop"] * 1e9 == pytest.approx(by_hand)


def test_a_size_too_small_for_a_model_says_so(capsys):
    assert main(["models", "deconvnet", "--size", "128"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("deconvnet"))
    assert line.split()[1:6] == ["251,804,418", "too", "small", "32", "788"]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["models", "resnet"], "jaxseg models: error: models: got resnet; required some of unet"),
        (["models", "--size", "0"], "--size 0 --classes 2 --channels 3: required is at least 1"),
        (["models", "--classes", "-1"], "--classes -1"),
    ],
)
def test_bad_input_is_one_line(capsys, command, words):
    assert main(command) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
