"""Objects by their centres: targets against NumPy, the way back from perfect and from spoilt logits; label maps stitched of windows."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from jaxseg.errors import InputError
from jaxseg.instances.border import SMALLEST_PX
from jaxseg.instances.centre import ARROW_PX, centre_arrows, centre_decode, centre_loss
from jaxseg.instances.matching import match, scores
from jaxseg.instances.stitch import stitched


def discs(rng, shape, count, radii=(3, 9)):
    """A label map of up to `count` discs, many touching, some cut by the image's border, with gaps in their numbers."""
    label = np.zeros(shape, np.int32)
    y, x = np.indices(shape)
    for number in rng.permutation(3 * count)[:count] + 1:
        cy, cx = rng.uniform(0, shape)
        inside = (y - cy) ** 2 + (x - cx) ** 2 <= rng.uniform(*radii) ** 2
        if not label[inside].any():
            label[inside] = number
    sizes = np.bincount(label.ravel())
    return np.where(sizes[label] >= SMALLEST_PX, label, 0)


def arrows_of(label):
    """The targets object by object: arrows [H,W,2] and radii [H,W]."""
    arrows, radius = np.zeros((*label.shape, 2)), np.zeros(label.shape)
    for number in np.unique(label):
        here = np.argwhere(label == number)
        arrows[label == number] = here.mean(0) - here
        radius[label == number] = np.sqrt(len(here) / np.pi)
    return arrows, radius


def perfect(label, certainty=5.0):
    return np.dstack([np.where(label > 0, certainty, -certainty), arrows_of(label)[0] / ARROW_PX]).astype(np.float32)


def same_objects(a, b):
    """Equal up to the numbers, background for background."""
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1)
    return all(len(np.unique(side)) == pairs.shape[1] for side in pairs) and np.array_equal(a == 0, b == 0)


def loss_of(logits, instances, weight):
    """The loss in float64, pixel by pixel, image by image."""
    total = np.zeros(2)
    norm = np.zeros(2)
    for z, label, w in zip(logits.astype(np.float64), instances, weight, strict=True):
        arrows, radius = arrows_of(label)
        for at in zip(*np.nonzero(label >= 0), strict=True):
            p = 1 / (1 + np.exp(-z[at][0]))
            total[0] -= w[at] * np.log(p if label[at] > 0 else 1 - p)
            norm[0] += w[at]
            if label[at] > 0:
                total[1] += w[at] * (np.sqrt(1 + ((ARROW_PX * z[at][1:] - arrows[at]) ** 2).sum()) - 1) / radius[at]
                norm[1] += w[at]
    return (total / norm).sum()


SIDE = 20
value_and_grad = jax.jit(jax.value_and_grad(lambda logits, instances, weight: centre_loss(logits, instances, weight=weight)))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    instances = np.stack([discs(rng, (SIDE, SIDE), 6), discs(rng, (SIDE, SIDE), 2)])
    instances[0, :, :3] = -1
    instances[1, 5:9] = -7
    instances[1, 0, 0] = 2**31 - 1
    return rng.normal(size=(2, SIDE, SIDE, 3)).astype(np.float32), instances, rng.uniform(size=(2, SIDE, SIDE)).astype(np.float32)


def test_arrows_and_radii_are_those_of_each_object(batch):
    arrows, radius = jax.jit(centre_arrows)(batch[1])
    for i, label in enumerate(batch[1]):
        expected_arrows, expected_radius = arrows_of(label)
        np.testing.assert_allclose(arrows[i], expected_arrows, atol=1e-5)
        np.testing.assert_allclose(radius[i], expected_radius, rtol=1e-6)


def test_loss_equals_its_definition(batch):
    np.testing.assert_allclose(value_and_grad(*batch)[0], loss_of(*batch), rtol=1e-5)


def test_ignored_pixels_reach_neither_loss_nor_gradient(batch):
    logits, instances, weight = batch
    value, gradient = value_and_grad(*batch)
    spoilt = np.where(instances[..., None] < 0, np.nan, logits)
    spoilt_value, spoilt_gradient = value_and_grad(spoilt, instances, weight)
    assert spoilt_value == value
    np.testing.assert_array_equal(spoilt_gradient, gradient)
    assert (np.asarray(gradient)[instances < 0] == 0).all()
    assert (np.asarray(gradient)[instances > 0] != 0).all()


def turned(logits, instances, weight, turn):
    """The same scene as a camera turned by `turn` quarter turns and, from 4 on, mirrored sees it."""
    arrows = logits[..., 1:]
    for _ in range(turn % 4):  # a pixel to the left comes to lie below: (dy, dx) -> (-dx, dy)
        arrows = np.rot90(np.stack([-arrows[..., 1], arrows[..., 0]], -1), axes=(1, 2))
    logits = np.concatenate([np.rot90(logits[..., :1], turn % 4, axes=(1, 2)), arrows], -1)
    instances, weight = (np.rot90(x, turn % 4, axes=(1, 2)) for x in (instances, weight))
    if turn >= 4:
        logits, instances, weight = logits[:, :, ::-1] * np.array([1, 1, -1], np.float32), instances[:, :, ::-1], weight[:, :, ::-1]
    return logits, instances, weight


@pytest.mark.parametrize("turn", range(1, 8))
def test_loss_does_not_know_up_from_left(batch, turn):
    logits, instances, weight = batch
    np.testing.assert_allclose(value_and_grad(*turned(logits, instances, weight, turn))[0], value_and_grad(*batch)[0], rtol=1e-5)


def test_loss_of_a_split_batch_is_that_of_the_whole(batch):
    split = jax.vmap(lambda z, i, w: centre_loss(z, i, weight=w, axis_name="devices"), axis_name="devices")
    values = jax.jit(split)(*(x[:, None] for x in batch))
    np.testing.assert_allclose(values, np.full(2, value_and_grad(*batch)[0]), rtol=1e-6)


@pytest.mark.parametrize("instances", ["empty", "ignored", "pixel", "whole", "each"])
def test_extreme_maps_have_a_finite_loss_that_perfect_logits_bring_to_0(instances):
    label = np.zeros((2, SIDE, SIDE), np.int32)
    if instances == "ignored":
        label -= 1
    if instances == "pixel":
        label[0, 0, 3] = 5
    if instances == "whole":
        label += 9
    if instances == "each":
        label += np.arange(SIDE * SIDE).reshape(SIDE, SIDE)
    logits = np.stack([perfect(part, certainty=30.0) for part in label])
    weight = np.ones(label.shape, np.float32)
    value, gradient = value_and_grad(logits, label, weight)
    assert 0 <= value < 1e-6
    assert np.isfinite(gradient).all()
    worse, gradient = value_and_grad(logits + 1, label, weight)
    assert np.isfinite(gradient).all()
    assert worse > 0.01 or instances in ("empty", "ignored")
    assert worse == 0 or instances != "ignored"


def test_wrong_channels_are_refused(batch):
    with pytest.raises(InputError, match=r"centre_loss: got logits \(2, 20, 20, 2\)"):
        centre_loss(jnp.asarray(batch[0][..., :2]), jnp.asarray(batch[1]))


@pytest.mark.parametrize("seed", range(8))
def test_perfect_logits_give_back_the_label_map(seed):
    label = discs(np.random.default_rng(seed), (90, 110), 150)
    assert len(np.unique(label)) > 30
    assert same_objects(centre_decode(perfect(label)), label)


def test_discs_that_touch_come_back_exactly():
    y, x = np.indices((40, 60))
    label = sum(n * ((y - cy) ** 2 + (x - cx) ** 2 <= 81) for n, (cy, cx) in {4: (20, 15), 300: (20, 34), 7: (-3, 50)}.items())
    decoded = centre_decode(perfect(label))
    assert same_objects(decoded, label)
    assert sorted(np.unique(decoded)) == [0, 1, 2, 3]
    assert decoded.dtype == np.int32


def test_chains_separate_what_single_arrows_do_not():
    """Between two objects a network's arrows change smoothly from one to the other: there they point at neither centre."""
    y, x = np.indices((40, 60))
    label = np.where((y - 20) ** 2 + (x - 20) ** 2 <= 64, 1, 0) + np.where((y - 20) ** 2 + (x - 37) ** 2 <= 64, 2, 0)
    logits = perfect(label)
    logits[..., 1:] = ndimage.gaussian_filter(logits[..., 1:], (4, 4, 0))
    heads = np.indices(label.shape)[1] + ARROW_PX * logits[..., 2]
    assert len(np.unique(np.rint(heads[label > 0]))) == 15  # of the 16 columns from 21 to 36: hardly a gap between the two
    scored = match(label, centre_decode(logits))
    assert scored.predicted == 2
    assert scored.matches[-1] == 2


def test_decoding_turns_with_the_scene():
    rng = np.random.default_rng(1)
    label = discs(rng, (48, 48), 40)
    logits = perfect(label)
    logits[..., 1:] += rng.normal(0, 0.07, logits[..., 1:].shape)
    decoded = centre_decode(logits)
    scored = match(label, decoded)  # of arrows that miss by 0.7 pixels a direction, whose chains end near each other
    assert scored.matches[-1] == scored.objects == scored.predicted
    for turn in range(1, 8):
        scene, expected, _ = turned(logits[None], decoded[None], decoded[None], turn)
        assert same_objects(centre_decode(scene[0]), expected[0])


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (7, 5)])
def test_decoding_bears_any_size_and_empty_maps(shape):
    assert (centre_decode(np.full((*shape, 3), -1, np.float32)) == 0).all()
    label = np.ones(shape, np.int32)
    assert (centre_decode(perfect(label)) == (label.size >= SMALLEST_PX)).all()


def test_arrows_out_of_the_image_end_at_its_border():
    logits = np.full((10, 12, 3), 1e6, np.float32)
    assert (centre_decode(logits) == 1).all()


def test_perfect_logits_of_real_nuclei_give_them_back():
    root = os.environ.get("JAXSEG_TEST_DATA")
    if not root:
        pytest.skip("JAXSEG_TEST_DATA is not set: the folder with dsb2018/")
    folder = Path(root) / "dsb2018"
    matchings = []
    for name in (folder / "fluo_val.txt").read_text().split()[::3]:
        with Image.open(folder / "labels" / f"{name}.png") as file:
            label = np.asarray(file).astype(np.int32)
        rows, columns = ndimage.find_objects((label > 0).astype(np.int8))[0]
        label = label[rows, columns]
        matchings.append(match(label, centre_decode(perfect_by_sums(label))))
    ap = scores(matchings)["ap"]
    assert ap[0] > 0.998
    assert ap[-1] > 0.995


def perfect_by_sums(label):
    """`perfect`, fast enough for hundreds of objects."""
    place = np.indices(label.shape)
    sizes = np.maximum(np.bincount(label.ravel()), 1)
    centres = np.stack([np.bincount(label.ravel(), axis.ravel()) / sizes for axis in place])
    arrows = (centres[:, label] - place) / ARROW_PX
    return np.dstack([np.where(label > 0, 5.0, -5.0), *arrows]).astype(np.float32)


# Windows.


def components(logits):
    """A decoding whose objects depend on nothing around them: connected components, of which the smallest are left out."""
    label = np.zeros(logits.shape[:2], np.int32)
    ndimage.label(logits[..., 0] > 0, output=label)
    return np.where(np.bincount(label.ravel())[label] >= SMALLEST_PX, label, 0)


@pytest.mark.parametrize(("window", "overlap"), [(48, 20), (64, 20), (40, 30), (200, 20), (120, 20)])
def test_stitched_windows_equal_the_whole(window, overlap):
    rng = np.random.default_rng(window)
    logits = perfect_by_sums(discs(rng, (150, 120), 200))
    logits[..., 1:] += rng.normal(0, 0.05, logits[..., 1:].shape)
    whole = centre_decode(logits)
    assert whole.max() > 40
    assert same_objects(stitched(centre_decode, logits, window=window, overlap=overlap), whole)


@pytest.mark.parametrize("window", range(24, 50))
def test_an_object_anywhere_about_a_border_of_windows_comes_out_once_and_whole(window):
    rng = np.random.default_rng(window)
    logits = np.full((150, 124, 1), -1.0, np.float32)
    for y in range(0, 150, 13):
        for x in range(0, 120, 13):
            logits[y : y + rng.integers(5, 13), x : x + rng.integers(5, 13)] = 1
    label = stitched(components, logits, window=window, overlap=12)
    assert same_objects(label, components(logits))
    assert sorted(np.unique(label)) == list(range(121))


def test_pieces_of_objects_larger_than_the_overlap_are_joined():
    logits = np.full((100, 130, 1), -1.0, np.float32)
    logits[10:90, 12:15] = logits[10:13, 12:120] = logits[40:70, 60:100] = 1  # an angle of 80 x 108 and a block of 30 x 40 pixels
    label = stitched(components, logits, window=32, overlap=8)
    assert same_objects(label, components(logits))
    assert sorted(np.unique(label)) == [0, 1, 2]


def test_stitching_reads_windows_only():
    class Slices:
        """Logits that are never held at once."""

        shape = (70, 50, 3)

        def __getitem__(self, at):
            rows, columns = (part.stop - part.start for part in at)
            assert max(rows, columns) <= 32
            return np.full((rows, columns, 3), -1, np.float32)

    assert (stitched(centre_decode, Slices(), window=32, overlap=8) == 0).all()


@pytest.mark.parametrize(("shape", "window", "overlap"), [((5, 5), 4, 2), ((5, 5, 1), 4, 4), ((5, 5, 1), 8, 3), ((5, 5, 1), 8, -2)])
def test_stitching_refuses_what_leaves_no_windows(shape, window, overlap):
    with pytest.raises(InputError, match="stitched: got"):
        stitched(components, np.zeros(shape, np.float32), window=window, overlap=overlap)
