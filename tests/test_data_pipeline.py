import itertools

import numpy as np
import pytest

from jaxseg.data import channel_statistics, pipeline, train_batches
from jaxseg.errors import InputError


class Numbered(list):
    """Records whose image, label and instances all encode (record, y, x)."""

    def __init__(self, length, height=20, width=24):
        y, x = np.mgrid[:height, :width]
        for number in range(length):
            code = (number * 1000 + y * 30 + x).astype(np.int32)
            self.append({"name": str(number), "image": code[..., None].astype(np.float32), "label": code, "instances": code})


def _take(count, split, **options):
    options = {"batch_size": 3, "size": 8, "seed": 5, **options}
    return list(itertools.islice(train_batches(split, **options), count))


def test_resuming_gives_the_batches_of_the_whole_run():
    split = Numbered(7)
    whole = _take(12, split, num_threads=4)
    for start in (1, 6):
        for a, b in zip(whole[start:], _take(12 - start, split, start_step=start, num_threads=1), strict=True):
            assert a.keys() == b.keys()
            for key in a:
                np.testing.assert_array_equal(a[key], b[key])
    assert any((a["label"] != b["label"]).any() for a, b in zip(whole, _take(12, split, seed=6), strict=True))


def test_each_record_once_an_epoch_in_new_order_with_new_crops():
    split = Numbered(7)
    labels = np.concatenate([batch["label"] for batch in _take(14, split)])
    numbers = (labels[:, 0, 0] // 1000).reshape(6, 7)
    assert (np.sort(numbers, axis=1) == np.arange(7)).all()
    assert len({tuple(order) for order in numbers.tolist()}) > 3
    corners = [tuple(labels[numbers.ravel() == 0][:, 0, 0])]
    assert len(set(corners[0])) > 3


def test_image_label_and_weight_are_cut_alike():
    for batch in _take(6, Numbered(5), weight_map=lambda record: record["label"].astype(np.float32)):
        assert batch["image"].shape == (3, 8, 8, 1)
        assert batch["image"].dtype == batch["weight"].dtype == np.float32
        assert batch["label"].dtype == np.int32
        np.testing.assert_array_equal(batch["image"][..., 0], batch["label"])
        np.testing.assert_array_equal(batch["weight"], batch["label"])


def test_small_pictures_are_padded():
    split = Numbered(2, 5, 30)
    for batch in _take(2, split, batch_size=2, size=(16, 16), weight_map=lambda record: np.ones(record["label"].shape, np.float32)):
        inside = batch["label"] != 255
        assert (inside.sum((1, 2)) == 5 * 16).all()
        np.testing.assert_array_equal(batch["image"][..., 0][inside], batch["label"][inside])
        np.testing.assert_array_equal(batch["weight"], inside)
        np.testing.assert_array_equal(batch["image"][:, 4], batch["image"][:, 6])  # reflection about the first row, which is 5


def test_weight_map_runs_once_a_record():
    seen = []

    def weight_map(record):
        seen.append(record["name"])
        return np.ones(record["label"].shape, np.float32)

    _take(10, Numbered(4), weight_map=weight_map, num_threads=1)
    assert sorted(seen) == ["0", "1", "2", "3"]


def test_integers_are_scaled_to_0_1():
    for dtype in (np.uint8, np.uint16):
        record = {"name": "a", "image": np.full((8, 8, 2), np.iinfo(dtype).max, dtype), "label": np.zeros((8, 8), np.int32)}
        assert (_take(1, [record])[0]["image"] == 1).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_resizing_keeps_type_and_place(dtype, channels):
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 200, (6, 8, channels)).astype(dtype)
    image = blocks.repeat(4, 0).repeat(4, 1)
    small = pipeline.resize_image(image, 6, 8)
    assert small.dtype == dtype
    constant = pipeline.resize_image(np.full((9, 12, channels), 77, dtype), 4, 5)
    np.testing.assert_allclose(constant, 77, rtol=1e-5)
    np.testing.assert_allclose(small.mean(), image.mean(), rtol=0.05)
    label = blocks[..., 0].astype(np.int32)
    np.testing.assert_array_equal(pipeline.resize_label(label.repeat(3, 0).repeat(3, 1), 6, 8), label)
    batch = _take(1, Numbered(3, 40, 40), size=20, resize=0.5)[0]
    assert np.abs(batch["image"][..., 0] - batch["label"])[:, 2:-2, 2:-2].max() <= 16  # half a pixel: 15.5


def test_channel_statistics():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (6, 9, 9, 3), dtype=np.uint8)
    mean, std = channel_statistics([{"image": image} for image in images])
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), rtol=1e-4)
    assert mean.dtype == std.dtype == np.float32


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"size": 0}, {"start_step": -1}, {"resize": 0.0}, {"seed": -1}])
def test_numbers_out_of_range(options):
    with pytest.raises(InputError, match=next(iter(options))):
        _take(1, Numbered(2), **options)
