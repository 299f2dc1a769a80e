import numpy as np
from scipy import ndimage

from jaxseg.data import cells


def test_same_seed_same_picture_and_other_seed_another():
    one, two = (cells.listing(3) for _ in range(2))
    a, b = one.read(one.splits["val"][7]), two.read(two.splits["val"][7])
    for key in ("image", "label", "instances"):
        np.testing.assert_array_equal(a[key], b[key])
    others = [cells.listing(4).read(cells.listing(4).splits["val"][7]), one.read(one.splits["test"][7]), one.read(one.splits["val"][8])]
    assert all((a["image"] != other["image"]).any() for other in others)


def test_sizes_and_types():
    listing = cells.listing()
    assert {split: len(items) for split, items in listing.splits.items()} == {"train": 300, "val": 50, "test": 100}
    record = listing.read(listing.splits["train"][0])
    assert record["image"].shape == (256, 256, 1)
    assert record["image"].dtype == np.uint8
    assert record["label"].dtype == record["instances"].dtype == np.int32


def test_labels_agree_with_instances():
    listing = cells.listing()
    for item in listing.splits["train"][:5]:
        record = listing.read(item)
        instances, label = record["instances"], record["label"]
        assert set(np.unique(label)) == {0, 1, 2}
        np.testing.assert_array_equal(np.unique(instances), np.arange(instances.max() + 1))
        for number in range(1, instances.max() + 1):
            assert ndimage.label(instances == number)[1] == 1
        assert (instances[label == 1] > 0).all()
        assert (instances[label == 0] == 0).all()
        inner, _ = ndimage.label(label == 1)  # the border parts all nuclei: no inner region has two of them
        for region, box in enumerate(ndimage.find_objects(inner), start=1):
            assert len(np.unique(instances[box][inner[box] == region])) == 1


def test_border_is_two_pixels_to_either_side():
    y, x = np.mgrid[:60, :60]
    instances = np.where(np.hypot(y - 30, x - 20) < 12, 1, np.where(np.hypot(y - 30, x - 43) < 11, 2, 0)).astype(np.int32)
    label = cells.border_label(instances)
    # the definition, by brute force: another instance within a Euclidean distance of 2
    expected = (instances > 0).astype(np.int32)
    for number in (0, 1, 2):
        distance = ndimage.distance_transform_edt(instances == number)
        expected[(instances == number) & (distance <= 2)] = 2
    np.testing.assert_array_equal(label, expected)
    assert (label[30] == 2).sum() >= 3 * 4
    tiny = np.array([[0, 1]], np.int32)
    np.testing.assert_array_equal(cells.border_label(tiny), [[2, 2]])


def test_one_threshold_is_not_enough():
    listing = cells.listing()
    confusion = np.zeros((3, 3), int)
    for item in listing.splits["test"][:8]:
        record = listing.read(item)
        predicted = cells.otsu_baseline(record["image"])
        confusion += np.bincount(3 * record["label"].ravel() + predicted.ravel(), minlength=9).reshape(3, 3)
    iou = np.diag(confusion) / (confusion.sum(0) + confusion.sum(1) - np.diag(confusion))
    assert 0.4 < iou.mean() < 0.72
