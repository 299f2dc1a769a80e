"""The border route against brute force, and what it does with maps that are empty, tiny, gappy or cut by the image's edge."""

import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

from jaxseg import pictures
from jaxseg.data import cells, dsb2018, train_batches
from jaxseg.errors import InputError
from jaxseg.instances import baselines, border
from jaxseg.instances.border import border_classes, border_decode, border_loss, without_small
from jaxseg.instances.matching import match, overlaps, scores
from jaxseg.instances.routes import ROUTES, find_route

RNG = np.random.default_rng(0)


def boxes(size=16, n=6, ignored=True):
    """An instance map of random boxes that touch, with gaps in its numbers, -1 in places."""
    instances = np.zeros((size, size), np.int32)
    for number in RNG.choice(300, n, replace=False) + 1:
        y, x, h, w = RNG.integers([0, 0, 2, 2], [size - 2, size - 2, 9, 9])
        instances[y : y + h, x : x + w] = number
    if ignored:
        instances[RNG.random(instances.shape) < 0.05] = -1
    return instances


def brute_classes(instances):
    h, w = instances.shape
    classes, touching = np.full((h, w), 255), np.zeros((h, w), bool)
    for y in range(h):
        for x in range(w):
            near = [instances[v, u] for v in range(h) for u in range(w) if 0 < (v - y) ** 2 + (u - x) ** 2 <= border.BORDER_PX**2]
            others = {int(n) for n in near} - {-1, int(instances[y, x])}
            if instances[y, x] >= 0:
                classes[y, x] = 0 if instances[y, x] == 0 else 2 if others else 1
                touching[y, x] = instances[y, x] > 0 and bool(others - {0})
    return classes, touching


def perfect(instances):
    """Logits that are sure of the border classes."""
    return 20 * np.eye(3, dtype=np.float32)[np.asarray(border_classes(jnp.asarray(instances))[0]).clip(0, 2)]


@pytest.mark.parametrize("make", [boxes, lambda: np.zeros((16, 16), np.int32), lambda: np.full((16, 16), 255, np.int32), lambda: -boxes()])
def test_classes_equal_brute_force(make):
    instances = np.maximum(make(), -1)
    for got, want in zip(border_classes(jnp.asarray(instances)), brute_classes(instances), strict=True):
        np.testing.assert_array_equal(got, want)


def test_classes_turn_with_the_map_and_know_no_numbers():
    instances = jnp.asarray(boxes())
    classes = border_classes(instances)[0]
    for turn in (jnp.fliplr, jnp.flipud, jnp.rot90, jnp.transpose):
        np.testing.assert_array_equal(border_classes(turn(instances))[0], turn(classes))
    np.testing.assert_array_equal(border_classes(jnp.where(instances > 0, 1000 - instances, instances))[0], classes)


def test_loss_equals_torch():
    instances, weight = np.stack([boxes(), boxes()]), RNG.uniform(0, 2, (2, 16, 16)).astype(np.float32)
    logits = RNG.normal(size=(2, 16, 16, 3)).astype(np.float32)
    classes, touching = (np.stack(part) for part in zip(*map(brute_classes, instances), strict=True))
    known = torch.as_tensor(np.where(classes == 255, 0, classes)).long()
    each = torch.nn.functional.cross_entropy(torch.as_tensor(logits).movedim(-1, 1), known, reduction="none").numpy()
    for given in (None, weight):
        w = np.where(touching, border.TOUCHING_WEIGHT, 1) * (classes != 255)
        w = w if given is None else w * given
        got = jax.jit(border_loss)(jnp.asarray(logits), jnp.asarray(instances), weight=given)
        assert float(got) == pytest.approx(float((w * each).sum() / w.sum()), rel=1e-5)


@pytest.mark.parametrize("value", [-1, 0, 5])
def test_loss_and_gradient_are_finite_on_maps_of_one_value(value):
    run = jax.jit(jax.value_and_grad(border_loss))
    for shape in ((1, 16, 16), (1, 1, 1)):
        loss, gradient = run(jnp.zeros((*shape, 3)), jnp.full(shape, value))
        assert np.isfinite(loss)
        assert np.isfinite(gradient).all()
        assert (value == -1) == (float(loss) == 0)


def test_decoding_perfect_classes_gives_the_cells_back():
    truth = [cells.generate(np.random.default_rng(seed), 128)[1] for seed in range(4)]
    got = scores([match(t, border_decode(perfect(t)), (0.5, 0.9)) for t in truth])
    assert got["ap"][0] == 1
    assert got["ap"][1] > 0.97
    assert got["count_error"] == 0


def test_decoding_perfect_classes_of_real_nuclei():
    root = os.environ.get("JAXSEG_TEST_DATA")
    if not root:
        pytest.skip("JAXSEG_TEST_DATA is not set: the folder that holds dsb2018")
    listing = dsb2018.listing(Path(root) / "dsb2018")
    truth = [listing.read(item)["instances"] for item in listing.splits["val"][::6]]
    got = scores([match(t, border_decode(perfect(t)), (0.5, 0.9)) for t in truth])
    assert got["ap"][0] > 0.98  # objects of several pieces, and rings around others, do not come back
    assert got["ap"][1] > 0.95


def test_decode_numbers_without_gaps_and_keeps_objects_apart():
    instances = np.zeros((32, 40), np.int32)
    instances[4:20, 4:18], instances[4:20, 18:34] = 900, 7  # touching
    instances[26:29, :] = 255  # too thin for an interior
    instances[22, 2] = 3  # a pixel: noise
    label = border_decode(perfect(instances))
    assert label.dtype == np.int32
    assert sorted(np.unique(label)) == [0, 1, 2, 3]
    assert match(np.where(instances == 3, 0, instances), label, (0.9,)).matches.tolist() == [3]


def test_decode_fills_holes_and_reaches_the_edge_of_the_image():
    instances = np.zeros((24, 24), np.int32)
    instances[:12, :12] = 1
    logits = perfect(instances)
    logits[5, 5] = [30, 0, 0]
    np.testing.assert_array_equal(border_decode(logits), instances)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (30, 3), (16, 16)])
def test_decode_of_nothing_and_of_one_colour(shape):
    for favourite in range(3):
        logits = np.zeros((*shape, 3), np.float32)
        logits[..., favourite] = 9
        label = border_decode(logits)
        whole = favourite > 0 and label.size >= border.SMALLEST_PX
        np.testing.assert_array_equal(label, np.full(shape, int(whole)))


def test_without_small():
    label = np.array([[0, 5, 5, 9, 9, 9, 2]])
    np.testing.assert_array_equal(without_small(label, 2), [[0, 1, 1, 2, 2, 2, 0]])
    np.testing.assert_array_equal(without_small(label * 0, 2), label * 0)


def test_routes():
    for name, route in ROUTES.items():
        assert find_route(name) is route
        assert route.name == name
    with pytest.raises(InputError, match="border"):
        find_route("bordre")


def test_baselines_see_bright_discs():
    y, x = np.mgrid[:64, :64]
    truth = np.zeros((64, 64), np.int32)
    for number, (cy, cx) in enumerate([(20, 20), (20, 38), (50, 50)], 1):
        truth[(y - cy) ** 2 + (x - cx) ** 2 < 100] = number
    image = (30 + 150 * (truth > 0) + RNG.normal(0, 5, truth.shape)).clip(0, 255).astype(np.uint8)[..., None]
    assert len(np.unique(baselines.otsu_components(image))) == 3  # the two that touch are one
    assert match(truth, baselines.otsu_watershed(image), (0.8,)).matches.tolist() == [3]
    for constant in (np.zeros((8, 8, 1), np.uint8), np.full((1, 1, 1), 0.5, np.float32)):
        assert not baselines.otsu_components(constant).any()
        assert not baselines.otsu_watershed(constant).any()


def test_object_255_is_not_ignored_and_what_lies_beyond_the_picture_is():
    instances = np.full((4, 6), 255, np.int32)
    record = {"name": "a", "image": np.zeros((4, 6, 1), np.uint8), "label": instances}
    batch = next(train_batches([record], batch_size=1, size=8, seed=0, ignored=-1))
    assert (batch["label"] == -1).sum() == 64 - 24
    assert (batch["label"] == 255).sum() == 24
    classes = np.asarray(border_classes(jnp.asarray(batch["label"]))[0])
    assert (classes == border.INTERIOR).sum() == 24


def test_outlines():
    instances = np.zeros((8, 9), np.int32)
    instances[1:7, 1:5], instances[1:7, 5:9] = 3, 255
    edge = pictures.outline(instances)
    alone = functools.reduce(np.logical_or, (pictures.outline(np.where(instances == n, n, 0)) for n in (3, 255)))
    np.testing.assert_array_equal(edge, alone)
    assert edge.sum() == 16 + 12  # at the right end of the image an object is cut, not ended
    image = np.full((8, 9, 3), 77, np.uint8)
    drawn = pictures.outlines(image, instances)
    assert (drawn[~edge] == 77).all()
    assert len(np.unique(drawn[edge], axis=0)) == 2
    found = overlaps(instances, np.where(instances == 3, 9, 0))
    assert (found.objects.tolist(), found.predicted.tolist(), found.pairs.tolist()) == ([3, 255], [9], [[0, 0]])
    shown = pictures.match_map(image, instances, np.where(instances == 3, 9, 0), np.array([255]), np.array([], int))
    assert (shown[2, 1] == 255).all()  # found
    assert shown[4, 7, 2] > shown[4, 7, 0]  # missed


@pytest.mark.parametrize("top", [0, 1, 255, 256, 65535])
def test_a_label_map_is_16_bits_and_comes_back(tmp_path, top):
    instances = (RNG.integers(0, 2, (5, 7)) * top).astype(np.int32)
    pictures.write_label_map(tmp_path / "a.png", instances)
    stored = Image.open(tmp_path / "a.png")
    assert stored.mode == "I;16"
    np.testing.assert_array_equal(np.asarray(stored), instances)


@pytest.mark.parametrize("wrong", [-1, 65536])
def test_a_label_map_that_16_bits_cannot_hold_is_refused(tmp_path, wrong):
    with pytest.raises(InputError, match=r"0\.\.65535"):
        pictures.write_label_map(tmp_path / "a.png", np.full((2, 2), wrong))
