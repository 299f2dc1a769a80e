"""Region and boundary scores: the benchmark's own output to its digits, pairs and matchings counted one by one, invariances."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat
from skimage.metrics import variation_of_information
from skimage.morphology import thin

from jaxseg.errors import InputError
from jaxseg.region_metrics import BoundaryCounts, boundaries, boundary_counts, region_scores, summarise


def some_labels(seed, regions=4, shape=(5, 7)):
    return np.random.default_rng(seed).integers(0, regions, shape)


def truths(*seeds):
    return [some_labels(seed, regions=seed + 2) for seed in seeds]


@pytest.fixture(scope="module")
def fixture():
    """Of each of the evaluator's 5 images: 5 segmentations, the people's label maps and boundaries."""
    if "JAXSEG_TEST_DATA" not in os.environ:
        pytest.skip("JAXSEG_TEST_DATA is not set: no files of BSDS500")
    folder = Path(os.environ["JAXSEG_TEST_DATA"]) / "bsds500/reference/bench_fixture"
    images = []
    for file in sorted((folder / "segs").glob("*.mat")):
        people = [person[0, 0] for person in loadmat(folder / "groundTruth" / file.name)["groundTruth"][0]]
        segmentations = list(loadmat(file)["segs"].ravel())
        images.append((segmentations, [p["Segmentation"] for p in people], [p["Boundaries"] > 0 for p in people]))
    return folder, images


def printed(value):
    return float(f"{value:.6g}")


def test_region_scores_are_the_evaluators_to_its_digits(fixture):
    """Covering, Rand index and variation of information of 5 images at 5 scales. Its programs hand on each image's sums with 6 digits."""
    folder, images = fixture
    scores = [[region_scores(label, people) for label in segmentations] for segmentations, people, _ in images]
    area = np.array([[s.area.sum() for s in image] for image in scores])
    covered = np.array([[printed((s.best_iou * s.area).sum()) for s in image] for image in scores])
    rand = np.array([[printed(s.rand_index) for s in image] for image in scores])
    variation = np.array([[printed(s.variation_of_information) for s in image] for image in scores])
    sums = [printed((np.max([s.best_iou for s in image], 0) * image[0].area).sum()) for image in scores]
    total = np.array([printed(n) for n in area[:, 0]]).sum()
    ours = {
        "eval_cover_th": np.stack([np.arange(1, 6), covered.sum(0) / total], 1),
        "eval_RI_VOI_thr": np.stack([np.arange(1, 6), rand.mean(0), variation.mean(0)], 1),
        "eval_cover": [[1 + covered.sum(0).argmax(), (covered.sum(0) / total).max(), covered.max(1).sum() / total, sum(sums) / total]],
        "eval_RI_VOI": [
            np.concatenate(
                [
                    [1 + rand.mean(0).argmax(), rand.mean(0).max(), rand.max(1).mean()],
                    [1 + variation.mean(0).argmin(), variation.mean(0).min(), variation.min(1).mean()],
                ]
            )
        ],
    }
    for name, table in ours.items():
        theirs = np.loadtxt(folder / "test_5" / f"{name}.txt", ndmin=2)
        np.testing.assert_array_equal([[printed(v) for v in row] for row in table], theirs, err_msg=name)

    summary = summarise(scores)
    cover, others = np.loadtxt(folder / "test_5/eval_cover.txt"), np.loadtxt(folder / "test_5/eval_RI_VOI.txt")
    for score, values in {"covering": cover[:3], "rand_index": others[:3], "variation_of_information": others[3:]}.items():
        optimum = getattr(summary, score)
        assert optimum.index + 1 == values[0]
        np.testing.assert_allclose([optimum.ods, optimum.ois], values[1:], rtol=5e-6)
    assert summary.best_covering == pytest.approx(cover[3], rel=2e-6)


def test_boundary_f_is_near_the_evaluators(fixture):
    """Ours matches as many pixels as can be; the evaluator's random edges lose a few, others in each of its runs (test_3, test_4)."""
    folder, images = fixture
    label, _, people = images[0][0][0], *images[0][1:]
    counts = boundary_counts(boundaries(label), people)
    for run in ("test_3", "test_4"):
        theirs = np.loadtxt(folder / run / "eval_bdry_img.txt")[0, 2:]
        np.testing.assert_allclose([counts.recall, counts.precision, counts.f], theirs, atol=1e-3)


def test_scores_count_pairs_and_regions():
    label, people = some_labels(0), truths(1, 2)
    scores = region_scores(label, people)
    pairs, best, area = [], [], []
    for truth in people:
        together = [
            (label.flat[a] == label.flat[b], truth.flat[a] == truth.flat[b]) for a, b in itertools.combinations(range(label.size), 2)
        ]
        pairs.append(np.mean([a == b for a, b in together]))
        for region in np.unique(truth):
            ours = [(((label == k) & (truth == region)).sum() / ((label == k) | (truth == region)).sum()) for k in np.unique(label)]
            best.append(max(ours))
            area.append((truth == region).sum())
    assert scores.covering == pytest.approx(np.average(best, weights=area))
    np.testing.assert_allclose(scores.best_iou[scores.area > 0], best)
    assert scores.rand_index == pytest.approx(np.mean(pairs))
    assert scores.variation_of_information == pytest.approx(np.mean([sum(variation_of_information(t, label)) for t in people]))


@pytest.mark.parametrize("names", [(-7, 2**30, 3, 900), (2, -1, 5, -3)])
def test_names_of_regions_do_not_matter(names):
    label, people = some_labels(0), truths(1, 2)
    one, other = region_scores(label, people), region_scores(np.array(names)[label], [t[::-1, ::-1].max() - t for t in people])
    assert (one.covering, one.rand_index) == pytest.approx((other.covering, other.rand_index))
    assert one.variation_of_information == pytest.approx(other.variation_of_information)


def test_the_same_regions_are_perfect():
    label = some_labels(0)
    scores = region_scores(label, [label, label + 3])
    assert (scores.covering, scores.rand_index, scores.variation_of_information) == pytest.approx((1, 1, 0))
    assert boundary_counts(boundaries(label), [boundaries(label)]).f == 1


def test_one_pixel_and_one_region():
    pixel = np.zeros((1, 1), int)
    assert region_scores(pixel, [pixel])[2:] == (1, 0)
    assert not boundaries(np.ones((4, 5), int)).any()
    assert boundary_counts(np.zeros((4, 5), bool), [np.zeros((4, 5), bool)]) == BoundaryCounts(0, 0, 0, 0)


def test_ois_takes_each_images_best_parameter():
    label, coarse = np.arange(12).reshape(3, 4) // 2, np.arange(12).reshape(3, 4) // 6
    scores = [[region_scores(guess, [truth]) for guess in (label, coarse)] for truth in (label, label, coarse)]
    covering = summarise(scores).covering
    assert covering.ois == 1
    assert (covering.ods, covering.index) == (pytest.approx((2 + scores[2][0].covering) / 3), 0)
    assert summarise(scores).variation_of_information.ois == pytest.approx(0)


def test_boundaries_are_as_wide_as_one_pixel_and_lie_between_regions():
    label = np.zeros((6, 8), int)
    label[:, 5:] = 1
    assert (np.argwhere(boundaries(label))[:, 1] == 4).all()
    assert (np.argwhere(boundaries(label.T))[:, 0] == 4).all()
    assert boundaries(label).sum() == 6


def test_boundaries_are_where_two_by_two_pixels_are_not_alike():
    label = some_labels(0, regions=3, shape=(12, 14))
    unlike = [[np.ptp(label[i : i + 2, j : j + 2]) > 0 for j in range(label.shape[1])] for i in range(label.shape[0])]
    np.testing.assert_array_equal(boundaries(label), thin(np.array(unlike)))


@pytest.mark.parametrize("seed", range(4))
def test_as_many_boundary_pixels_are_matched_as_can_be(seed):
    """Against all assignments of 4 pixels to 5 others or fewer."""
    rng, reach = np.random.default_rng(seed), 1.5
    maps = np.zeros((2, 5, 6), bool)
    for array, n in zip(maps, (4, 5), strict=True):
        array.flat[rng.choice(30, n, replace=False)] = True
    points, others = np.argwhere(maps[0]), np.argwhere(maps[1])
    near = np.hypot(*(points[:, None] - others).transpose(2, 0, 1)) <= reach
    most = max(near[range(4), chosen].sum() for chosen in map(list, itertools.permutations(range(5), 4)))
    counts = boundary_counts(maps[0], [maps[1]], tolerance=reach / np.hypot(5, 6))
    assert counts == BoundaryCounts(most, 5, most, 4)


def test_of_equally_many_pairs_the_nearest_are_taken():
    """Two people mark the pixel in the middle: that one has both for partners, its neighbours within reach have none."""
    ours, truth = np.zeros((2, 6, 7), bool)
    ours[2, 2:5] = ours[1, 3] = truth[2, 3] = True
    assert boundary_counts(ours, [truth, truth], tolerance=1.2 / np.hypot(6, 7)) == BoundaryCounts(2, 2, 1, 4)
    truth[2, 3], truth[3, 2] = False, True
    assert boundary_counts(ours, [truth, np.roll(truth, -1, 0)], tolerance=1.2 / np.hypot(6, 7)) == BoundaryCounts(2, 2, 1, 4)


def test_precision_counts_a_pixel_matched_with_anybody_once():
    line, other = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    line[:, 2] = other[:4, 2] = True
    counts = boundary_counts(line, [line, other], tolerance=0.01)
    assert counts == BoundaryCounts(12, 12, 8, 8)


@pytest.mark.parametrize(("people", "message"), [([], "at least one"), ([np.zeros((2, 3), int)], "truth 0")])
def test_what_cannot_be_compared_is_refused(people, message):
    with pytest.raises(InputError, match=message):
        region_scores(np.zeros((3, 2), int), people)


def test_summarise_needs_equally_many_parameters():
    score = region_scores(some_labels(0), truths(1))
    with pytest.raises(InputError, match="parameters an image"):
        summarise([[score], [score, score]])
