"""Laws of the ISBI 2012 scores, scikit-image where it defines the same, and the real labels when they are there."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage.metrics import adapted_rand_error, variation_of_information
from skimage.segmentation import watershed

from jaxseg.em_metrics import _contingency, em_scores, information_score, rand_score, thin_borders
from jaxseg.errors import InputError


def _slice(seed=0, size=96, number=25, width=2):
    """Voronoi cells with borders 2 width + 1 pixels wide: label [H,W], 1 = inside."""
    r = np.random.default_rng(seed)
    points = r.choice(size * size, number, replace=False)
    seeds = np.zeros(size * size, int)
    seeds[points] = np.arange(1, number + 1)
    nearest = ndimage.distance_transform_edt(seeds.reshape(size, size) == 0, return_distances=False, return_indices=True)
    zone = seeds.reshape(size, size)[tuple(nearest)]
    box = 2 * width + 1
    return (ndimage.maximum_filter(zone, box) == ndimage.minimum_filter(zone, box)).astype(np.int32)


def _halves(width=1):
    """Two cells beside each other, [20, 40]."""
    label = np.ones((20, 40), np.int32)
    label[:, 20 - width : 20 + width] = 0
    return label


def _at_half(probability, label):
    return em_scores([probability.astype(float)], [label], (0.5,))


def test_a_label_against_itself_is_perfect():
    labels = [_slice(seed) for seed in range(3)]
    got = em_scores([x.astype(float) for x in labels], labels)
    assert got["rand_score"] == pytest.approx(1, abs=1e-12)
    assert got["information_score"] == pytest.approx(1, abs=1e-12)
    assert got["pixel_error"] == 0
    assert got["pixel_disagreement"] == 0


def test_the_width_of_the_border_does_not_matter_after_thinning():
    label = _halves(1)
    for width in (2, 5, 9):
        got = _at_half(_halves(width), label)
        assert got["rand_score"] == pytest.approx(1, abs=1e-12), width
        assert got["pixel_error"] > 0
    # A thin border off its place costs only the pixels it moved over.
    assert 0.85 < _at_half(np.roll(_halves(1), 1, 1) * (np.arange(40) > 0) + (np.arange(40) == 0), label)["rand_score"] < 1


def test_merging_lowers_and_splitting_lowers():
    label = _halves()
    merged = label.copy()
    merged[10, :] = 1  # a leak one pixel wide
    split = label.copy()
    split[10, :19] = 0
    for worse in (merged, split):
        got = _at_half(worse, label)
        assert got["rand_score"] < 0.95
        assert got["information_score"] < 0.95
    # By hand: merged into one cell, p_ij = (.5, .5), s = 1, t = (.5, .5): V_Rand = .5 / .75, and no information at all.
    got = _at_half(merged, label)
    assert got["rand_score"] == pytest.approx(2 / 3)
    assert got["information_score"] == pytest.approx(0, abs=1e-12)
    # Nothing inside and everything inside are the same proposal: one cell.
    for flat in (np.zeros((20, 40)), np.ones((20, 40))):
        assert _at_half(flat, label)["rand_score"] == pytest.approx(2 / 3)


def test_scores_by_hand_with_a_border_inside_a_cell():
    cells = np.ones((1, 9), np.int64)
    proposal = np.array([[1, 1, 1, 1, 0, 2, 2, 2, 2]])
    pairs = _contingency(cells, proposal)
    assert [sorted(x) for x in pairs] == [[1, 4, 4], [9], [1, 4, 4]]
    assert rand_score(*pairs) == pytest.approx((16 + 16 + 1) / (0.5 * 33 + 0.5 * 81))
    assert information_score(*pairs) == 0
    assert information_score(np.array([9]), np.array([9]), np.array([9])) == 1


def _random_partitions(seed):
    r = np.random.default_rng(seed)
    cells = ndimage.label(_slice(seed))[0]
    proposal = ndimage.label(_slice(seed + 1))[0] + 1  # every pixel in some cell: scikit-image has no single-pixel rule
    return cells, np.where(r.random(cells.shape) < 0.05, 3, proposal)


@pytest.mark.parametrize("seed", range(3))
def test_equals_scikit_image_where_it_defines_the_same(seed):
    cells, proposal = _random_partitions(seed)
    pairs = _contingency(cells, proposal)
    error, precision, recall = adapted_rand_error(cells, proposal, ignore_labels=(0,))
    n = (cells > 0).sum()
    # scikit-image counts pairs of different pixels, n (n - 1); the challenge N^2: they part by about 1 / n.
    assert rand_score(*pairs) == pytest.approx(1 - error, abs=5 / n**0.5 / 10)
    unlike = [(x.astype(float) * (x - 1)).sum() for x in pairs]
    assert 2 * unlike[0] / (unlike[1] + unlike[2]) == pytest.approx(1 - error, rel=1e-12)
    # Which of the two scikit-image calls precision has changed between its releases.
    assert sorted([unlike[0] / unlike[2], unlike[0] / unlike[1]]) == pytest.approx(sorted([precision, recall]))
    conditional = variation_of_information(cells, proposal, ignore_labels=(0,))  # H(S|T), H(T|S) in bits
    p = [x / x.sum() for x in pairs]
    joint, label, proposed = (-(x * np.log2(x)).sum() for x in p)
    assert sorted(conditional) == pytest.approx(sorted([joint - label, joint - proposed]))
    assert information_score(*pairs) == pytest.approx(1 - sum(conditional) / (label + proposed))


@pytest.mark.parametrize("seed", range(3))
def test_renumbering_the_cells_changes_nothing(seed):
    cells, proposal = _random_partitions(seed)
    proposal[::7] = 0
    r = np.random.default_rng(seed)
    a, b = (np.concatenate([[0], 1 + r.permutation(x.max())]) for x in (cells, proposal))
    before, after = _contingency(cells, proposal), _contingency(a[cells], b[proposal])
    assert rand_score(*before) == pytest.approx(rand_score(*after), rel=1e-12)
    assert information_score(*before) == pytest.approx(information_score(*after), rel=1e-12)


@pytest.mark.parametrize("width", [1, 2, 4])
def test_thin_borders_is_a_watershed_with_lines_one_pixel_wide(width):
    inside = _slice(5, width=width) > 0
    inside[40:44, 30:60] = False  # an even gap
    zone = thin_borders(inside)
    cells, number = ndimage.label(inside)
    np.testing.assert_array_equal(zone[inside], cells[inside])
    # No two cells touch, no border pixel is idle: each has a different cell or another border pixel beside it.
    for a, b in ((zone[1:], zone[:-1]), (zone[:, 1:], zone[:, :-1])):
        assert not ((a != b) & (a > 0) & (b > 0)).any()
    assert ndimage.label(zone)[1] == number
    expected = watershed(np.zeros(inside.shape, np.uint8), cells, watershed_line=True)
    both = (zone > 0) & (expected > 0)
    assert (zone != expected)[both].mean() < 2e-3
    assert abs((zone == 0).mean() - (expected == 0).mean()) < 0.02
    # One pixel wide: no 3x3 block of border.
    assert not ndimage.binary_erosion(zone == 0, np.ones((3, 3))).any()


def test_the_best_threshold_of_the_stack_is_found_and_slices_are_averaged():
    labels = [_halves(), _halves()]
    merged = labels[0].copy()
    merged[10, :] = 1
    got = em_scores([0.3 + 0.5 * labels[0], 0.3 + 0.5 * merged], labels, (0.1, 0.5, 0.9))
    assert got["rand_score"] == pytest.approx((1 + 2 / 3) / 2)
    assert got["rand_threshold"] == got["information_threshold"] == got["pixel_error_threshold"] == 0.5
    wrong, inside = 2, 2 * 20 * 38  # the leak; all inside pixels
    assert got["pixel_error"] == pytest.approx(1 - 2 * inside / (2 * inside + wrong))
    assert got["pixel_disagreement"] == pytest.approx(wrong / 1600)
    # A float32 softmax may exceed 1 by rounding.
    assert em_scores([labels[0] * np.float32(1.0000002)], labels[:1])["rand_score"] == pytest.approx(1)
    # Inside is "greater than the threshold": at exactly 0.3 the border is border.
    assert em_scores([0.3 + 0.5 * labels[0]], labels[:1], (0.3,))["pixel_error"] == 0


def test_wrong_input_is_refused():
    label = _halves()
    p = label.astype(float)
    for probabilities, labels, thresholds in (
        ([], [], (0.5,)),
        ([p], [label, label], (0.5,)),
        ([p], [label], ()),
        ([p[:5]], [label], (0.5,)),
        ([p * 20 - 10], [label], (0.5,)),
        ([p * np.nan], [label], (0.5,)),
        ([p], [label * 255], (0.5,)),
        ([p], [label * 0], (0.5,)),
    ):
        with pytest.raises(InputError, match="em_scores"):
            em_scores(probabilities, labels, thresholds)


def test_the_challenges_own_labels():
    root = os.environ.get("JAXSEG_TEST_DATA")
    if not root:
        pytest.skip("JAXSEG_TEST_DATA is not set: the scores are not tried on the real ISBI 2012 labels")
    files = sorted(Path(root, "isbi2012", "train", "label").glob("*.png"))[-2:]
    labels = [(np.asarray(Image.open(f)) > 0).astype(np.int32) for f in files]
    perfect = em_scores([x.astype(float) for x in labels], labels, (0.5,))
    assert perfect["rand_score"] == pytest.approx(1, abs=1e-12)
    assert perfect["information_score"] == pytest.approx(1, abs=1e-12)
    assert perfect["pixel_error"] == 0
    r = np.random.default_rng(0)
    last = 1.0
    for noise in (0.1, 0.35):
        blurred = [ndimage.gaussian_filter(x + r.normal(0, 3 * noise, x.shape), 3) for x in labels]
        got = em_scores([np.clip(x, 0, 1) for x in blurred], labels)
        assert 0.5 < got["rand_score"] < last
        assert 0.5 < got["information_score"] < 1
        assert 0 < got["pixel_error"] < 0.3
        last = got["rand_score"]
