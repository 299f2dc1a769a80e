"""Anyone's folder: what is accepted, and that every fault is named with its file and its remedy."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from jaxseg.data import folder
from jaxseg.data.classes_csv import IGNORE
from jaxseg.errors import InputError


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".tif", ".tiff"):
        kind = {"photometric": "rgb"} if array.shape[2:] == (3,) else {"photometric": "minisblack"}
        tifffile.imwrite(path, array, **kind, **({"planarconfig": "contig"} if array.ndim == 3 else {}))
    else:
        Image.fromarray(array).save(path)
    return path


def picture(seed: int, channels: int = 3, dtype: type = np.uint8) -> np.ndarray:
    shape = (6, 8, channels) if channels > 1 else (6, 8)
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype)


def make(root: Path, count: int = 4, values=(0, 1, 2), image=picture, label=None, suffix: str = ".png") -> Path:
    """A good folder; label k is filled with the values in turn."""
    for number in range(count):
        save(root / "images" / f"s{number}{suffix}", image(number))
        array = np.resize(np.array(values, np.uint8), (6, 8)) if label is None else label(number)
        save(root / "labels" / f"s{number}.png", array)
    return root


def records(listing) -> dict[str, dict]:
    return {item.name: listing.read(item) for items in listing.splits.values() for item in items}


def message(source: Path, **kwargs) -> str:
    with pytest.raises(InputError) as error:
        folder.listing(source, **kwargs)
    return str(error.value)


# What is accepted


def test_values_and_pixels_come_through(tmp_path):
    listing = folder.listing(make(tmp_path))
    for name, record in records(listing).items():
        np.testing.assert_array_equal(record["image"], picture(int(name[1:])))
        assert record["label"].dtype == np.int32
        np.testing.assert_array_equal(record["label"], np.resize([0, 1, 2], (6, 8)))
    assert listing.info.name == "folder"
    assert (listing.info.num_classes, listing.info.channels, len(listing.info.colours)) == (3, 3, 3)


@pytest.mark.parametrize(
    ("channels", "dtype", "suffix"),
    [
        (1, np.uint8, ".png"),
        (3, np.uint8, ".png"),
        (1, np.uint16, ".png"),
        (3, np.uint16, ".tif"),
        (5, np.uint16, ".tiff"),
        (1, np.uint8, ".tif"),
    ],
)
def test_kinds_of_images(tmp_path, channels, dtype, suffix):
    listing = folder.listing(make(tmp_path, image=lambda seed: picture(seed, channels, dtype), suffix=suffix))
    assert listing.info.channels == channels
    for name, record in records(listing).items():
        np.testing.assert_array_equal(
            record["image"].reshape(6, 8, channels), picture(int(name[1:]), channels, dtype).reshape(6, 8, channels)
        )
        assert record["image"].dtype == dtype


def test_jpeg_images(tmp_path):
    assert folder.listing(make(tmp_path, suffix=".jpg")).info.channels == 3


@pytest.mark.parametrize("count", [3, 4, 10, 40])
def test_drawn_split_is_a_partition_that_depends_on_the_seed_alone(tmp_path, count):
    make(tmp_path, count)
    first, again, other = (folder.listing(tmp_path, seed=seed).splits for seed in (1, 1, 2))
    names = [[item.name for item in items] for items in first.values()]
    assert list(first) == ["train", "val", "test"]
    assert all(names)
    assert sorted(name for part in names for name in part) == sorted(f"s{number}" for number in range(count))
    assert first == again
    assert count < 10 or first != other
    assert len(names[0]) >= 0.6 * count or count < 10


def test_very_small_folders_split(tmp_path):
    assert {split: len(items) for split, items in folder.listing(make(tmp_path / "a", 1)).splits.items()} == {"train": 1}
    assert {split: len(items) for split, items in folder.listing(make(tmp_path / "b", 2)).splits.items()} == {"train": 1, "val": 1}


def test_split_files(tmp_path):
    make(tmp_path)
    (tmp_path / "train.txt").write_text("s2\ns0.png\n\n")
    (tmp_path / "test.txt").write_text("s1\n")
    listing = folder.listing(tmp_path)
    assert {split: [item.name for item in items] for split, items in listing.splits.items()} == {"train": ["s2", "s0"], "test": ["s1"]}


def test_split_sub_folders(tmp_path):
    for part, split in enumerate(("train", "test")):
        for number in range(2):
            save(tmp_path / "images" / split / f"{number}.png", picture(10 * part + number))
            save(tmp_path / "labels" / split / f"{number}.png", np.full((6, 8), number, np.uint8))
    splits = folder.listing(tmp_path).splits
    assert {split: [item.name for item in items] for split, items in splits.items()} == {"train": ["0", "1"], "test": ["0", "1"]}
    (tmp_path / "train.txt").write_text("0\n")
    assert "keep one of the two" in message(tmp_path)


def test_palette_label_counts_by_index(tmp_path):
    make(tmp_path)
    for path in (tmp_path / "labels").iterdir():
        image = Image.new("P", (8, 6))
        image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200, 9, 9, 9])
        image.putdata(np.resize([0, 1, 3], 48).tolist())
        image.save(path)
    (tmp_path / "classes.csv").write_text("name\na\nb\nc\nd\n")
    listing = folder.listing(tmp_path)
    assert listing.info.num_classes == 4
    np.testing.assert_array_equal(records(listing)["s0"]["label"], np.resize([0, 1, 3], (6, 8)))


def colours(number: int) -> np.ndarray:
    del number
    return np.resize(np.array([[255, 0, 0], [0, 0, 255], [9, 9, 9]], np.uint8), (6, 8, 3))


def test_colours_of_classes_csv(tmp_path):
    make(tmp_path, label=colours)
    (tmp_path / "classes.csv").write_text("name, red,green,blue,index\nsea,0,0,255,1\nfire,255,0,0,0\nvoid,9,9,9,255\n")
    listing = folder.listing(tmp_path)
    assert listing.info.class_names == ("fire", "sea")
    assert listing.info.colours == ((255, 0, 0), (0, 0, 255))
    np.testing.assert_array_equal(records(listing)["s1"]["label"], np.resize([0, 1, IGNORE], (6, 8)))


def test_names_alone_in_classes_csv(tmp_path):
    make(tmp_path)
    (tmp_path / "classes.csv").write_text("name\na\nb\nc\nd\n")
    assert folder.listing(tmp_path).info.class_names == ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("values", "listed", "expected", "num_classes"),
    [
        ((0, 255), None, (0, 1), 2),  # masks
        ((0, 255), "name\nground\ncell\n", (0, 1), 2),
        ((0, 1, 255), None, (0, 1, 255), 2),  # 255 is ignored as soon as another value is there
        ((0, 255), "name\na\nb\nc\n", (0, 255), 3),  # classes.csv says otherwise
        ((0, 255), "name,index\na,0\nb,1\nvoid,255\n", (0, 255), 2),
    ],
)
def test_what_255_means(tmp_path, values, listed, expected, num_classes):
    make(tmp_path, values=values)
    if listed:
        (tmp_path / "classes.csv").write_text(listed)
    listing = folder.listing(tmp_path)
    assert listing.info.num_classes == num_classes
    np.testing.assert_array_equal(records(listing)["s0"]["label"], np.resize(expected, (6, 8)))


def test_what_255_means_is_decided_over_the_whole_folder(tmp_path):
    make(tmp_path, values=(0, 255))
    save(tmp_path / "labels" / "s3.png", np.resize(np.array([0, 1], np.uint8), (6, 8)))
    np.testing.assert_array_equal(records(folder.listing(tmp_path))["s0"]["label"], np.resize([0, 255], (6, 8)))


def test_grey_masks_saved_as_rgb(tmp_path):
    make(tmp_path, label=lambda _: np.repeat(np.resize(np.array([0, 255], np.uint8), (6, 8))[..., None], 3, axis=-1))
    np.testing.assert_array_equal(records(folder.listing(tmp_path))["s0"]["label"], np.resize([0, 1], (6, 8)))


def test_instances(tmp_path):
    make(tmp_path)
    for number in range(4):
        save(tmp_path / "instances" / f"s{number}.png", np.arange(48, dtype=np.uint16).reshape(6, 8) + 300)
    record = records(folder.listing(tmp_path))["s0"]
    np.testing.assert_array_equal(record["instances"], np.arange(48).reshape(6, 8) + 300)
    (tmp_path / "instances" / "s2.png").unlink()
    assert "s2.png has no instance map" in message(tmp_path)


# Faults


def test_missing_folders(tmp_path):
    assert f"no folder {tmp_path / 'nowhere'}" in message(tmp_path / "nowhere")
    (tmp_path / "images").mkdir()
    text = message(tmp_path)
    assert f"no folder {tmp_path / 'labels'}" in text
    assert "--source" in text


def test_empty_folder(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    assert f"{tmp_path / 'images'} holds no image: put files" in message(tmp_path)


def test_unpaired_files_are_all_named(tmp_path):
    make(tmp_path)
    (tmp_path / "labels" / "s1.png").unlink()
    save(tmp_path / "labels" / "extra.png", picture(0, 1))
    text = message(tmp_path)
    assert all(part in text for part in ("s1.png has no label", "extra.png has no image", "add or remove"))


def test_many_unpaired_files_are_counted(tmp_path):
    make(tmp_path, 14)
    for path in (tmp_path / "labels").iterdir():
        path.unlink()
    text = message(tmp_path)
    assert text.count("has no label") == 10
    assert "4 more (14 in all)" in text


def test_doubled_stem(tmp_path):
    make(tmp_path)
    save(tmp_path / "images" / "s1.jpg", picture(0))
    text = message(tmp_path)
    assert "s1.jpg and s1.png" in text
    assert "rename or remove" in text


def test_jpeg_labels(tmp_path):
    make(tmp_path)
    save(tmp_path / "labels" / "s1.jpg", picture(0, 1))
    text = message(tmp_path)
    assert "s1.jpg" in text
    assert "save labels as PNG" in text


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        ({"train": "s0\ns9\n"}, ("train.txt names s9", "correct")),
        ({"train": "s0\ns1\n", "val": "s1\n"}, ("val.txt names s1, which train.txt names already", "one split")),
        ({"train": "s0\n", "val": "\n"}, ("val.txt names no sample",)),
        ({"val": "s0\n"}, ("there is no train.txt",)),
    ],
)
def test_split_file_faults(tmp_path, files, parts):
    make(tmp_path)
    for split, text in files.items():
        (tmp_path / f"{split}.txt").write_text(text)
    assert all(part in message(tmp_path) for part in parts)


def test_colours_without_classes_csv(tmp_path):
    text = message(make(tmp_path, label=colours))
    assert "s0.png" in text
    assert "no classes.csv" in text
    assert "name,red,green,blue" in text


@pytest.mark.parametrize("colour", [(0, 0, 0), (9, 9, 9), (255, 255, 255)])
def test_colour_not_listed(tmp_path, colour):
    make(tmp_path, label=lambda _: np.resize(np.array([(255, 0, 0), (0, 0, 255), colour], np.uint8), (6, 8, 3)))
    (tmp_path / "classes.csv").write_text("name,red,green,blue\nfire,255,0,0\nsea,0,0,255\n")
    text = message(tmp_path)
    assert all(part in text for part in ("s3.png", f"16 pixels of colour {colour}", "add the colour to classes.csv"))


@pytest.mark.parametrize(
    "table",
    [
        "",
        "class\na\n",
        "name,red\na,1\n",
        "name,red,green,blue\na,1,2,x\n",
        "name,red,green,blue\na,1,2,3\nb,1,2,3\n",
        "name,red,green,blue\na,1,2,300\n",
        "name,index\na,0\nb,2\n",
        "name\na\nb\na\n",
        "name,index\na,0\n,1\nc,2\n",
        "name,index\nvoid,255\n",
    ],
)
def test_bad_classes_csv(tmp_path, table):
    make(tmp_path)
    (tmp_path / "classes.csv").write_text(table)
    text = message(tmp_path)
    assert "classes.csv" in text
    assert "correct it" in text


def test_label_value_out_of_range(tmp_path):
    make(tmp_path, values=(0, 1, 2, 255))
    (tmp_path / "classes.csv").write_text("name\na\nb\n")
    text = message(tmp_path)
    assert all(part in text for part in ("s0.png has the label values 2;", "0..1", "correct the labels or classes.csv"))


@pytest.mark.parametrize("values", [(0, 128, 255), (0, 2), (1, 2), (1, 255), (0, 3, 90, 200, 254, 255), tuple(range(256))])
def test_gaps_need_classes_csv(tmp_path, values):
    make(tmp_path, 2, label=lambda _: np.resize(np.array(values, np.uint8), (32, 16)), image=lambda _: np.zeros((32, 16), np.uint8))
    text = message(tmp_path)
    classes = [value for value in values if value != IGNORE]
    assert all(part in text for part in (f"{len(classes)} values {classes[0]}", "threshold", "without gaps", "classes.csv"))
    (tmp_path / "classes.csv").write_text("name\n" + "".join(f"n{number}\n" for number in range(255)))
    assert folder.listing(tmp_path).info.num_classes == 255


@pytest.mark.parametrize("listed", [None, "name\na\nb\n"])
def test_16_bit_masks(tmp_path, listed):
    make(tmp_path, label=lambda _: np.resize(np.array([0, 65535], np.uint16), (6, 8)))
    if listed:
        (tmp_path / "classes.csv").write_text(listed)
    text = message(tmp_path)
    assert all(part in text for part in (".png looks like a 16-bit mask", "0 and 255", "8 bits"))


def test_instance_maps_as_labels(tmp_path):
    text = message(make(tmp_path, label=lambda _: np.arange(48, dtype=np.uint16).reshape(6, 8) + 300))
    assert ".png has label values from 300 to 347" in text
    assert "instances/" in text


def test_damaged_label(tmp_path):
    path = make(tmp_path) / "labels" / "s1.png"
    path.write_bytes(path.read_bytes()[:50])
    assert "s1.png" in message(tmp_path)


def test_only_unreadable_images_are_left_to_check(tmp_path):
    make(tmp_path, 3)
    for number, path in enumerate(sorted((tmp_path / "images").iterdir())):
        path.write_bytes(path.read_bytes()[:50])
        if number < 2:
            listing = folder.listing(tmp_path)
            assert f"s{number}.png" in fault_of(listing, f"s{number}")
    text = message(tmp_path)
    assert all(part in text for part in ("no image can be read", "s0.png", "s1.png", "s2.png"))


def fault_of(listing, name: str) -> str:
    item = next(item for items in listing.splits.values() for item in items if item.name == name)
    with pytest.raises(InputError) as error:
        listing.read(item)
    return str(error.value)


def test_mixed_channels(tmp_path):
    make(tmp_path)
    (tmp_path / "train.txt").write_text("s0\ns1\n")
    save(tmp_path / "images" / "s1.png", picture(1, 1))
    text = fault_of(folder.listing(tmp_path), "s1")
    assert all(part in text for part in ("s1.png has 1 channels", "s0.png has 3", "convert or remove"))


def test_size_of_label_and_instances(tmp_path):
    make(tmp_path)
    save(tmp_path / "labels" / "s1.png", np.resize(np.array([0, 1, 2], np.uint8), (6, 7)))
    text = fault_of(folder.listing(tmp_path), "s1")
    assert all(part in text for part in ("s1.png is 8 x 6", "is 7 x 6", "same size"))


def test_value_that_came_after_listing(tmp_path):
    listing = folder.listing(make(tmp_path))
    save(tmp_path / "labels" / "s1.png", np.full((6, 8), 7, np.uint8))
    assert "label values 7" in fault_of(listing, "s1")


def in_splits(root: Path, *splits: str) -> Path:
    for split in splits:
        for kind in ("images", "labels"):
            save(root / kind / split / "a.png", np.resize(np.array([0, 1], np.uint8), (6, 8)))
    return root


@pytest.mark.parametrize("stray", ["images/valid/a.png", "labels/val/a.png", "images/loose.png", "labels/loose.png", "validation.txt"])
def test_what_is_in_no_split_sub_folder_is_named(tmp_path, stray):
    in_splits(tmp_path, "train", "test")
    path = tmp_path / stray
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    text = message(tmp_path)
    assert str(path.parent if path.parent.name in ("valid", "val") else path) in text
    assert "train, val, test" in text
    assert "rename or remove" in text


@pytest.mark.parametrize("stray", ["images/more", "labels/more", "valid.txt", "dev.txt", "Train.txt", "images/s.bmp", "labels/s.gif"])
def test_strays_beside_flat_files_are_named(tmp_path, stray):
    make(tmp_path)
    path = tmp_path / stray
    path.write_bytes(b"") if path.suffix else path.mkdir()
    text = message(tmp_path)
    assert path.name in text
    assert "remove" in text


def test_what_systems_leave_is_passed_over(tmp_path):
    make(tmp_path)
    expected = folder.listing(tmp_path)
    for kind in ("images", "labels"):
        for name in ("._s0.png", "._a.jpg", ".DS_Store", "Thumbs.db"):
            (tmp_path / kind / name).write_bytes(b"")
    (tmp_path / "README.txt").write_text("about")
    listing = folder.listing(tmp_path)
    assert (listing.info, listing.splits, listing.notes) == (expected.info, expected.splits, ())


def test_only_image_endings_are_dropped_from_split_lines(tmp_path):
    make(tmp_path)
    (tmp_path / "train.txt").write_text("s0\ns1.PNG\nimages/s2\n")
    listing = folder.listing(tmp_path)
    assert [item.name for item in listing.splits["train"]] == ["s0", "s1", "s2"]
    assert listing.notes == ("1 images are in no split file and are left out",)
    (tmp_path / "train.txt").write_text("s0\ns3.old\n")
    assert "train.txt names s3.old" in message(tmp_path)


def test_two_copies_have_equal_info(tmp_path):
    one, two = (folder.listing(make(tmp_path / name)) for name in ("one", "two"))
    assert one.info == two.info


def test_file_name_that_is_not_utf8(tmp_path):
    make(tmp_path)
    for kind in ("images", "labels"):
        (tmp_path / kind / "s1.png").rename(tmp_path / kind / "s\udcff.png")
    text = message(tmp_path)
    assert str(text).encode()
    assert "rename" in text


def test_colours_differ():
    from jaxseg.pictures import default_colours

    assert len(set(default_colours(256))) == 256


def test_listing_is_plain_data(tmp_path):
    listing = folder.listing(make(tmp_path))
    assert all(isinstance(path, Path | None) for items in listing.splits.values() for item in items for path in item.key)
    assert dataclasses.asdict(listing.info)["class_names"] == ("class 0", "class 1", "class 2")
