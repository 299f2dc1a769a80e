"""Objects of two label maps matched by IoU: average precision, panoptic quality, errors of the count.

An object is all pixels of one number above 0, connected or not. A true and a predicted object match at a threshold t >= 1/2 when their IoU
is above t: then no object matches two, since two matches of one object would share more than half of its union with each.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Integer

from jaxseg.errors import InputError

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
FINE_THRESHOLDS = tuple(n / 20 for n in range(10, 19))
"""0.5, 0.55 ... 0.9."""


class Overlaps(NamedTuple):
    """The numbers of the objects of two label maps, and of every pair that shares pixels its two places in them and its IoU."""

    objects: Int[np.ndarray, "n"]
    predicted: Int[np.ndarray, "m"]
    pairs: Int[np.ndarray, "p 2"]
    iou: Float[np.ndarray, "p"]


class Matching(NamedTuple):
    """What was counted in one image: objects, predicted objects, and at each threshold the matches (TP) and the sum of their IoUs."""

    thresholds: tuple[float, ...]
    objects: int
    predicted: int
    matches: Int[np.ndarray, "t"]
    iou: Float[np.ndarray, "t"]


def overlaps(truth: Integer[np.ndarray, "h w"], prediction: Integer[np.ndarray, "h w"]) -> Overlaps:
    """Which objects share pixels.

    Pixels that are negative in `truth` are ignored: they are cut out of both maps, and a predicted object that lies wholly in them does
    not count.

    Raises:
      InputError: not two maps of integers of one size, or a negative prediction.
    """
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    if truth.ndim != 2 or truth.shape != prediction.shape or truth.dtype.kind not in "iu" or prediction.dtype.kind not in "iu":
        raise InputError(
            f"match: got label maps {truth.shape} {truth.dtype} and {prediction.shape} {prediction.dtype}; two of integers [H,W], of one"
            " size, are required: convert or crop them."
        )
    if (prediction < 0).any():
        raise InputError(f"match: the prediction holds {prediction.min()}; 0 (background) and objects above 0 are required: correct it.")
    kept = truth >= 0
    objects, object_px, t = _objects(truth[kept])
    predicted, predicted_px, p = _objects(prediction[kept])
    both = (t >= 0) & (p >= 0)
    codes, shared = np.unique(t[both] * len(predicted) + p[both], return_counts=True)
    i, j = np.divmod(codes, max(len(predicted), 1))
    return Overlaps(objects, predicted, np.stack([i, j], -1), shared / (object_px[i] + predicted_px[j] - shared))


def match(truth: Integer[np.ndarray, "h w"], prediction: Integer[np.ndarray, "h w"], thresholds: Sequence[float] = THRESHOLDS) -> Matching:
    """Counts the objects, ignored pixels left out as in `overlaps`, and the matches at each threshold.

    Raises:
      InputError: as `overlaps`, or a threshold outside 1/2 <= t < 1.

    >>> truth, prediction = np.array([[1, 1, 1, 0, 7]]), np.array([[4, 4, 0, 0, 0]])
    >>> match(truth, prediction).matches.tolist()  # IoU 2/3; object 7 is missed
    [1, 1, 0, 0, 0]
    """
    if not thresholds or not all(0.5 <= t < 1 for t in thresholds):
        raise InputError(f"match: got thresholds {tuple(thresholds)}; required from 0.5, where matches become unique, to less than 1.")
    found = overlaps(truth, prediction)
    above = found.iou > np.array(thresholds)[:, None]
    return Matching(tuple(thresholds), len(found.objects), len(found.predicted), above.sum(1), (above * found.iou).sum(1))


def scores(matchings: Sequence[Matching]) -> dict[str, Any]:
    """The scores of one image, or of a set: objects are added up over its images, so that images count by their objects.

    * `matches` TP and `ap`, at each of `thresholds`: average precision TP / (TP + FP + FN); `ap50` is that at 0.5 and `mean_ap` the mean
      of the list.
    * `pq` = `sq` x `rq`, panoptic quality at 0.5: the mean IoU of the matches times TP / (TP + FP/2 + FN/2).
    * `count_error`: mean over the images of |predicted - true objects|; `count_bias`: of the difference, predicted - true.
    * `image_ap50`: the mean over the images of their own AP at 0.5, images that have no object and none predicted left out.

    What has nothing to count is nan: AP and PQ where no image has an object and none is predicted, `sq` where nothing matches.

    Source: AP as in the Data Science Bowl 2018 and Schmidt et al. 2018; panoptic quality: Kirillov et al. 2019, eq. 1.

    Raises:
      InputError: no images, or matched at different thresholds, or not at 0.5.
    """
    thresholds = {m.thresholds for m in matchings}
    if len(thresholds) != 1 or 0.5 not in (shared := thresholds.pop()):
        raise InputError(f"scores: got {len(matchings)} images; at least one, all matched at the same thresholds with 0.5, is required.")
    at50 = shared.index(0.5)
    objects, predicted = (np.array([getattr(m, name) for m in matchings]) for name in ("objects", "predicted"))
    matches, iou = (np.array([getattr(m, name) for m in matchings]) for name in ("matches", "iou"))
    either = objects + predicted
    ap = _ratio(matches.sum(0), either.sum() - matches.sum(0))
    tp = matches[:, at50].sum()
    image_ap = _ratio(matches[:, at50], either - matches[:, at50])
    return {
        "thresholds": list(shared),
        "matches": matches.sum(0).tolist(),
        "ap": ap.tolist(),
        "ap50": float(ap[at50]),
        "mean_ap": float(ap.mean()),
        "pq": float(_ratio(2 * iou[:, at50].sum(), either.sum())),
        "sq": float(_ratio(iou[:, at50].sum(), tp)),
        "rq": float(_ratio(2 * tp, either.sum())),
        "image_ap50": float(image_ap[either > 0].mean()) if either.any() else float("nan"),
        "count_error": float(abs(predicted - objects).mean()),
        "count_bias": float((predicted - objects).mean()),
        "objects": int(objects.sum()),
        "predicted": int(predicted.sum()),
    }


def finite(value: Any) -> Any:
    """A score as JSON has it: None for nan, also in lists."""
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def _objects(label: Integer[np.ndarray, "n"]) -> tuple[Int[np.ndarray, "k"], Int[np.ndarray, "k"], Int[np.ndarray, "n"]]:
    """The numbers of the objects and their pixels, and of each pixel its object 0..k-1, or -1 in the background."""
    numbers, which, counts = np.unique(label, return_inverse=True, return_counts=True)
    ground = int(len(numbers) > 0 and numbers[0] == 0)
    return numbers[ground:], counts[ground:], which - ground


def _ratio(part: Any, whole: Any) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0)
