"""The scores of BSDS500 for a segmentation beside several people's: covering, Rand index, variation of information, boundary F.

They follow the benchmark's own programs, checked on the files that come with them (tests/test_region_metrics.py); no JAX. With
n_ij pixels in region i of the segmentation and region j of one person's, and N in all:

* covering: the areas' mean, over all regions of all people, of the best n_ij / (n_i + n_j - n_ij);
* probabilistic Rand index: the share of pairs of pixels that both put together or both apart, the mean over the people. It is
  1 - (sum n_i^2 / 2 + sum n_j^2 / 2 - sum n_ij^2) / (N (N - 1) / 2): the N / 2, N / 2 and -N by which pairs differ from squares cancel;
* variation of information: H(S) + H(T) - 2 I(S;T) in bits, the mean over the people;
* boundary F: boundary pixels matched one to one, at most 0.0075 of the diagonal apart, with each person's.

Source: Arbelaez, Maire, Fowlkes, Malik 2011, Contour Detection and Hierarchical Image Segmentation, PAMI 33(5), section 2.3.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Integer
from scipy import sparse
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.spatial import KDTree
from skimage.morphology import thin

from jaxseg.errors import InputError


class RegionScores(NamedTuple):
    """One segmentation of an image beside all people's: `best_iou` and `area` [R] of their regions, one person after the other."""

    best_iou: Float[np.ndarray, "r"]
    area: Int[np.ndarray, "r"]
    rand_index: float
    variation_of_information: float

    @property
    def covering(self) -> float:
        """Of the people's regions by the segmentation's, 0..1."""
        return float(np.average(self.best_iou, weights=self.area))


class Optimum(NamedTuple):
    """A score over a data set: at the one best parameter (`ods`, whose number is `index`), and at each image's best (`ois`)."""

    ods: float
    ois: float
    index: int


class Summary(NamedTuple):
    """The scores over a data set; `best_covering` takes each of the people's regions with its best match over all parameters."""

    covering: Optimum
    rand_index: Optimum
    variation_of_information: Optimum
    best_covering: float


def region_scores(label: Integer[np.ndarray, "h w"], truths: Sequence[Integer[np.ndarray, "h w"]]) -> RegionScores:
    """Scores of a label map [H,W] beside the people's [H,W] of the same image; the numbers of the regions do not matter."""
    if not len(truths):
        raise InputError("region_scores: got no truth to compare with; at least one label map is required")
    ious, areas, rands, variations = [], [], [], []
    regions = _numbered(label)
    for number, truth in enumerate(truths):
        if truth.shape != label.shape or label.ndim != 2:
            raise InputError(
                f"region_scores: got a segmentation {label.shape} and truth {number} {truth.shape}; both must be [H,W], of one size"
            )
        people = _numbered(truth)
        width = int(people.max()) + 1
        pairs, n = _counts(regions * width + people)
        rows, columns, total = pairs // width, pairs % width, label.size
        n_label, n_truth = np.bincount(rows, n), np.bincount(columns, n)
        best = np.zeros(len(n_truth))
        np.maximum.at(best, columns, n / (n_label[rows] + n_truth[columns] - n))
        ious.append(best)
        areas.append(n_truth.astype(np.int64))
        apart = ((n_label**2).sum() + (n_truth**2).sum()) / 2 - (n**2).sum()
        rands.append(1 - apart / max(total * (total - 1) / 2, 1))
        variations.append((2 * _surprise(n) - _surprise(n_label) - _surprise(n_truth)) / total)
    return RegionScores(np.concatenate(ious), np.concatenate(areas), float(np.mean(rands)), float(np.mean(variations)))


def summarise(images: Sequence[Sequence[RegionScores]]) -> Summary:
    """Of scores [image][parameter]; an image counts by its people's pixels for the covering, and once for the other two."""
    if not len(images) or len({len(scores) for scores in images}) != 1 or not len(images[0]):
        got = [len(scores) for scores in images]
        raise InputError(f"summarise: got {got} parameters an image; equally many of each, one at least, are required")
    weights = np.array([scores[0].area.sum() for scores in images], float)
    covering = np.array([[score.covering for score in scores] for scores in images])
    rand = np.array([[score.rand_index for score in scores] for scores in images])
    variation = np.array([[score.variation_of_information for score in scores] for scores in images])
    best = [np.average(np.max([score.best_iou for score in scores], 0), weights=scores[0].area) for scores in images]
    return Summary(
        _optimum(covering, weights),
        _optimum(rand, np.ones(len(images))),
        _optimum(-variation, np.ones(len(images)), -1),
        float(np.average(best, weights=weights)),
    )


def _optimum(scores: Float[np.ndarray, "images parameters"], weights: Float[np.ndarray, "images"], sign: int = 1) -> Optimum:
    means = np.average(scores, 0, weights)
    return Optimum(sign * float(means.max()), sign * float(np.average(scores.max(1), 0, weights)), int(means.argmax()))


def _numbered(label: Integer[np.ndarray, "h w"]) -> Int[np.ndarray, "p"]:
    """The regions' numbers from 0 on, without large gaps, pixel after pixel."""
    low, high = int(label.min()), int(label.max())
    return label.ravel().astype(np.int64) - low if high - low < label.size else np.unique(label, return_inverse=True)[1].ravel()


def _counts(numbers: Int[np.ndarray, "p"]) -> tuple[Int[np.ndarray, "k"], Float[np.ndarray, "k"]]:
    """The numbers there are, and how often."""
    if numbers.max() < 16 * len(numbers):  # ten times as fast as sorting
        n = np.bincount(numbers)
        found = np.flatnonzero(n)
        return found, n[found].astype(float)
    found, n = np.unique(numbers, return_counts=True)
    return found, n.astype(float)


def _surprise(n: Float[np.ndarray, "k"]) -> float:
    """N times the entropy in bits of a partition with these many pixels, N their sum."""
    n = n[n > 0]
    return float(n.sum() * np.log2(n.sum()) - (n * np.log2(n)).sum())


class BoundaryCounts(NamedTuple):
    """Boundary pixels, matched and in all: of the people (summed over them) and of the segmentation (matched with any of them)."""

    truth_matched: int
    truth: int
    label_matched: int
    label: int

    @property
    def recall(self) -> float:
        return self.truth_matched / max(self.truth, 1)

    @property
    def precision(self) -> float:
        return self.label_matched / max(self.label, 1)

    @property
    def f(self) -> float:
        return 2 * self.precision * self.recall / max(self.precision + self.recall, 1e-300)


def boundaries(label: Integer[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The pixels at whose lower right corner, or in the last row or column at whose edge, two regions meet; thinned to one pixel."""
    padded = np.pad(label, ((0, 1), (0, 1)), mode="edge")
    here, right, below, beyond = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return thin((here != right) | (here != below) | (beyond != right) | (beyond != below))


def boundary_counts(
    boundary: Bool[np.ndarray, "h w"], truths: Sequence[Bool[np.ndarray, "h w"]], *, tolerance: float = 0.0075
) -> BoundaryCounts:
    """Matches the boundary pixels with each person's; `tolerance` is in diagonals of the image.

    The matching has as many pairs as can be, and of those the smallest sum of distances. The benchmark's program solves the same
    problem with random edges in place of the penalty for a pixel without a partner; its own runs differ by some 1e-4 in F.
    """
    reach = tolerance * np.hypot(*boundary.shape)
    matched, of_truth, all_truth = np.zeros(np.count_nonzero(boundary), bool), 0, 0
    points = np.argwhere(boundary)
    for truth in truths:
        others = np.argwhere(truth)
        all_truth += len(others)
        if len(points) and len(others):
            pairs = _match(points, others, reach)
            matched[pairs] = True
            of_truth += len(pairs)
    return BoundaryCounts(of_truth, all_truth, int(matched.sum()), len(points))


def _match(points: Int[np.ndarray, "n 2"], others: Int[np.ndarray, "m 2"], reach: float) -> Int[np.ndarray, "k"]:
    """Which of the points have a partner, one to one and at most `reach` apart."""
    near = KDTree(points).sparse_distance_matrix(KDTree(others), reach + 1e-9, output_type="coo_matrix")
    outlier = 100 * reach + 1
    n, m = near.shape
    alone = np.arange(n)  # beside the others, each point may take a column of its own, at the price of an outlier
    rows, columns = np.concatenate([near.row, alone]), np.concatenate([near.col, m + alone])
    costs = np.concatenate([near.data + 1e-3, np.full(n, outlier)])  # an explicit 0 would be no edge
    chosen, partner = min_weight_full_bipartite_matching(sparse.csr_array((costs, (rows, columns)), shape=(n, m + n)))
    return chosen[partner < m]
