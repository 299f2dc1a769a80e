"""`check` finds every fault of every sample; `contact_sheet` shows any kind of image."""

import os
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from jaxseg.data.check import Report, check, median_frequency_weights, print_report
from jaxseg.data.classes_csv import code
from jaxseg.data.dataset import Dataset
from jaxseg.data.images import read_image, read_label
from jaxseg.data.listing import DataInfo, Item, Listing
from jaxseg.data.show import contact_sheet
from jaxseg.errors import InputError
from jaxseg.pictures import default_colours, to_rgb

INFO = DataInfo("tiny", ("ground", "cell", "edge"), 1, default_colours(3))


def sample(name: str, seed: int, **changes) -> dict:
    image = np.random.default_rng(seed).random((4, 6, 1)).astype(np.float32)
    return {"name": name, "image": image, "label": np.resize(np.array([0, 1, 2], np.int32), (4, 6)), **changes}


def listing(info: DataInfo = INFO, **splits) -> Listing:
    """Records as items; a string instead of a record is the message of the InputError that reading it raises."""

    def read(item):
        if isinstance(item.key, str):
            raise InputError(item.key)
        return item.key

    items = {split: [Item("broken" if isinstance(r, str) else r["name"], r) for r in records] for split, records in splits.items()}
    return Listing(info, items, read)


def look(*args, **splits) -> Report:
    return check(listing(*args, **splits), progress=False)


def texts(findings) -> str:
    return "\n".join(map(str, findings))


def test_a_good_set_has_nothing(capsys):
    report = check(listing(train=[sample("a", 1), sample("b", 2)], test=[sample("c", 3)]))
    assert report.ok
    assert (report.faults, report.warnings) == ((), ())
    assert report.lengths == {"train": 2, "test": 1}
    np.testing.assert_array_equal(report.pixels["train"], [16, 16, 16])
    np.testing.assert_allclose(report.frequencies(), 1 / 3)
    np.testing.assert_allclose(report.weights, 1)
    assert capsys.readouterr().out == ""  # the bar is on standard error


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"image": np.zeros((5, 6, 1), np.uint8)}, ("(5, 6)", "(4, 6)", "same size")),
        ({"image": np.arange(72, dtype=np.uint8).reshape(4, 6, 3)}, ("(4, 6, 3)", "[H,W,1]", "convert")),
        ({"label": np.full((4, 6), 3, np.int32)}, ("values 3;", "0..2", "correct")),
        ({"label": np.full((4, 6), -1, np.int32)}, ("values -1;", "0..2")),
        ({"label": np.full((4, 6), 300, np.int32)}, ("values 300;", "0..2")),
        ({"image": np.full((4, 6, 1), np.nan, np.float32)}, ("24 values that are NaN", "replace")),
        ({"instances": np.zeros((3, 3), np.int32)}, ("instance map", "(3, 3)", "export")),
    ],
)
def test_faults_name_the_sample_and_the_remedy(changes, parts):
    report = look(train=[sample("good", 1), sample("bad", 2, **changes)])
    assert not report.ok
    assert all(f.split == "train" and f.name == "bad" for f in report.faults)
    assert all(part in texts(report.faults) for part in parts)


def test_all_faults_are_found_not_only_the_first():
    bad = sample("two", 2, image=np.full((5, 6, 2), np.inf, np.float32), label=np.full((4, 6), 9, np.int32))
    report = look(train=["a.png: damaged", sample("one", 1), bad], test=["b.png: damaged", sample("three", 3)])
    assert [f.name for f in report.faults] == ["broken", "two", "two", "two", "two", "broken"]
    assert "train/broken: a.png: damaged" in texts(report.faults)
    assert "test/broken: b.png: damaged" in texts(report.faults)
    assert report.lengths == {"train": 3, "test": 2}


def test_mixed_types_and_floats_outside_0_to_1():
    small = np.arange(24, dtype=np.uint8).reshape(4, 6, 1)
    report = look(train=[sample("a", 1)], test=[sample("b", 2), sample("c", 3, image=small)])
    assert [(f.split, f.name) for f in report.faults] == [("test", "c")]
    assert all(part in texts(report.faults) for part in ("uint8", "train/a is float32", "convert"))
    report = look(train=[sample("a", 1), sample("b", 2, image=small.astype(np.float32))])
    assert [f.name for f in report.faults] == ["b"]
    assert all(part in texts(report.faults) for part in ("0..23", "0..1 is required", "scale"))


def test_absent_class():
    report = look(train=[sample("a", 1, label=np.zeros((4, 6), np.int32))], test=[sample("b", 2)])
    assert [f.name for f in report.faults] == ["", ""]
    assert "class 1 (cell) has no pixel" in texts(report.faults)
    assert "add images" in texts(report.faults)
    assert report.weights.tolist() == [1, 0, 0]


def test_no_training_split():
    assert "training needs one" in texts(look(test=[sample("a", 1)]).faults)


def test_doubled_name_in_a_split_is_a_fault_and_in_two_splits_a_warning():
    report = look(train=[sample("a", 1), sample("a", 2)])
    assert "2 samples have the name a" in texts(report.faults)
    assert "rename" in texts(report.faults)
    report = look(train=[sample("a", 1)], val=[sample("a", 2)])
    assert report.ok
    assert "train/a: val has a sample of the same name" in texts(report.warnings)


def test_the_same_image_in_two_splits_is_a_warning():
    report = look(train=[sample("a", 1), sample("b", 2)], test=[sample("c", 2)])
    assert report.ok
    assert "train/b: the same image" in texts(report.warnings)
    assert "test/c" in texts(report.warnings)


def test_constant_images_and_ignored_labels_are_warnings():
    void = np.full((4, 6), 255, np.int32)
    report = look(train=[sample("a", 1), sample("dark", 2, image=np.zeros((4, 6, 1), np.float32)), sample("void", 3, label=void)])
    assert report.ok
    assert "train/dark: every value of the image is 0" in texts(report.warnings)
    assert "train/void: every pixel of the label is ignored" in texts(report.warnings)
    assert report.ignored == {"train": 24}


def test_ignored_pixels_are_in_no_class_but_in_the_size_of_the_image():
    info = DataInfo("tiny", ("a", "b"), 1, default_colours(2))

    def row(name, *label):
        return sample(name, 1, image=np.arange(len(label), dtype=np.uint8).reshape(1, -1, 1), label=np.array([label], np.int32))

    report = look(info, train=[row("x", 0, 0, 255, 255), row("y", 1, 1, 1, 0)], test=[row("z", 1, 1, 1, 1)])
    np.testing.assert_allclose(report.frequencies(), [3 / 6, 3 / 6])
    np.testing.assert_allclose(report.weights, [0.5625 / (3 / 8), 0.5625 / (3 / 4)])  # a: 3 of 8 pixels, b: 3 of 4; test counts nothing


def test_weights_do_not_depend_on_the_number_of_images():
    pixels, image_pixels = np.array([10, 50, 3]), np.array([100, 200, 30])
    weights = median_frequency_weights(pixels, image_pixels)
    np.testing.assert_allclose(median_frequency_weights(7 * pixels, 7 * image_pixels), weights)
    np.testing.assert_allclose(np.median(weights * pixels / image_pixels), np.median(pixels / image_pixels))
    assert median_frequency_weights(np.zeros(2), np.zeros(2)).tolist() == [0, 0]


def test_a_dataset_is_checked_like_its_listing():
    records = [sample("a", 1), sample("dark", 2, image=np.zeros((4, 6, 1), np.float32))]
    one, two = look(train=records), check(Dataset(INFO, {"train": records}, lambda record: record), progress=False)
    assert (one.faults, one.warnings, one.lengths) == (two.faults, two.warnings, two.lengths)
    np.testing.assert_array_equal(one.weights, two.weights)


def test_print_report_names_everything():
    console = Console(record=True, width=100, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        print_report(look(train=[sample("a", 1), "long[1].png: damaged"], val=[sample("a", 1)]), console)
        text = console.export_text()
    assert all(part in text for part in ("ground", "33.33", "1.0000", "long[1].png: damaged", "1 faults, 2 warnings"))


def test_camvid_weights():
    root = os.environ.get("JAXSEG_TEST_DATA")
    if not root:
        pytest.skip("JAXSEG_TEST_DATA is not set: the folder with camvid is needed")
    pixels, image_pixels = np.zeros(11, np.int64), np.zeros(11, np.int64)
    for path in sorted((Path(root) / "camvid" / "trainannot").glob("*.png")):
        label = read_label(path)
        counts = np.bincount(label.ravel(), minlength=12)[:11]
        pixels += counts
        image_pixels += np.where(counts > 0, label.size, 0)
    known = [0.2793, 0.2017, 4.7865, 0.149, 1.0, 0.4217, 3.8467, 1.9736, 0.7889, 6.3747, 8.8587]
    np.testing.assert_allclose(median_frequency_weights(pixels, image_pixels), known, atol=5.1e-5)


# Contact sheet


@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (3, np.uint8), (1, np.uint16), (2, np.float32), (7, np.uint16)])
def test_contact_sheet_shows_any_image(tmp_path, channels, dtype):
    info = DataInfo("tiny", INFO.class_names, channels, default_colours(3))
    image = np.random.default_rng(0).integers(0, 200, (40, 60, channels)).astype(dtype)
    label = np.resize(np.array([0, 1, 2, 255], np.int32), (40, 60))
    records = [sample(f"s{n}", 0, image=image, label=label, instances=label) for n in range(5)]
    contact_sheet(listing(info, train=records), tmp_path / "sheet.png", count=3)
    few = read_image(tmp_path / "sheet.png")
    contact_sheet(Dataset(info, {"train": records}, lambda record: record), tmp_path / "sheet.png", count=99)
    many = read_image(tmp_path / "sheet.png")
    assert many.shape[0] > few.shape[0]
    shown = set(np.unique(many.astype(int) @ [1 << 16, 1 << 8, 1]).tolist())
    assert {code(colour) for colour in info.colours} <= shown


def test_rgb_uses_the_whole_range():
    image = np.linspace(900, 1100, 3000).reshape(30, 100, 1).astype(np.uint16)
    shown = to_rgb(image)
    assert shown.shape == (30, 100, 3)
    assert (shown.min(), shown.max()) == (0, 255)
    image[0, 0] = 65000  # one hot pixel does not darken the rest
    assert abs(np.median(to_rgb(image)) - 127) < 5
    assert to_rgb(np.full((2, 2, 1), np.nan, np.float32)).max() == 0
    eight = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    np.testing.assert_array_equal(to_rgb(eight), eight)


@pytest.mark.parametrize(
    ("out", "split", "count", "text"),
    [
        ("a.png", "val", 1, "no split val; there are train"),
        ("a.png", "train", 0, "at least 1"),
        ("a.jpg", "train", 1, "a.jpg; a .png file"),
        ("no/a.png", "train", 1, "folder that exists"),
    ],
)
def test_contact_sheet_faults(tmp_path, out, split, count, text):
    with pytest.raises(InputError, match=text):
        contact_sheet(listing(train=[sample("a", 1)]), tmp_path / out, split, count)
