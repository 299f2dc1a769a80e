"""Laws of VGG16 as an encoder: the paper's counts and sizes, its stored positions, its norm, and equality with torch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from op_laws import needs_torch, random_array
from random_variables import random_variables

from jaxseg import ops
from jaxseg.errors import InputError
from jaxseg.models.vgg import CONVS, VGG16

Tiny = partial(VGG16, features=(3, 4, 5, 6, 7))
NAMES = [f"{stage}_{i}" for stage, convs in enumerate(CONVS, 1) for i in range(1, convs + 1)]


def _shapes(model, *shape):
    return jax.eval_shape(partial(model.init_with_output, jax.random.key(0)), jnp.zeros(shape))


@pytest.mark.parametrize(("norm", "count"), [(None, 14_714_688), ("batch", 14_714_688 + 2 * 4224)])
def test_thirteen_convolutions_with_the_papers_parameters(norm, count):
    _, variables = _shapes(VGG16(norm=norm), 1, 224, 224, 3)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count
    assert set(variables["params"]) == {f"{kind}{name}" for name in NAMES for kind in (("conv", "norm") if norm else ("conv",))}


@pytest.mark.parametrize(
    ("fields", "size", "maps"),
    [
        ({}, (224, 224), [(224, 224), (112, 112), (56, 56), (28, 28), (14, 14), (7, 7)]),
        ({}, (360, 480), [(360, 480), (180, 240), (90, 120), (45, 60), (23, 30), (12, 15)]),  # SegNet's
        ({"padding_first": 100}, (375, 500), [(573, 698), (287, 349), (144, 175), (72, 88), (36, 44), (18, 22)]),  # FCN's
        ({"ceil_mode": False}, (67, 101), [(67, 101), (33, 50), (16, 25), (8, 12), (4, 6), (2, 3)]),  # torchvision's
        ({}, (1, 1), [(1, 1)] * 6),
    ],
)
def test_every_size_and_both_roundings(fields, size, maps):
    stages, _ = _shapes(VGG16(**fields), 2, *size, 3)
    assert [stage.map.shape for stage in stages] == [(2, *size, c) for size, c in zip(maps[:-1], (64, 128, 256, 512, 512), strict=True)]
    assert [stage.pooled.shape[1:3] for stage in stages] == maps[1:]
    assert all(stage.index.shape == stage.pooled.shape for stage in stages)


@pytest.mark.parametrize("ceil_mode", [True, False])
def test_the_stored_positions_are_those_of_the_maxima(ceil_mode):
    model, image = Tiny(ceil_mode=ceil_mode), random_array(1, 45, 38, 3)
    stages = jax.jit(model.apply)(random_variables(model, image), image)
    for stage in stages:
        h, w = stage.map.shape[1:3] if ceil_mode else (n // 2 * 2 for n in stage.map.shape[1:3])
        sparse = np.asarray(ops.max_unpool(stage.pooled, stage.index, size=(h, w)))
        assert np.any(sparse)
        np.testing.assert_array_equal(sparse[sparse != 0], np.asarray(stage.map)[:, :h, :w][sparse != 0])
        np.testing.assert_array_equal(stage.pooled, ops.max_pool(stage.map, ceil_mode=ceil_mode))


def test_batch_norm_of_a_batch_and_of_its_averages():
    model, image = Tiny(norm="batch"), random_array(3, 32, 32, 3)
    variables = random_variables(model, image)

    @jax.jit
    def both(variables, image):
        stages, state = model.apply(variables, image, train=True, mutable=["batch_stats"])
        return stages, state["batch_stats"], model.apply(variables, image), model.apply(variables, image[:1])

    trained, stats, stages, alone = both(variables, image)
    np.testing.assert_allclose(alone[-1].pooled, stages[-1].pooled[:1], rtol=1e-4, atol=1e-5)
    assert np.max(np.abs(trained[-1].pooled - stages[-1].pooled)) > 1e-2
    for path, leaf in flatten_dict(variables["batch_stats"]).items():
        assert np.all(flatten_dict(stats)[path] != leaf), path  # every average has moved


def test_every_parameter_is_reached_and_the_gradients_are_finite():
    model, image = Tiny(), random_array(2, 33, 40, 3)
    variables = random_variables(model, image)
    gradients = jax.jit(jax.grad(lambda v: (model.apply(v, image)[-1].pooled ** 2).mean()))(variables)
    for path, leaf in flatten_dict(gradients["params"], sep="/").items():
        assert np.all(np.isfinite(leaf)), path
        assert np.any(np.asarray(leaf) != 0), path


def test_bfloat16_computes_in_bfloat16():
    model = Tiny(norm="batch", dtype=jnp.bfloat16)
    stages, variables = _shapes(model, 1, 32, 32, 3)
    assert {stage.map.dtype for stage in stages} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("fields", "shape", "text"),
    [
        ({}, (32, 32, 3), "missing axes"),
        ({"features": (8, 8)}, (1, 32, 32, 3), "5 numbers"),
        ({"norm": "group"}, (1, 32, 32, 3), "'batch'"),
        ({"padding_first": 0}, (1, 32, 32, 3), "padding_first=0"),
        ({"ceil_mode": False}, (1, 31, 40, 3), "32 at least"),
    ],
)
def test_what_is_refused(fields, shape, text):
    with pytest.raises(InputError, match=text):
        _shapes(VGG16(**fields), *shape)


def test_the_smallest_side_for_floor_pooling_is_legal():
    assert _shapes(VGG16(ceil_mode=False), 1, 32, 32, 3)[0][-1].pooled.shape == (1, 1, 1, 512)


@needs_torch
@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize(("size", "ceil_mode"), [((64, 64), False), ((67, 101), False), ((67, 101), True)])
def test_the_maps_equal_those_of_torch(norm, size, ceil_mode):
    import torch

    f = torch.nn.functional
    model, image = Tiny(norm=norm, ceil_mode=ceil_mode), random_array(1, *size, 3)
    variables = random_variables(model, image)
    tensors = jax.tree.map(torch.tensor, variables)
    x, maps = torch.tensor(image).permute(0, 3, 1, 2), []
    for name in NAMES:
        layer = tensors["params"][f"conv{name}"]
        x = f.conv2d(x, layer["kernel"].permute(3, 2, 0, 1), layer["bias"], padding=1)
        if norm:
            scale, stats = tensors["params"][f"norm{name}"], tensors["batch_stats"][f"norm{name}"]
            x = f.batch_norm(x, stats["mean"], stats["var"], scale["scale"], scale["bias"])
        x = x.relu()
        if name in ("1_2", "2_2", "3_3", "4_3", "5_3"):
            maps.append(x.permute(0, 2, 3, 1).numpy())
            x = f.max_pool2d(x, 2, ceil_mode=ceil_mode)
    stages = jax.jit(model.apply)(variables, image)
    for stage, expected in zip(stages, maps, strict=True):
        assert stage.map.shape == expected.shape
        assert np.max(np.abs(stage.map - expected)) <= 1e-4 * np.max(np.abs(expected))
