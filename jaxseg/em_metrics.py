"""The scores of the ISBI 2012 challenge (neuronal membranes in EM slices), on the host, from probabilities of "inside of a cell".

What is computed follows the challenge's published evaluation (Arganda-Carreras et al. 2015, Frontiers in Neuroanatomy 9:142, and the
behaviour of its Fiji script "Segmentation evaluation after border thinning", version of January 2016), slice by slice in 2D:

1. The proposal is thresholded: inside = probability > threshold. Its 4-connected components are the proposed cells.
2. Border thinning, of the proposal only: the cells grow into the border at equal speed (4-neighbour steps) until they meet in lines one
   pixel wide, so that the width of the border does not matter. A proposal without any inside is one cell covering the slice.
3. The label's cells are the 4-connected components of its inside, not grown. Only their pixels are compared (foreground restriction).
   With n_ij pixels in label cell i and proposed cell j, p_ij = n_ij / n, t_i = sum_j p_ij, s_j = sum_i p_ij. A pixel of the
   proposal's thin border is a cell of its own: it costs a little, as a split.
4. V_Rand = sum p_ij^2 / (0.5 sum s_j^2 + 0.5 sum t_i^2);   V_Info = I(S;T) / (0.5 H(S) + 0.5 H(T)).
5. Each is averaged over the slices at each threshold; the best threshold for the whole stack gives the score.

The pixel error is 1 - the best F-score, over the thresholds, of the inside pixels pooled over all slices: the challenge's definition
("1 - maximal F-score of pixel similarity"). The plain share of wrong pixels is beside it as `pixel_disagreement`.

Differences from the script: pixels at exactly equal distance from two cells are resolved without regard to a queue's order (beside
the lines, under 0.01 % of the pixels change cell); the label is binarised once (label > 0), not at each threshold; two identical one-cell
partitions, whose V_Info is 0/0, score 1.
"""

from collections.abc import Sequence
from typing import cast

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

from jaxseg.errors import InputError

THRESHOLDS = tuple(i / 20 for i in range(20))
"""0, 0.05 ... 0.95. (1, which nothing exceeds, would only repeat the empty proposal.) The script takes steps of 0.1."""


def em_scores(
    probabilities: Sequence[Float[np.ndarray, "h w"]],
    labels: Sequence[Int[np.ndarray, "h w"] | Bool[np.ndarray, "h w"]],
    thresholds: Sequence[float] = THRESHOLDS,
) -> dict[str, float]:
    """Challenge scores of a stack: probabilities [H,W] in 0..1 of "inside of a cell", labels [H,W] with 1 = inside, 0 = membrane.

    Returns `rand_score` (V_Rand, the challenge's ranking) and `information_score` (V_Info), both 0..1 and better higher; `pixel_error`
    and `pixel_disagreement`, better lower; and the threshold at which each is best: `rand_threshold`, `information_threshold`,
    `pixel_error_threshold`, `pixel_disagreement_threshold`. Definitions: see this module's docstring.
    """
    if not len(probabilities) or len(probabilities) != len(labels) or not len(thresholds):
        raise InputError(
            f"em_scores: got {len(probabilities)} probability maps, {len(labels)} labels and {len(thresholds)} thresholds, "
            "need as many maps as labels and at least one of each"
        )
    rand = np.zeros(len(thresholds))
    information = np.zeros(len(thresholds))
    counts = np.zeros((len(thresholds), 3), np.int64)
    for number, (probability, label) in enumerate(zip(probabilities, labels, strict=True)):
        inside = _check(number, probability, label)
        cells = _components(inside)
        for i, threshold in enumerate(thresholds):
            proposal = probability > threshold
            pairs = _contingency(cells, thin_borders(proposal))
            rand[i] += rand_score(*pairs)
            information[i] += information_score(*pairs)
            counts[i] += (proposal & inside).sum(), proposal.sum(), inside.sum()
    rand, information = rand / len(labels), information / len(labels)
    both, proposed, labelled = counts.T
    pixel_error = 1 - 2 * both / (proposed + labelled)
    disagreement = (proposed + labelled - 2 * both) / sum(label.size for label in labels)
    best = {
        "rand": int(rand.argmax()),
        "information": int(information.argmax()),
        "pixel_error": int(pixel_error.argmin()),
        "pixel_disagreement": int(disagreement.argmin()),
    }
    return {
        "rand_score": float(rand[best["rand"]]),
        "information_score": float(information[best["information"]]),
        "pixel_error": float(pixel_error[best["pixel_error"]]),
        "pixel_disagreement": float(disagreement[best["pixel_disagreement"]]),
    } | {f"{name}_threshold": float(thresholds[i]) for name, i in best.items()}


def thin_borders(inside: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
    """Cell numbers [H,W] of a binary slice, grown until they meet in lines (0) one pixel wide; no inside at all: one cell everywhere.

    What a watershed of the binary slice with 4 neighbours gives, but from one city-block distance transform, which is several times
    faster: a border pixel belongs to the nearest cell, and of two neighbours in different zones the one further from its cell, or else
    the later one, is border.
    """
    if not inside.any():
        return np.ones(inside.shape, np.int32)
    cells = _components(inside)
    found = ndimage.distance_transform_cdt(~inside, "taxicab", return_indices=True)
    distance, nearest = cast(tuple[np.ndarray, np.ndarray], found)
    zone = cells[tuple(nearest)]
    line = np.zeros(inside.shape, bool)
    for earlier, later in (((slice(None), slice(None, -1)), (slice(None), slice(1, None))), ((slice(None, -1),), (slice(1, None),))):
        meet = zone[earlier] != zone[later]
        first_is_further = distance[earlier] > distance[later]
        line[earlier] |= meet & first_is_further
        line[later] |= meet & ~first_is_further
    return np.where(line, 0, zone)


def rand_score(pairs: Int[np.ndarray, "m"], label_sizes: Int[np.ndarray, "i"], proposal_sizes: Int[np.ndarray, "j"]) -> float:
    """V_Rand from the pixel counts n_ij > 0, n_i and n_j: the F-score (alpha 0.5) of Rand precision and recall, N^2 normalisation."""
    pairs, label_sizes, proposal_sizes = (x.astype(np.float64) for x in (pairs, label_sizes, proposal_sizes))
    return float((pairs**2).sum() / (0.5 * (proposal_sizes**2).sum() + 0.5 * (label_sizes**2).sum()))


def information_score(pairs: Int[np.ndarray, "m"], label_sizes: Int[np.ndarray, "i"], proposal_sizes: Int[np.ndarray, "j"]) -> float:
    """V_Info from the pixel counts n_ij > 0, n_i and n_j: mutual information over the mean of the two entropies."""
    joint, label, proposal = (_entropy(x) for x in (pairs, label_sizes, proposal_sizes))
    # Both a single cell: the same partition, 0/0.
    return 1.0 if label + proposal == 0 else (label + proposal - joint) / (0.5 * label + 0.5 * proposal)


def _components(inside: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
    """Numbers 1.. of the 4-connected components [H,W], 0 elsewhere."""
    cells = np.empty(inside.shape, np.int32)
    ndimage.label(inside, output=cells)
    return cells


def _contingency(
    cells: Int[np.ndarray, "h w"], proposal: Int[np.ndarray, "h w"]
) -> tuple[Int[np.ndarray, "m"], Int[np.ndarray, "i"], Int[np.ndarray, "j"]]:
    """Pixel counts n_ij > 0, n_i, n_j over the label's inside; each pixel that the proposal has as border (0) is a cell of its own."""
    inside = cells > 0
    i, j = cells[inside].astype(np.int64), proposal[inside].astype(np.int64)
    alone = np.ones(np.count_nonzero(j == 0), np.int64)
    label_sizes, proposal_sizes = np.bincount(i), np.bincount(j)[1:]
    i, j = i[j > 0], j[j > 0]
    # Sparse: noise at a low threshold makes tens of thousands of cells.
    _, pairs = np.unique(i * (int(proposal.max()) + 1) + j, return_counts=True)
    return np.concatenate([pairs, alone]), label_sizes[label_sizes > 0], np.concatenate([proposal_sizes[proposal_sizes > 0], alone])


def _entropy(sizes: Int[np.ndarray, "m"]) -> float:
    p = sizes / sizes.sum()
    return float(-(p * np.log(p)).sum())


def _check(number: int, probability: np.ndarray, label: np.ndarray) -> Bool[np.ndarray, "h w"]:
    """The label as booleans, once the slice is what em_scores needs."""
    who = f"em_scores: slice {number}"
    if probability.ndim != 2 or probability.shape != label.shape:
        raise InputError(f"{who}: got probabilities {probability.shape} and label {label.shape}, need the same [H,W]")
    if not np.isin(label, (0, 1)).all():
        raise InputError(f"{who}: got label values {np.unique(label)[:8].tolist()}, need 1 = inside of a cell and 0 = membrane")
    if not label.any():
        raise InputError(f"{who}: got a label without any cell, need at least one pixel of 1 (inside); leave such a slice out")
    if not ((probability >= 0) & (probability <= 1 + 1e-5)).all():  # a float32 softmax may exceed 1 by rounding
        raise InputError(f"{who}: got probabilities {probability.min()}..{probability.max()}, need 0..1 (softmax, not logits)")
    return label.astype(bool)
