"""Matching of label maps against brute force over all pairs, and against scipy's optimal assignment."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from jaxseg.errors import InputError
from jaxseg.instances.matching import FINE_THRESHOLDS, THRESHOLDS, finite, match, overlaps, scores

RNG = np.random.default_rng(0)


def maps(size=24, n=9, shift=2):
    """Random boxes with large, gappy numbers, and a disturbed copy of them under other numbers; some true pixels are ignored."""
    truth, prediction = np.zeros((2, size, size), np.int64)
    for number in RNG.choice(60_000, n, replace=False) + 1:
        y, x = RNG.integers(0, size - 5, 2)
        h, w = RNG.integers(3, 10, 2)
        truth[y : y + h, x : x + w] = number
        y, x, h, w = np.maximum(np.array([y, x, h, w]) + RNG.integers(-shift, shift + 1, 4), [0, 0, 2, 2])
        prediction[y : y + h, x : x + w] = RNG.integers(1, 2**40)
    truth[RNG.random(truth.shape) < 0.05] = -1
    return truth, prediction


def brute(truth, prediction):
    """Exact IoU of every pair of objects, as fractions."""
    seen = truth != -1
    t_numbers = sorted(set(truth[seen].tolist()) - {0})
    p_numbers = sorted(set(prediction[seen].tolist()) - {0})
    table = np.array([[Fraction(0)] * len(p_numbers) for _ in t_numbers], object).reshape(len(t_numbers), len(p_numbers))
    for i, t in enumerate(t_numbers):
        for j, p in enumerate(p_numbers):
            a, b = (truth == t) & seen, (prediction == p) & seen
            table[i, j] = Fraction(int((a & b).sum()), int((a | b).sum()))
    return table


@pytest.mark.parametrize("trial", range(20))
def test_equals_brute_force_and_the_optimal_assignment(trial):
    truth, prediction = maps(n=1 + trial % 10, shift=trial % 3)
    table = brute(truth, prediction)
    got = match(truth, prediction, FINE_THRESHOLDS)
    assert (got.objects, got.predicted) == table.shape
    for threshold, matches, iou in zip(FINE_THRESHOLDS, got.matches, got.iou, strict=True):
        above = table > Fraction(str(threshold))
        assert (above.sum(0) <= 1).all()  # unique from one half on
        assert (above.sum(1) <= 1).all()
        assert matches == above.sum()
        assert iou == pytest.approx(float(table[above].sum()))
        rows, columns = linear_sum_assignment(above.astype(int), maximize=True)
        assert matches == above[rows, columns].sum()


def test_exactly_at_a_threshold_is_no_match():
    for t in FINE_THRESHOLDS:
        n = round(20 * t)
        truth = np.ones((1, 20), int)
        prediction = (np.arange(20) < n).astype(int)[None]
        assert match(truth, prediction, (t,)).matches.tolist() == [0], t
        assert match(truth, prediction, (t - 1e-9,) if t > 0.5 else (0.5,)).matches.tolist() == [int(t > 0.5)]


def test_two_halves_of_an_object_are_no_match():
    assert match(np.ones((1, 4), int), np.array([[1, 1, 2, 2]]), (0.5,)).matches.tolist() == [0]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_any_integer_type_and_any_numbers(dtype):
    truth, prediction = maps()
    truth = np.maximum(truth, 0)
    few = [np.unique(m, return_inverse=True)[1].reshape(m.shape) for m in (truth, prediction)]
    last = np.iinfo(dtype).max - 20
    gappy = [np.where(m > 0, m.astype(np.int64) + int(last % 2**62) - 20, 0).astype(dtype) for m in few]
    want, got = match(few[0], few[1]), match(gappy[0], gappy[1])
    np.testing.assert_array_equal(got.matches, want.matches)
    np.testing.assert_allclose(got.iou, want.iou)


def test_a_set_is_the_sum_of_its_images_and_equals_them_side_by_side():
    pairs = [maps() for _ in range(5)]
    both = [np.concatenate([np.where(m > 0, m + k * 2**41, m) for k, m in enumerate(side)], 1) for side in zip(*pairs, strict=True)]
    whole, one = scores([match(*pair) for pair in pairs]), scores([match(both[0], both[1])])
    for name in ("matches", "ap", "ap50", "mean_ap", "pq", "sq", "rq", "objects", "predicted"):
        np.testing.assert_allclose(whole[name], one[name], err_msg=name)
    differences = [len(overlaps(*pair).predicted) - len(overlaps(*pair).objects) for pair in pairs]
    assert whole["count_error"] == pytest.approx(np.mean(np.abs(differences)))
    assert whole["count_bias"] == pytest.approx(np.mean(differences))
    assert whole["image_ap50"] == pytest.approx(np.mean([scores([match(*pair)])["ap50"] for pair in pairs]))


def test_the_formulas():
    truth = np.array([[1, 1, 1, 1, 0, 2, 2, 0, 3, 3]])
    prediction = np.array([[5, 5, 5, 0, 0, 9, 9, 0, 0, 0]])
    got = scores([match(truth, prediction, (0.5, 0.75))])  # IoU 3/4 and 1; one missed
    assert got["ap"] == [pytest.approx(2 / 3), pytest.approx(1 / 4)]
    assert got["mean_ap"] == pytest.approx((2 / 3 + 1 / 4) / 2)
    assert got["sq"] == pytest.approx(1.75 / 2)
    assert got["rq"] == pytest.approx(2 / 2.5)
    assert got["pq"] == pytest.approx(got["sq"] * got["rq"])
    assert (got["objects"], got["predicted"], got["count_error"], got["count_bias"]) == (3, 2, 1.0, -1.0)


def test_empty_maps():
    none, one = np.zeros((3, 3), int), np.eye(3, dtype=int)
    nothing = scores([match(none, none)])
    assert all(math.isnan(nothing[name]) for name in ("ap50", "mean_ap", "pq", "sq", "rq", "image_ap50"))
    assert nothing["count_error"] == 0
    for pair in ((none, one), (one, none)):
        got = scores([match(*pair)])
        assert (got["ap50"], got["pq"], got["rq"], got["count_error"]) == (0, 0, 0, 1)
        assert math.isnan(got["sq"])
    assert scores([match(none, none), match(one, one)])["image_ap50"] == 1  # the image with nothing in it has no say
    assert scores([match(np.ones((1, 1), int), np.ones((1, 1), int))])["pq"] == 1
    assert match(np.zeros((0, 0), int), np.zeros((0, 0), int)).objects == 0


def test_ignored_pixels_count_nowhere():
    truth = np.array([[-1, -1, 1, 1, -1, 0]])
    prediction = np.array([[7, 4, 4, 4, 4, 0]])
    got = overlaps(truth, prediction)
    assert (got.objects.tolist(), got.predicted.tolist(), got.iou.tolist()) == ([1], [4], [1.0])


def test_bad_input_is_said():
    one = np.ones((2, 2), int)
    for wrong, said in [
        (lambda: match(one, one[:1]), "one size"),
        (lambda: match(one, one.astype(float)), "integers"),
        (lambda: match(one[None], one[None]), r"\[H,W\]"),
        (lambda: match(one, -one), "prediction holds -1"),
        (lambda: match(one, one, (0.4,)), "0.5"),
        (lambda: match(one, one, (1.0,)), "less than 1"),
        (lambda: match(one, one, ()), "thresholds"),
        (lambda: scores([]), "0 images"),
        (lambda: scores([match(one, one), match(one, one, (0.5,))]), "same thresholds"),
        (lambda: scores([match(one, one, (0.75,))]), "0.5"),
    ]:
        with pytest.raises(InputError, match=said):
            wrong()


def test_scores_are_json():
    assert finite([1.0, math.nan, 2, [math.nan]]) == [1.0, None, 2, [None]]
    assert FINE_THRESHOLDS[::2] == THRESHOLDS
