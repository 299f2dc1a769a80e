"""Laws of what is seen inside a network: Flax's own capture, torch's gradients, convolutions of kernels, brute force."""

import re
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from op_laws import needs_torch
from random_variables import random_variables
from scipy.signal import convolve

from jaxseg.errors import InputError
from jaxseg.heatmaps import Patch, effective_field, effective_size, layer_map, layers, seg_grad_cam, strongest_patches
from jaxseg.models.conv_only import ConvOnly
from jaxseg.models.segnet import SegNet
from jaxseg.receptive_field import fields

NET, IMAGE = ConvOnly(3, features=(4, 5), norm="batch"), np.random.default_rng(0).normal(size=(2, 11, 9, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def variables():
    return random_variables(NET, IMAGE)


def test_layers_are_those_that_flax_captures(variables):
    def captured(variables, image):
        output, state = NET.apply(variables, image, capture_intermediates=True)
        return {"/".join(path[:-1]) or "output": value[0] for path, value in flatten_dict(state["intermediates"]).items()}, output

    expected, output = jax.jit(captured)(variables, IMAGE)
    found = jax.jit(layers(NET.apply))(variables, IMAGE)
    assert found.keys() == expected.keys() == {"conv0", "norm0", "conv1", "norm1", "logits", "output"}
    for name, x in found.items():
        np.testing.assert_array_equal(x, expected[name])
    np.testing.assert_array_equal(found["output"], output)
    assert list(jax.eval_shape(layers(NET.apply), variables, IMAGE)) == ["conv0", "norm0", "conv1", "norm1", "logits", "output"]


def test_maps_within_a_modules_output_are_named_and_integers_left_out():
    model = SegNet(2, features=(2,) * 5)
    shapes = jax.eval_shape(
        lambda image: layers(lambda x: model.init_with_output(jax.random.key(0), x)[0])(image), jnp.ones((1, 32, 32, 1))
    )
    assert shapes["encoder/1/pooled"].shape == (1, 8, 8, 2)
    assert shapes["encoder/conv5_3"].shape == (1, 2, 2, 2)
    assert not [name for name in shapes if "index" in name]


def test_a_module_used_twice_has_two_names():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Dense(2, name="dense")
            return layer(layer(x))

    x = jnp.ones((1, 3, 3, 2))
    found = layers(Twice().apply)(Twice().init(jax.random.key(0), x), x)
    assert list(found) == ["dense", "dense#2", "output"]
    np.testing.assert_array_equal(found["dense#2"], found["output"])
    assert (found["dense"] != found["output"]).any()


# Class activation maps.


class _Linear(nn.Module):
    @nn.compact
    def __call__(self, image):
        return nn.Dense(3, name="logits")(nn.Conv(4, (3, 3), name="features")(image))


@pytest.mark.parametrize("whole", [True, False])
def test_of_a_last_linear_layer_the_class_activation_map_is_its_weighted_input(whole):
    variables = random_variables(_Linear(), IMAGE)
    region = np.ones(IMAGE.shape[:3], bool) if whole else np.random.default_rng(1).random(IMAGE.shape[:3]) < 0.3
    found = seg_grad_cam(_Linear().apply, variables, IMAGE, layer="features", classes=(2, 0), region=jnp.asarray(region))
    features = layer_map(_Linear().apply, "features")(variables, IMAGE)
    share = region.mean((1, 2))[:, None, None, None]  # the gradient of a pixel's logit by the same pixel alone, averaged over all
    expected = np.maximum(share * (np.asarray(features) @ np.asarray(variables["params"]["logits"]["kernel"])[:, [2, 0]]), 0)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-5)


@needs_torch
def test_the_class_activation_map_is_torchs():
    import torch
    from torch.nn import functional as F

    model = ConvOnly(3, features=(4, 5))
    variables = random_variables(model, IMAGE)
    found = jax.jit(partial(seg_grad_cam, model.apply, layer="conv0", classes=(0, 1, 2)))(variables, IMAGE)
    weight, bias = ({k: torch.tensor(v[part]) for k, v in variables["params"].items()} for part in ("kernel", "bias"))

    def conv(name, x):
        kernel = weight[name].permute(3, 2, 0, 1)
        return F.conv2d(x, kernel, bias[name], padding=kernel.shape[-1] // 2)

    first = conv("conv0", torch.tensor(IMAGE).permute(0, 3, 1, 2)).requires_grad_()
    logits = conv("logits", F.relu(conv("conv1", F.relu(first))))
    for c in range(3):
        (gradient,) = torch.autograd.grad((logits[:, c] * (logits.argmax(1) == c)).sum(), first, retain_graph=True)
        expected = F.relu((gradient.mean((2, 3), keepdim=True) * first).sum(1))
        np.testing.assert_allclose(found[..., c], expected.detach(), rtol=1e-4, atol=1e-6)


# Effective receptive fields.


class _Blurs(nn.Module):
    count: int

    @nn.compact
    def __call__(self, x):
        for i in range(self.count):
            x = nn.Conv(1, (3, 3), use_bias=False, kernel_init=nn.initializers.constant(-1 / 9), name=f"blur{i}")(x)
        return x


def test_the_effective_field_of_linear_layers_is_the_convolution_of_their_kernels():
    image = jnp.asarray(np.random.default_rng(0).normal(size=(3, 25, 31, 2)), jnp.float32)
    variables = _Blurs(3).init(jax.random.key(0), image)
    field = effective_field(_Blurs(3).apply, variables, image, at=(11, 16))
    kernel, expected = np.ones((3, 3)) / 9, np.zeros((25, 31))
    expected[11, 16] = 2  # channels
    for _ in range(3):
        expected = convolve(expected, kernel, "same")
    np.testing.assert_allclose(field, expected, atol=1e-6)
    size = effective_size(np.asarray(field))
    assert size[1:] == pytest.approx([np.sqrt(3 * 2 / 3)] * 2, rel=1e-4)  # variances of the layers add up (Luo et al., theorem 1)
    assert size.side**2 == pytest.approx((expected > (1 - 0.9545) * expected.max()).sum())


def test_the_effective_field_lies_in_the_theoretical_one(variables):
    field = np.asarray(jax.jit(partial(effective_field, NET.apply, layer="conv1"))(variables, IMAGE))
    (top, bottom), (left, right) = fields(lambda x: layer_map(NET.apply, "conv1")(variables, x), IMAGE.shape)
    rows, columns = np.flatnonzero(field.any(1)), np.flatnonzero(field.any(0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (top[5], bottom[5], left[4], right[4]) == (3, 7, 2, 6)


def test_the_size_of_a_gaussian_is_that_of_its_two_deviations():
    y, x = np.indices((101, 121)) - 50
    size = effective_size(np.exp(-(y**2 + (x / 1.0) ** 2) / (2 * 7**2)))
    assert size.side == pytest.approx(np.sqrt(np.pi * 2 * 7**2 * np.log(1 / (1 - 0.9545))), rel=0.01)  # a disc of radius 2.49 deviations
    assert size[1:] == pytest.approx([7, 7], rel=1e-3)


# Patches.


def _greedy(maps, boxes, count):
    """All places of all images from the strongest on, each taken if it shares no pixel with what was taken before it."""
    places = [(-m[r, c], n, r, c) for n, m in enumerate(maps) for r in range(m.shape[0]) for c in range(m.shape[1])]
    taken = []
    for value, n, r, c in sorted(places):
        (top, bottom), (left, right) = boxes[n]
        pixels = {(y, x) for y in range(top[r], bottom[r] + 1) for x in range(left[c], right[c] + 1)}
        if pixels and not any(n == other and pixels & seen for other, seen, _ in taken):
            taken.append((n, pixels, (n, r, c, -value)))
    return [place for *_, place in taken[:count]]


@pytest.mark.parametrize("count", [1, 5, 200])
def test_the_strongest_patches_are_those_of_a_greedy_search(count):
    r = np.random.default_rng(3)

    def lines(n):
        first = 2 * np.arange(n) - 3
        empty = np.arange(n) == n - 1
        return np.where(empty, 2 * n, first.clip(0)), np.where(empty, -1, (first + 3).clip(0, 2 * n - 1))

    maps, boxes = [r.normal(size=(7, 9)), r.normal(size=(5, 4))], [(lines(7), lines(9)), (lines(5), lines(4))]
    found = strongest_patches(maps, boxes, count)
    assert [patch[:4] for patch in found] == _greedy(maps, boxes, count)
    assert len(found) == min(count, len(found)) > 0
    for patch in found:
        (top, bottom), (left, right) = boxes[patch.image]
        assert patch.rows == (top[patch.row], bottom[patch.row] + 1)
        assert patch.columns == (left[patch.column], right[patch.column] + 1)


def test_a_patch_names_its_part_of_the_image():
    whole = np.array([0]), np.array([3])
    assert strongest_patches([np.full((1, 1), 2.0)], [(whole, whole)], 3) == [Patch(0, 0, 0, 2.0, (0, 4), (0, 4))]


@pytest.mark.slow
def test_the_documentation_runs_as_printed():
    (example,) = re.findall("```python\n(.*?)```", (Path(__file__).parents[1] / "docs/heatmaps.md").read_text(), re.S)
    names: dict = {}
    exec(compile(example, "heatmaps.md", "exec"), names)
    assert names["cam"].shape == (1, 16, 18, 3)
    assert names["part"].shape[-1] == 1
    assert names["field"].shape == (64, 72)


# Bad input.


def test_bad_input_is_an_error(variables):
    cam = partial(seg_grad_cam, NET.apply, variables, IMAGE)
    line = np.arange(3), np.arange(3)
    for call, words in [
        (lambda: layer_map(NET.apply, "conv9")(variables, IMAGE), "'conv9'; there are conv0 (11 x 9 x 4), norm0 (11 x 9 x 4), conv1"),
        (lambda: cam(layer="norm", classes=(0,)), "got the layer 'norm'"),
        (lambda: cam(layer="conv0", classes=(0, 3)), "got the classes [0, 3]; required some of 0 to 2"),
        (lambda: cam(layer="conv0", classes=(-1,)), "required some of 0 to 2"),
        (lambda: cam(layer="conv0", classes=()), "got the classes []"),
        (lambda: cam(layer="conv0", classes=(0,), region=jnp.ones((2, 9, 11), bool)), "got a region of shape (2, 9, 11)"),
        (lambda: effective_field(NET.apply, variables, IMAGE, at=(11, 0)), "within its 11 x 9 map"),
        (lambda: effective_size(np.zeros((4, 4))), "without a value above 0"),
        (lambda: strongest_patches([np.ones((3, 3))], [(line, line)], 0), "1 at least"),
        (lambda: strongest_patches([np.ones((3, 4))], [(line, line)], 1), "required equal sizes"),
    ]:
        with pytest.raises(InputError) as error:
            call()
        assert words in str(error.value)
