"""The dsb2018 listing: on a folder written here, on what is wrong in such a folder, and on the real set where it is."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxseg.data import dsb2018, make_listing, open_dataset, prepare
from jaxseg.data.cells import border_label
from jaxseg.errors import InputError

RNG = np.random.default_rng(0)


def write(source: Path, sizes=((20, 24), (1, 1), (33, 17)), top=300):
    """images/ and labels/ of the sizes, one object an image, numbered up to `top`; a, b ... in train, the last one in val."""
    names = "abcdef"[: len(sizes)]
    for kind in ("images", "labels"):
        (source / kind).mkdir(parents=True)
    for name, (h, w) in zip(names, sizes, strict=True):
        Image.fromarray(RNG.integers(0, 255, (h, w), np.uint8)).save(source / "images" / f"{name}.png")
        label = np.zeros((h, w), np.uint16 if top > 255 else np.uint8)
        label[: h // 2] = top
        Image.fromarray(label).save(source / "labels" / f"{name}.png")
    (source / "fluo_train.txt").write_text("\n".join(names[:-1]) + "\n")
    (source / "fluo_val.txt").write_text(names[-1])
    return source


@pytest.mark.parametrize("top", [7, 255, 300])
def test_instances_of_any_type_and_gaps_go_through_preparing(tmp_path, top):
    listing = make_listing("dsb2018", write(tmp_path / "source", top=top))
    prepare(listing, tmp_path / "data", progress=False)
    dataset = open_dataset("dsb2018", tmp_path / "data")
    assert dataset.splits == {"train": 2, "val": 1}
    for split, items in listing.splits.items():
        for item, record in zip(items, dataset.split(split), strict=True):
            assert record["name"] == item.name
            stored = np.asarray(Image.open(item.key[1]))
            np.testing.assert_array_equal(record["instances"], stored)
            assert record["instances"].dtype == np.int32
            np.testing.assert_array_equal(record["image"][..., 0], np.asarray(Image.open(item.key[0])))
            np.testing.assert_array_equal(record["label"], border_label(stored.astype(np.int32)))


def _save(path, array):
    Image.fromarray(array).save(path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda s: (s / "fluo_val.txt").unlink(), "fluo_val.txt cannot be read.*--source"),
        (lambda s: (s / "fluo_val.txt").write_text(" \n"), "fluo_val.txt is empty"),
        (lambda s: (s / "fluo_val.txt").write_bytes(b"\xff\xfe"), "cannot be read"),
        (lambda s: (s / "fluo_val.txt").write_text("a"), "a stands twice"),
        (lambda s: (s / "labels" / "b.png").unlink(), "b.png is missing"),
        (lambda s: (s / "images" / "b.png").unlink(), "b.png is missing"),
        (lambda s: _save(s / "labels" / "a.png", np.zeros((20, 23), np.uint8)), r"a.png: \(20, 23\)"),
        (lambda s: _save(s / "labels" / "a.png", np.zeros((20, 24, 3), np.uint8)), r"a.png: \(20, 24, 3\)"),
        (lambda s: _save(s / "images" / "a.png", np.zeros((20, 24, 3), np.uint8)), "3 channels"),
        (lambda s: (s / "labels" / "a.png").write_bytes(b""), "an empty file"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, spoil, said):
    source = write(tmp_path / "source")
    spoil(source)
    with pytest.raises(InputError, match=said):
        prepare(dsb2018.listing(source), tmp_path / "data", progress=False)


def test_missing_source_is_explained(tmp_path):
    with pytest.raises(InputError, match="--source"):
        make_listing("dsb2018")
    with pytest.raises(InputError, match=r"no such folder.*--source"):
        make_listing("dsb2018", tmp_path / "nowhere")


def test_the_real_set():
    root = os.environ.get("JAXSEG_TEST_DATA")
    if not root:
        pytest.skip("JAXSEG_TEST_DATA is not set: the folder that holds dsb2018")
    listing = make_listing("dsb2018", Path(root) / "dsb2018")
    assert {split: len(items) for split, items in listing.splits.items()} == {"train": 424, "val": 60}
    sizes = set()
    for item in listing.splits["val"][:12]:
        record = listing.read(item)
        sizes.add(record["image"].shape)
        assert record["image"].dtype == np.uint8
        assert set(np.unique(record["label"])) <= {0, 1, 2}
        assert len(np.unique(record["instances"])) > 1
    assert len(sizes) > 1
