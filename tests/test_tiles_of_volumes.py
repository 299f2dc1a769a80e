"""Volumes by tiles: the whole's to rounding where that can be, the middles of overlapping ones elsewhere."""

from functools import partial

import jax
import numpy as np
import pytest
from random_variables import random_variables

from jaxseg.errors import InputError
from jaxseg.inference.tile_plan import find_reach
from jaxseg.inference.tiles import tiled, tiled_regions
from jaxseg.inference.whole import predict_whole
from jaxseg.models import NNUNet, UNet


def _volume(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _tiles(model, variables, volume, tile):
    """The logits by exact tiles, and how many there were of each axis."""
    logits, starts = np.empty((*volume.shape[:3], 2), np.float32), [set(), set(), set()]
    for where, values in tiled_regions(model.apply, tile=tile, axes=3)(variables, volume):
        logits[where] = values
        for seen, part in zip(starts, where, strict=True):
            seen.add(part.start)
    return logits, tuple(map(len, starts))


@pytest.mark.parametrize(("size", "counts"), [((41, 40, 53), (2, 2, 2)), ((3, 150, 171), (1, 3, 3)), ((64, 1, 1), (1, 1, 1))])
@pytest.mark.parametrize("norm", [None, "batch"])
def test_exact_tiles_of_a_padded_unet_are_the_whole_s(size, counts, norm):
    model, volume = UNet(2, (3, 4), padding="same", norm=norm), _volume(*size, 1)
    variables = random_variables(model, volume[None])
    whole = jax.jit(model.apply)(variables, volume[None])[0]
    logits, found = _tiles(model, variables, volume, 32)
    np.testing.assert_allclose(logits, whole, rtol=0, atol=1e-6 * np.abs(whole).max())
    assert all(map(int.__ge__, found, counts))


@pytest.mark.parametrize("size", [(5, 21, 40), (33, 9, 14)])
def test_exact_tiles_of_an_unpadded_unet_are_the_whole_s(size):
    """The whole is the volume with a mirrored border."""
    model, volume = UNet(2, (3, 4)), _volume(*size, 2)
    variables = random_variables(model, _volume(1, 20, 20, 20, 2))
    whole = jax.jit(partial(predict_whole, model))(variables, volume[None])[0]
    assert whole.shape == (*size, 2)
    logits, found = _tiles(model, variables, volume, 28)
    np.testing.assert_allclose(logits, whole, rtol=0, atol=1e-6 * np.abs(whole).max())
    assert max(found) > 2


def test_regions_give_each_voxel_once_and_may_be_left_out():
    model, volume = UNet(2, (2, 3), padding="same"), _volume(2, 20, 24, 33, 1)
    variables = random_variables(model, volume)
    regions = tiled_regions(model.apply, tile=16, blend="crop", axes=3)
    found, times = list(regions(variables, volume)), np.zeros(volume.shape[:4], int)
    for (n, *slices), values in found:
        times[n, *slices] += 1
        assert values.shape == (*times[n, *slices].shape, 2)
    assert (times == 1).all()
    for (where, values), (there, others) in zip(regions(variables, volume, skip=5), found[5:], strict=True):
        assert where == there
        np.testing.assert_array_equal(values, others)


def test_a_function_of_single_voxels_has_no_seams_when_cropped():
    volume = _volume(21, 18, 40, 1)
    np.testing.assert_array_equal(tiled(lambda _, x: 2 * x, tile=16, blend="crop", axes=3)((), volume), 2 * volume)
    picture = _volume(50, 70, 3)
    np.testing.assert_array_equal(tiled(lambda _, x: 2 * x, tile=16, blend="crop")((), picture), 2 * picture)


def test_a_larger_overlap_brings_cropped_tiles_nearer_to_the_whole():
    model, volume = UNet(2, (3, 4), padding="same"), _volume(24, 30, 48, 1)
    variables = random_variables(model, volume[None])
    whole = jax.jit(model.apply)(variables, volume[None])[0]
    naive, some, wide = (
        np.abs(tiled(model.apply, tile=24, blend="crop", overlap=overlap, axes=3)(variables, volume) - whole).mean()
        for overlap in (0.0, 0.3, 0.8)
    )
    assert naive > some > wide
    assert wide < 1e-6  # 9 voxels at each side, and the field reaches as far


def test_a_norm_of_the_whole_is_refused_and_named():
    model, volume = NNUNet(2, (2, 3), strides=(1, 2)), _volume(20, 40, 40, 1)
    variables = random_variables(model, volume[None])
    with pytest.raises(InputError, match=r"by an instance or group norm.* Take blend='crop' \(--blend crop\)"):
        tiled(model.apply, tile=16, axes=3)(variables, volume)
    assert tiled(model.apply, tile=16, blend="crop", axes=3)(variables, volume).shape == (20, 40, 40, 2)


@pytest.mark.parametrize(
    ("options", "shape", "words"),
    [
        ({"blend": "gaussian", "axes": 3}, (8, 8, 8, 1), r"blend='gaussian' of volumes, whose tiles are not averaged. Take blend='crop'"),
        ({"axes": 3}, (8, 8, 1), r"got an image of shape \(8, 8, 1\); required \[D, H, W, C\] or \[N, D, H, W, C\]"),
        ({"axes": 3}, (8, 0, 8, 1), "without empty axes"),
        ({"axes": 4}, (8, 8, 8, 1), "axes=4; required .* 2 or 3 axes"),
    ],
)
def test_what_cannot_be_is_said(options, shape, words):
    with pytest.raises(InputError, match=words):
        tiled(lambda _, x: x, tile=16, **options)((), np.zeros(shape, np.float32))


def test_the_reach_of_each_axis_is_that_of_the_same_net_for_images():
    net = UNet(2, (2, 3), padding="same")
    reach = find_reach(partial(net.apply, random_variables(net, _volume(1, 8, 8, 8, 1))), 1, 32, (40, 64, 51))
    row, column = find_reach(partial(net.apply, random_variables(net, _volume(1, 8, 8, 1))), 1, 32, (64, 51))
    assert len(reach) == 3
    for axis in reach:
        np.testing.assert_array_equal(axis.first, row.first)
        np.testing.assert_array_equal(axis.last, column.last)


@pytest.mark.parametrize("model", [UNet(2, (64, 64), padding="same"), NNUNet(2, (4, 6), strides=(1, 2))])
def test_pictures_that_fit_in_one_tile_are_the_whole_s_bit_for_bit(model):
    """Several at a time, of which layers would otherwise choose other forms than of one."""
    pictures = _volume(4, 12, 20, 3)
    variables = random_variables(model, pictures)
    whole = jax.jit(model.apply)
    logits = tiled(model.apply, tile=32)(variables, pictures)
    for picture, found in zip(pictures, logits, strict=True):
        np.testing.assert_array_equal(found, whole(variables, picture[None])[0])
