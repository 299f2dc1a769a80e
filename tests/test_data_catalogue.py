"""Sets of the TFDS catalogue: reading them, and the error that teaches how to prepare them.

The set that is read has the name and features of TFDS's own and is written here, as array_record and without TensorFlow.
"""

import ast
import io
import json
import re

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxseg.data import catalogue
from jaxseg.errors import InputError


def encoded(array: np.ndarray, form: str = "PNG", palette: list[int] | None = None) -> io.BytesIO:
    image = Image.fromarray(array)
    if palette:
        image = image.convert("L")
        image.putpalette(palette)
    data = io.BytesIO()
    image.save(data, form, **({"quality": 95} if form == "JPEG" else {}))
    data.seek(0)
    return data


def trimap(number: int) -> np.ndarray:
    return np.resize(np.array([1, 2, 3], np.uint8), (6 + number, 8))


def write(data_dir, given: str, features: dict, examples: dict, version: str = "4.0.0", config: str | None = None):
    """A small set that looks like the catalogue's. `examples`: split -> list of dicts of features."""

    class Written(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = given
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config, version=version)] if config else []

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            del dl_manager
            return {split: enumerate(members) for split, members in examples.items()}

        def _generate_examples(self):
            raise AssertionError("the test writes its own samples")

    builder = Written(data_dir=data_dir)
    builder.download_and_prepare(file_format="array_record")


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """Three training and one test sample; the second image is grey, the third trimap a palette PNG."""
    features = {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "file_name": tfds.features.Text(),
        "segmentation_mask": tfds.features.Image(shape=(None, None, 1), use_colormap=True),
        "species": tfds.features.ClassLabel(names=["Cat", "Dog"]),
    }

    def example(number):
        image = np.full((6 + number, 8) if number == 1 else (6 + number, 8, 3), 50 * number, np.uint8)
        palette = [0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255] if number == 2 else None
        return {
            "image": encoded(image, "JPEG"),
            "file_name": f"beagle_{number}.jpg",
            "segmentation_mask": encoded(trimap(number), palette=palette),
            "species": 1,
        }

    data_dir = tmp_path_factory.mktemp("data")
    write(data_dir, "oxford_iiit_pet", features, {"train": [example(n) for n in range(3)], "test": [example(3)]})
    return data_dir


def test_reads_pets(pets):
    dataset = catalogue.open_catalogue("oxford_iiit_pet", pets)
    assert dataset.splits == {"train": 3, "test": 1}
    assert dataset.info.class_names == ("foreground", "background", "outline")
    names = set()
    for split in dataset.splits:
        for record in dataset.split(split):
            number = int(record["name"].removeprefix("beagle_"))
            names.add(number)
            assert record["image"].shape == (6 + number, 8, 3)
            assert abs(record["image"].astype(int) - 50 * number).max() <= 1
            assert record["label"].dtype == np.int32
            np.testing.assert_array_equal(record["label"], trimap(number).astype(int) - 1)
    assert names == {0, 1, 2, 3}


def test_newest_version_is_read(pets, tmp_path):
    for version in ("9.0.0", "10.0.0"):
        (tmp_path / "oxford_iiit_pet" / version).mkdir(parents=True)
        (tmp_path / "oxford_iiit_pet" / version / "dataset_info.json").write_text(json.dumps({"fileFormat": "tfrecord"}))
    with pytest.raises(InputError, match=r"10\.0\.0 is prepared as tfrecord"):
        catalogue.open_catalogue("oxford_iiit_pet", tmp_path)


def test_cityscapes_ids_become_train_ids(tmp_path):
    features = {
        "image_id": tfds.features.Text(),
        "image_left": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
        "segmentation_label": tfds.features.Image(shape=(None, None, 1), encoding_format="png", use_colormap=True),
    }
    ids = np.arange(40, dtype=np.uint8).reshape(5, 8)
    example = {"image_id": "bonn_000001_000019", "image_left": encoded(np.zeros((5, 8, 3), np.uint8)), "segmentation_label": encoded(ids)}
    examples = {
        split: [{key: value if key == "image_id" else io.BytesIO(value.getvalue()) for key, value in example.items()}]
        for split in ("train", "validation", "test")
    }
    write(tmp_path, "cityscapes", features, examples, "1.0.0", config="semantic_segmentation")
    dataset = catalogue.open_catalogue("cityscapes", tmp_path)
    assert dataset.splits == {"train": 1, "val": 1, "test": 1}
    record = dataset.split("val")[0]
    assert record["name"] == "bonn_000001_000019"
    stored = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    expected = [stored.index(number) if number in stored else 255 for number in range(40)]
    assert record["label"].ravel().tolist() == expected
    assert dataset.info.class_names[stored.index(26)] == "car"


def test_scene_parse_red_is_the_class_and_green_the_object(tmp_path):
    features = {"image": tfds.features.Image(encoding_format="jpeg"), "annotation": tfds.features.Image(encoding_format="png")}
    label = np.zeros((4, 4, 3), np.uint8)
    label[0] = (1, 7, 0)
    label[1] = (100, 8, 0)

    def example():
        return {"image": encoded(np.zeros((4, 4, 3), np.uint8), "JPEG"), "annotation": encoded(label)}

    write(tmp_path, "scene_parse150", features, {"train": [example(), example()], "test": [example()]}, "1.0.0")
    dataset = catalogue.open_catalogue("scene_parse150", tmp_path)
    record = dataset.split("train")[1]
    assert record["name"] == "000001"
    assert record["label"][:, 0].tolist() == [0, 99, 255, 255]
    assert record["instances"][:, 0].tolist() == [7, 8, 0, 0]
    assert dataset.info.num_classes == 100
    assert dataset.info.class_names[99] == "flag"


@pytest.mark.parametrize("name", catalogue.CATALOGUE)
def test_features_and_splits_are_those_of_tfds(name, tmp_path):
    entry = catalogue.CATALOGUE[name]
    builder = tfds.builder(f"{name}/{entry.config}" if entry.config else name, data_dir=tmp_path)
    assert {entry.image, entry.label} <= set(builder.info.features)
    assert entry.sample_name is None or entry.sample_name in builder.info.features
    channels = builder.info.features[entry.label].shape[-1]
    assert channels == (3 if entry.coded else 1)
    assert len(set(entry.info.class_names)) == len(set(entry.info.colours)) == entry.info.num_classes
    assert set(entry.class_of.tolist()) == {*range(entry.info.num_classes), 255}


@pytest.mark.parametrize("name", catalogue.CATALOGUE)
def test_not_prepared(name, tmp_path):
    with pytest.raises(InputError) as error:
        catalogue.open_catalogue(name, tmp_path)
    text = str(error.value)
    assert f"{name}: not prepared in {tmp_path}" in text
    assert "pip install tensorflow" in text
    snippet = re.search(r'python -c "(.*)"', text)
    assert snippet is not None
    ast.parse(snippet[1])
    assert "file_format='array_record'" in snippet[1]
    assert name in snippet[1]
    builder = tfds.builder(name, data_dir=tmp_path)
    zips = re.findall(r"'(\w+\.zip)'", builder.MANUAL_DOWNLOAD_INSTRUCTIONS or "")
    assert all(part in text for part in zips)
    assert bool(zips) == (str(tmp_path / "downloads" / "manual") in text)


def test_prepared_as_tfrecord(pets, tmp_path):
    import shutil

    shutil.copytree(pets, tmp_path, dirs_exist_ok=True)
    path = next(tmp_path.glob("oxford_iiit_pet/*/dataset_info.json"))
    path.write_text(path.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(InputError, match=r"prepared as tfrecord; array_record is required.*pip install tensorflow"):
        catalogue.open_catalogue("oxford_iiit_pet", tmp_path)


def test_split_missing(tmp_path):
    features = {"image": tfds.features.Image(encoding_format="jpeg"), "annotation": tfds.features.Image(encoding_format="png")}
    example = {"image": encoded(np.zeros((4, 4, 3), np.uint8), "JPEG"), "annotation": encoded(np.zeros((4, 4, 3), np.uint8))}
    write(tmp_path, "scene_parse150", features, {"train": [example]}, "1.0.0")
    with pytest.raises(InputError, match=r"has the splits train; test is required"):
        catalogue.open_catalogue("scene_parse150", tmp_path)


def test_unknown_name(tmp_path):
    with pytest.raises(InputError, match=r"no data set 'coco'.*cityscapes"):
        catalogue.open_catalogue("coco", tmp_path)


def test_feature_missing(tmp_path):
    features = {"image": tfds.features.Image(encoding_format="jpeg"), "file_name": tfds.features.Text()}

    def example():
        return {"image": encoded(np.zeros((4, 4, 3), np.uint8), "JPEG"), "file_name": "a.jpg"}

    write(tmp_path, "oxford_iiit_pet", features, {"train": [example()], "test": [example()]})
    with pytest.raises(InputError, match=r"segmentation_mask is required"):
        catalogue.open_catalogue("oxford_iiit_pet", tmp_path).split("train")[0]
