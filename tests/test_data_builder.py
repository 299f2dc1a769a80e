import concurrent.futures
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxseg.data import DataInfo, Item, Listing, cells, make_listing, open_dataset, prepare
from jaxseg.errors import InputError

INFO = DataInfo("tiny", ("a", "b"), 2, ((0, 0, 0), (255, 0, 0)), "Noise.")


def _cells(count=3):
    listing = cells.listing()
    return dataclasses.replace(listing, splits={split: items[:count] for split, items in listing.splits.items()})


def _tiny(dtype=np.uint16, channels=2, length=5, **wrong):
    def read(item):
        rng = np.random.default_rng(item.key)
        image = (rng.random((7 + item.key, 9, channels)) * (1 if dtype == np.float32 else 200)).astype(dtype)
        return {"name": item.name, "image": image, "label": rng.integers(0, 2, image.shape[:2]).astype(np.int32), **wrong}

    return Listing(dataclasses.replace(INFO, channels=channels), {"train": [Item(f"i{k}", k) for k in range(length)]}, read)


def _same(a, b):
    assert a.keys() == b.keys()
    assert a["name"] == b["name"]
    for key in a.keys() - {"name"}:
        assert a[key].dtype == b[key].dtype
        np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.parametrize("listing", [_cells(), _tiny(), _tiny(np.float32), _tiny(np.uint8, 3), _tiny(np.uint16, 3), _tiny(np.uint8, 4)])
def test_what_was_prepared_is_what_was_listed(listing, tmp_path):
    prepare(listing, tmp_path, progress=False)
    dataset = open_dataset(listing.info.name, tmp_path)
    assert dataset.info == listing.info
    assert dataset.splits == {split: len(items) for split, items in listing.splits.items()}
    for split, items in listing.splits.items():
        for item, record in zip(items, dataset.split(split), strict=True):
            _same(record, listing.read(item))


def test_prepares_and_opens_without_tensorflow(tmp_path):
    script = f"""
import importlib.machinery as machinery, sys
real = machinery.PathFinder.find_spec
machinery.PathFinder.find_spec = staticmethod(lambda name, *a, **k: None if name.split(".")[0] == "tensorflow" else real(name, *a, **k))
import dataclasses
from jaxseg.data import cells, open_dataset, prepare
listing = cells.listing()
listing = dataclasses.replace(listing, splits={{"train": listing.splits["train"][:2]}})
prepare(listing, {str(tmp_path)!r})
assert open_dataset("cells", {str(tmp_path)!r}).split("train")[1]["image"].shape == (256, 256, 1)
assert "tensorflow" not in sys.modules and "jax" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_prepared_twice_does_nothing_and_a_killed_run_is_cleaned(tmp_path, capsys):
    half = tmp_path / "tiny" / "incomplete.ABC123_1.0.0"
    half2 = tmp_path / "tiny" / "1.0.0.incompleteABC123"
    half.mkdir(parents=True)
    half2.mkdir(parents=True)
    folder = prepare(_tiny(), tmp_path, progress=False)
    assert not half2.exists()
    assert not half.exists()
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert prepare(_tiny(), tmp_path) == folder
    assert "already prepared" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_other_data_are_not_taken_for_the_prepared_ones(tmp_path):
    folder = prepare(_tiny(), tmp_path, progress=False)
    with pytest.raises(InputError, match=f"{folder}.*remove"):
        prepare(_tiny(length=4), tmp_path, progress=False)


def test_a_changed_file_changes_the_digest_and_a_moved_one_does_not(tmp_path):
    from jaxseg.data.builder import content_digest

    def digest(folder, content):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "a.bin").write_bytes(content)
        return content_digest(Listing(INFO, {"train": [Item("a", (tmp_path / folder / "a.bin", None))]}, _tiny().read))

    assert digest("one", b"x") == digest("two", b"x") != digest("one", b"y")


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        (_tiny(label=np.zeros((3, 3), np.int32)), "i0.*label"),
        (_tiny(np.int64), "i0.*int64"),
        (dataclasses.replace(_tiny(), splits={"train": []}), "'train' is empty"),
        (dataclasses.replace(_tiny(), splits={"train": [Item("same", 1), Item("same", 2)]}), "two items named 'same'"),
        (dataclasses.replace(_tiny(), info=dataclasses.replace(INFO, class_names=("a",), colours=((0, 0, 0),))), r"i\d.*\[1\].*0\.\.0"),
    ],
)
def test_wrong_records_are_named_and_leave_nothing(listing, message, tmp_path):
    with pytest.raises(InputError, match=message):
        prepare(listing, tmp_path, progress=False)
    assert not [path for path in tmp_path.glob("tiny/*") if path.name != ".lock"]


def test_not_prepared_says_the_command(tmp_path):
    with pytest.raises(InputError, match=f"`jaxseg data prepare cells --data-dir {tmp_path}`"):
        open_dataset("cells", tmp_path)
    with pytest.raises(InputError, match="--source FOLDER"):
        open_dataset("camvid", tmp_path)
    prepare(_tiny(), tmp_path, progress=False)
    with pytest.raises(InputError, match="there: tiny"):
        open_dataset("cells", tmp_path)
    with pytest.raises(InputError, match=r"no split 'night'.*'train'"):
        open_dataset("tiny", tmp_path).split("night")


def test_threads_may_share_a_split(tmp_path):
    listing = _tiny(length=20)
    prepare(listing, tmp_path, progress=False)
    split = open_dataset("tiny", tmp_path).split("train")
    order = np.random.default_rng(0).integers(0, 20, 200).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        names = [record["name"] for record in pool.map(split.__getitem__, order)]
    assert names == [f"i{k}" for k in order]
    assert split[-1]["name"] == "i19"
    with pytest.raises(IndexError):
        split[20]


def _real(name):
    root = os.environ.get("JAXSEG_TEST_DATA")
    if not root or not (Path(root) / name).is_dir():
        pytest.skip(f"set JAXSEG_TEST_DATA to a folder that holds {name}/")
    return make_listing(name, Path(root) / name)


def test_isbi2012():
    listing = _real("isbi2012")
    assert {split: len(items) for split, items in listing.splits.items()} == {"train": 24, "test": 6}
    record = listing.read(listing.splits["test"][0])
    assert record["name"] == "24"
    assert record["image"].shape == (512, 512, 1)
    assert 0.7 < record["label"].mean() < 0.9
    np.testing.assert_array_equal(record["instances"] > 0, record["label"] == 1)


def test_camvid():
    listing = _real("camvid")
    assert {split: len(items) for split, items in listing.splits.items()} == {"train": 367, "val": 101, "test": 233}
    record = listing.read(listing.splits["train"][0])
    assert record["image"].shape == (360, 480, 3)
    assert set(np.unique(record["label"])) <= {*range(11), 255}


@pytest.mark.parametrize("name", ["isbi2012", "camvid"])
def test_missing_source_is_explained(name, tmp_path):
    with pytest.raises(InputError, match="--source"):
        make_listing(name)
    with pytest.raises(InputError, match=rf"{name}: .*{tmp_path.name}.*--source"):
        make_listing(name, tmp_path)


def test_metadata_is_json(tmp_path):
    folder = prepare(_tiny(), tmp_path, progress=False)
    assert json.loads((folder / "metadata.json").read_text())["jaxseg"]["class_names"] == ["a", "b"]


# Damaged sets


def _shard(folder):
    return next(folder.glob("*array_record*"))


def _flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: _shard(folder).unlink(),
        lambda folder: _shard(folder).write_bytes(b""),
        lambda folder: _shard(folder).write_bytes(_shard(folder).read_bytes()[: 2**16]),
        lambda folder: _flip(_shard(folder), 200),
        lambda folder: _flip(folder / "features.json", (folder / "features.json").read_bytes().index(b'"image"') + 3),
    ],
)
def test_damaged_records_are_named_with_the_remedy_and_checked(damage, tmp_path):
    from jaxseg.data.check import check

    folder = prepare(_tiny(), tmp_path, progress=False)
    damage(folder)
    dataset = open_dataset("tiny", tmp_path)
    with pytest.raises(InputError, match=rf"tiny/train: record 0 .*remove {folder} and prepare again: `jaxseg data prepare tiny"):
        dataset.split("train")[-5]
    report = check(dataset, progress=False)
    assert not report.ok
    assert "record 0" in str(report.faults[0])
    assert report.lengths == {"train": 5}


@pytest.mark.parametrize("name", ["metadata.json", "features.json", "dataset_info.json"])
@pytest.mark.parametrize("content", ['{"a', "\xff", "[]", '{"jaxseg": {"name": 1}}', None])
def test_damaged_descriptions_are_named_with_the_remedy(name, content, tmp_path):
    folder = prepare(_tiny(), tmp_path, progress=False)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content, "latin-1")
    with pytest.raises(InputError, match=f"tiny: .*{folder}.*remove {folder} and prepare again: `jaxseg data prepare tiny"):
        open_dataset("tiny", tmp_path)
    if name == "metadata.json" or (name == "dataset_info.json" and content is None):
        with pytest.raises(InputError, match="remove"):  # and not "already prepared"
            prepare(_tiny(), tmp_path, progress=False)


def test_the_digest_is_that_of_the_content(tmp_path):
    digests = []
    for place, length in (("a", 2), ("b", 2), ("c", 3)):
        prepare(_tiny(length=length), tmp_path / place, progress=False)
        digests.append(open_dataset("tiny", tmp_path / place).digest)
    assert digests[0] == digests[1] != digests[2]
    assert all(digests)


def test_cells_of_another_generator_are_refused(tmp_path, monkeypatch):
    folder = prepare(_cells(1), tmp_path, progress=False)
    open_dataset("cells", tmp_path)
    monkeypatch.setattr(cells, "GENERATOR", cells.GENERATOR + 1)
    with pytest.raises(InputError, match=f"generator {cells.GENERATOR - 1}, this is {cells.GENERATOR}: remove {folder} and prepare again"):
        open_dataset("cells", tmp_path)


def _images(*images):
    label = np.zeros((4, 4), np.int32)
    items = [Item(f"i{k}", None) for k in range(len(images))]

    def read(item):
        return {"name": item.name, "image": images[int(item.name[1:])], "label": label}

    return Listing(dataclasses.replace(INFO, channels=1), {"train": items}, read)


@pytest.mark.parametrize(("one", "two"), [(np.uint8, np.float32), (np.float32, np.uint8), (np.uint8, np.uint16)])
def test_mixed_types_are_refused_naming_both(one, two, tmp_path):
    with pytest.raises(InputError, match=rf"tiny/i1: .* is {two.__name__}, that of i0 is {one.__name__}.*convert"):
        prepare(_images(np.zeros((4, 4, 1), one), np.zeros((4, 4, 1), two)), tmp_path, progress=False)


@pytest.mark.parametrize("value", [255, -0.01, 1.01, np.nan])
def test_floats_outside_0_to_1_are_refused(value, tmp_path):
    with pytest.raises(InputError, match=r"tiny/i0: .*float.*0\.\.1.*scale"):
        prepare(_images(np.full((4, 4, 1), value, np.float32)), tmp_path, progress=False)


def test_a_name_that_is_not_utf8_is_named(tmp_path):
    with pytest.raises(InputError, match=r"b'a\\xff' is not UTF-8.*rename"):
        prepare(dataclasses.replace(_tiny(), splits={"train": [Item("a\udcff", 1)]}), tmp_path, progress=False)
