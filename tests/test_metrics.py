"""Laws of the confusion matrix and of the scores read off it."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.errors import InputError
from jaxseg.metrics import confusion_matrix, scores

_matrix = jax.jit(confusion_matrix, static_argnames=("num_classes", "ignore_index"))


def _set(seed=0, shape=(6, 9, 7), k=5, ignored=0.2):
    r = np.random.default_rng(seed)
    label = r.integers(0, k, shape).astype(np.int32)
    prediction = np.where(r.random(shape) < 0.6, label, r.integers(0, k, shape)).astype(np.int32)
    label[r.random(shape) < ignored] = 255
    return jnp.array(label), jnp.array(prediction)


@pytest.mark.parametrize("k", [1, 2, 3, 11, 150])
def test_equals_counting_one_by_one(k):
    label, prediction = _set(k=k)
    expected = np.zeros((k, k), int)
    for row, column in zip(np.asarray(label).ravel(), np.asarray(prediction).ravel(), strict=True):
        if row != 255:
            expected[row, column] += 1
    got = _matrix(label, prediction, num_classes=k)
    assert got.dtype == jnp.int32
    np.testing.assert_array_equal(got, expected)


def test_any_split_of_the_set_gives_the_same_matrix():
    label, prediction = _set()
    whole = np.asarray(_matrix(label, prediction, num_classes=5))
    for cuts in ([1, 2, 3, 4, 5], [2]):
        parts = zip(np.split(label, cuts), np.split(prediction, cuts), strict=True)
        np.testing.assert_array_equal(sum(np.asarray(_matrix(a, b, num_classes=5), np.int64) for a, b in parts), whole)
    each = jax.jit(jax.vmap(lambda a, b: confusion_matrix(a, b, num_classes=5)))(label, prediction)
    np.testing.assert_array_equal(each.sum(0), whole)


def test_padding_of_the_last_batch_does_not_count():
    label, prediction = _set()
    whole = _matrix(label[:4], prediction[:4], num_classes=5)
    by_image = jnp.arange(6) < 4
    np.testing.assert_array_equal(_matrix(label, prediction, num_classes=5, valid=by_image), whole)
    by_pixel = jnp.broadcast_to(by_image[:, None, None], label.shape)
    np.testing.assert_array_equal(_matrix(label, prediction, num_classes=5, valid=by_pixel), whole)
    # Padding may hold anything.
    np.testing.assert_array_equal(_matrix(label.at[4:].set(-7), prediction.at[4:].set(99), num_classes=5, valid=by_image), whole)


def test_ignored_pixels_count_neither_in_a_row_nor_in_a_column():
    label, prediction = _set()
    whole = _matrix(label, prediction, num_classes=5)
    assert whole.sum() == (label != 255).sum()
    for elsewhere in (0, 4, 255, -1):
        np.testing.assert_array_equal(_matrix(label, jnp.where(label == 255, elsewhere, prediction), num_classes=5), whole)
    # Ignoring a class number empties its row and leaves the other rows alone.
    filled = jnp.where(label == 255, 3, label)
    without = _matrix(filled, prediction, num_classes=5, ignore_index=3)
    np.testing.assert_array_equal(without[3], 0)
    np.testing.assert_array_equal(np.delete(without, 3, 0), np.delete(whole, 3, 0))


def test_permuting_the_classes_permutes_the_matrix_and_keeps_the_scores():
    label, prediction = _set()
    order = np.array([3, 0, 4, 1, 2])
    renamed = jnp.where(label == 255, 255, jnp.array(order)[jnp.minimum(label, 4)])
    a = np.asarray(_matrix(label, prediction, num_classes=5))
    b = np.asarray(_matrix(renamed, jnp.array(order)[prediction], num_classes=5))
    np.testing.assert_array_equal(b[np.ix_(order, order)], a)
    assert scores(a)["miou"] == pytest.approx(scores(b)["miou"], rel=1e-12)


@pytest.mark.parametrize("wrong", [-1, 5, 254, 2**31 - 1])
def test_an_illegal_class_number_is_never_silent(wrong):
    label, prediction = _set(ignored=0)
    clean = np.asarray(_matrix(label, prediction, num_classes=5), np.int64)
    for bad in (
        _matrix(label, prediction.at[0, 0, 0].set(wrong), num_classes=5),
        _matrix(label.at[0, 0, 0].set(wrong), prediction, num_classes=5),
    ):
        total = 1000 * clean + np.asarray(bad, np.int64)
        assert (total < 0).any()
        with pytest.raises(InputError, match=r"outside 0\.\.4"):
            scores(total)


def test_narrow_label_types_do_not_wrap():
    label, prediction = _set(k=150)
    expected = _matrix(label, prediction, num_classes=150)
    np.testing.assert_array_equal(_matrix(label.astype(jnp.uint8), prediction.astype(jnp.uint8), num_classes=150), expected)


def test_counts_above_2_to_the_24_are_exact():
    label = jnp.zeros((1, 4097, 4097), jnp.uint8)
    assert _matrix(label, label, num_classes=2)[0, 0] == 4097**2  # odd and > 2^24: float32 cannot hold it


def test_wrong_shapes_and_types_are_refused():
    label, prediction = _set()
    for args, kwargs in (
        ((label, prediction[:2]), {}),
        ((label, jnp.zeros((*label.shape, 5))), {}),
        ((label, prediction.astype(jnp.float32)), {}),
        ((label, prediction), {"valid": jnp.ones(5, bool)}),
        ((label, prediction), {"num_classes": 0}),
    ):
        with pytest.raises(InputError, match="confusion_matrix"):
            confusion_matrix(*args, **{"num_classes": 5, **kwargs})
    for bad in (np.zeros((2, 3), int), np.zeros((2, 2))):
        with pytest.raises(InputError, match="scores"):
            scores(bad)
    with pytest.raises(InputError, match="class names"):
        scores(np.eye(2, dtype=int), ["one"])


def test_scores_equal_sets_of_pixels():
    label, prediction = (np.asarray(x) for x in _set())
    got = scores(np.asarray(_matrix(label, prediction, num_classes=5)))
    label, prediction = label[label != 255], prediction[label != 255]
    iou, dice, accuracy, share = [], [], [], []
    for k in range(5):
        a, b = label == k, prediction == k
        iou.append((a & b).sum() / (a | b).sum())
        dice.append(2 * (a & b).sum() / (a.sum() + b.sum()))
        accuracy.append((a & b).sum() / a.sum())
        share.append(a.mean())
    for name, expected in {
        "iou": iou,
        "dice": dice,
        "class_accuracy": accuracy,
        "miou": np.mean(iou),
        "mean_dice": np.mean(dice),
        "mean_class_accuracy": np.mean(accuracy),
        "pixel_accuracy": (label == prediction).mean(),
        "frequency_weighted_iou": np.dot(iou, share),
    }.items():
        np.testing.assert_allclose(got[name], expected, rtol=1e-12, err_msg=name)


def test_scores_equal_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed: scores are not compared with it")
    label, prediction = (np.asarray(x) for x in _set())
    matrix = np.asarray(_matrix(label, prediction, num_classes=5))
    label, prediction = label[label != 255], prediction[label != 255]
    np.testing.assert_array_equal(matrix, metrics.confusion_matrix(label, prediction))
    got = scores(matrix)
    np.testing.assert_allclose(got["iou"], metrics.jaccard_score(label, prediction, average=None), rtol=1e-12)
    np.testing.assert_allclose(got["dice"], metrics.f1_score(label, prediction, average=None), rtol=1e-12)
    np.testing.assert_allclose(got["mean_class_accuracy"], metrics.balanced_accuracy_score(label, prediction), rtol=1e-12)


def test_a_class_with_an_empty_union_is_nan_and_left_out():
    matrix = np.array([[6, 2, 0, 0], [0, 4, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    got = scores(matrix, list("abcd"))
    np.testing.assert_allclose(got["iou"], [6 / 8, 4 / 6, np.nan, np.nan])
    assert got["miou"] == pytest.approx((6 / 8 + 4 / 6) / 2)
    assert got["class_names"] == list("abcd")
    # Predicted but never labelled: the union is not empty, so it counts as 0; its accuracy is undefined.
    matrix[0, 2] = 1
    got = scores(matrix)
    assert got["iou"][2] == 0
    assert got["miou"] == pytest.approx((6 / 9 + 4 / 6) / 3)
    assert math.isnan(got["class_accuracy"][2])
    assert got["mean_class_accuracy"] == pytest.approx((6 / 9 + 1) / 2)


def test_an_empty_set_is_nan_throughout_and_json_safe_on_request():
    empty = np.zeros((2, 2), np.int64)
    assert all(np.isnan(v).all() for v in scores(empty).values())
    safe = scores(empty, ["a", "b"], json_safe=True)
    assert json.loads(json.dumps(safe, allow_nan=False)) == safe
    assert safe["miou"] is None
    assert safe["iou"] == [None, None]


def test_counts_larger_than_int32_are_scored():
    got = scores(np.array([[2**40, 0], [2**40, 2**41]]))
    assert got["pixel_accuracy"] == 0.75
    assert got["iou"] == pytest.approx([0.5, 2 / 3])
