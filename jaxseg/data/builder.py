"""Any Listing made a TFDS builder and prepared as array_record, without TensorFlow.

A prepared set lies in `data_dir/NAME/VERSION` and describes itself: `features.json` and `dataset_info.json` by TFDS, and in `metadata.json`
the DataInfo and a digest of what it was made from. Record i of a split is item i of the listing.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg.data import images
from jaxseg.data.listing import DataInfo, Item, Listing, Record
from jaxseg.errors import InputError

VERSION = "1.0.0"
"""Of the layout of records; a new layout gets a new folder."""


def prepared_folder(name: str, data_dir: str | os.PathLike[str]) -> Path:
    """Where `prepare` puts a data set: data_dir/NAME/VERSION."""
    return Path(data_dir).expanduser() / name / VERSION


def prepare(listing: Listing, data_dir: str | os.PathLike[str], *, progress: bool = True) -> Path:
    """Writes every record of `listing` below `data_dir` and returns the folder; does nothing where that has been done already.

    Records are read and checked one by one. What a killed run left is removed first; a second run at the same time waits.

    Raises:
      InputError: a record is wrong, a split is empty or has two items of one name, or the folder holds a set made from other data.
    """
    name = listing.info.name
    folder = prepared_folder(name, data_dir)
    _check_listing(listing)
    digest = content_digest(listing)
    with _only_one(folder.parent):
        if folder.exists():
            if not (folder / "dataset_info.json").is_file():
                raise InputError(f"{name}: {folder} has lost its dataset_info.json: {again(folder)}")
            found = read_metadata(folder).get("digest")
            if found != digest:
                raise InputError(
                    f"{name}: {folder} was prepared from other data than given now (digest {str(found)[:12]}, now {digest[:12]});"
                    " remove that folder to prepare anew, or pass another --data-dir to keep both"
                )
            if progress:
                print(f"{name}: already prepared in {folder}", file=sys.stderr)
            return folder
        for left_over in folder.parent.glob("*incomplete*"):
            shutil.rmtree(left_over)
        import tensorflow_datasets  # noqa: F401  # before the bar's thread is there: TFDS replaces __import__ while it is imported

        with _progress_bar(listing, progress) as advance:
            metadata = {"jaxseg": describe(listing.info), "digest": digest, "generator": listing.generator}
            _write(listing, Path(data_dir).expanduser(), metadata, advance)
    return folder


def describe(info: DataInfo) -> dict[str, Any]:
    """The DataInfo as JSON-able data."""
    return dataclasses.asdict(info)


def info_from(description: Mapping[str, Any]) -> DataInfo:
    """The inverse of `describe`.

    >>> info = DataInfo("a", ("x", "y"), 3, ((0, 0, 0), (1, 2, 3)))
    >>> info_from(json.loads(json.dumps(describe(info)))) == info
    True
    """
    fields = dict(description)
    fields["class_names"] = tuple(fields["class_names"])
    fields["colours"] = tuple(tuple(colour) for colour in fields["colours"])
    return DataInfo(**fields)


def read_metadata(folder: Path) -> dict[str, Any]:
    """metadata.json of a prepared set; {} where there is none (a set not made by `prepare`).

    Raises:
      InputError: it is damaged.
    """
    path = folder / "metadata.json"
    try:
        metadata = json.loads(path.read_text()) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise InputError(f"{folder.parent.name}: {path} is damaged ({error}): {again(folder)}") from error
    return metadata if isinstance(metadata, dict) else {}


def command(name: str, data_dir: str | os.PathLike[str]) -> str:
    """The command that prepares a data set."""
    from jaxseg.data import DATASETS

    source = " --source FOLDER" if name in DATASETS and DATASETS[name].needs_source else ""
    return f"jaxseg data prepare {name} --data-dir {data_dir}{source}"


def again(folder: Path) -> str:
    """What to do where the set prepared in `folder` cannot be used."""
    return f"remove {folder} and prepare again: `{command(folder.parent.name, folder.parent.parent)}`"


def content_digest(listing: Listing) -> str:
    """A hash of the DataInfo, of the items' names by split, and of the content of every file named in an item's key (not of its place)."""
    total = hashlib.blake2b(json.dumps([VERSION, describe(listing.info)], sort_keys=True).encode(), digest_size=16)

    def add(part: Any) -> None:
        if isinstance(part, Mapping):
            part = sorted(part.items())
        if dataclasses.is_dataclass(part) and not isinstance(part, type):
            part = [getattr(part, field.name) for field in dataclasses.fields(part)]
        if isinstance(part, tuple | list):
            total.update(b"(%d" % len(part))
            for inner in part:
                add(inner)
        elif isinstance(part, str | Path) and os.path.isfile(part):
            with open(part, "rb") as file:
                total.update(hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest())
        else:
            total.update(repr(part).encode() + b"\0")

    for split, items in listing.splits.items():
        total.update(f"split {split} {len(items)}\n".encode())
        for item in items:
            total.update(item.name.encode() + b"\0")
            add(item.key)
    return total.hexdigest()


def check_record(record: Record, info: DataInfo) -> None:
    """The contract of a Record (jaxseg/data/listing.py).

    Raises:
      InputError: naming the record and what of it is wrong.
    """
    name, image, label = record["name"], record["image"], record["label"]
    if image.ndim != 3 or image.shape[-1] != info.channels or image.dtype not in (np.uint8, np.uint16, np.float32):
        raise InputError(
            f"{info.name}/{name}: image {image.shape} {image.dtype}; [H,W,{info.channels}] uint8, uint16 or float32 is required"
            " (all pictures of a set have the same channels): convert it"
        )
    if image.dtype == np.float32 and (reason := float_fault(image)):
        raise InputError(f"{info.name}/{name}: {reason}")
    for key in ("label", "instances"):
        if key in record and (record[key].shape != image.shape[:2] or record[key].dtype != np.int32):
            raise InputError(
                f"{info.name}/{name}: {key} {record[key].shape} {record[key].dtype} beside an image of {image.shape[:2]};"
                f" int32 of the image's height and width is required: export the {key} anew at that size"
            )
    wrong = np.unique(label[((label < 0) | (label >= info.num_classes)) & (label != info.ignore_index)])
    if wrong.size:
        raise InputError(
            f"{info.name}/{name}: label values {wrong[:8].tolist()}; 0..{info.num_classes - 1} or {info.ignore_index} (ignored)"
            " are required: correct the label or declare the class"
        )


def float_fault(image: np.ndarray) -> str:
    """What is wrong with the range of a float image, or ""."""
    if not image.size or (image.min() >= 0 and image.max() <= 1):
        return ""
    low, high = float(image.min()), float(image.max())
    return f"the image's float values lie in {low:.6g}..{high:.6g}; 0..1 is required (they are taken as they are): scale them"


def mixed_fault(image: np.ndarray, first: np.ndarray, first_name: str) -> str:
    """What is wrong with the type of an image beside that of the set's first one, or ""."""
    if image.dtype == first.dtype:
        return ""
    return f"the image is {image.dtype}, that of {first_name} is {first.dtype}; one type for all images is required: convert one of them"


# ---------------------------------------------------------------------------------------------------------------- inside


def _check_listing(listing: Listing) -> None:
    name = listing.info.name
    if not listing.splits:
        raise InputError(f"{name}: no split; at least one split with one item is required")
    for split, items in listing.splits.items():
        if not items:
            raise InputError(f"{name}: split {split!r} is empty; at least one item is required: add pictures or leave the split out")
        names = [item.name for item in items]
        for item in names:
            try:
                item.encode()
            except UnicodeEncodeError as error:
                raise InputError(f"{name}: the file name {os.fsencode(item)!r} is not UTF-8, which is required: rename it") from error
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"{name}: split {split!r} has two items named {twice!r}; names must differ: rename one")


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Holds the lock of a data set; the system frees it when the process dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "w")  # noqa: SIM115
    except OSError as error:
        raise InputError(f"--data-dir: {folder} cannot be written ({error.strerror}): pass a folder that can be") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _progress_bar(listing: Listing, show: bool) -> Iterator[Callable[[], None]]:
    if not show:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    with Progress(*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(f"preparing {listing.info.name}", total=sum(map(len, listing.splits.values())))
        yield lambda: bar.advance(task)


def _write(listing: Listing, data_dir: Path, metadata: dict[str, Any], advance: Callable[[], None]) -> None:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.utils import tqdm_utils

    first = listing.read(next(iter(listing.splits.values()))[0])
    arrays = [key for key in ("image", "label", "instances") if key in first]

    def feature(key: str) -> Any:
        """`Image` where encode gives a PNG, so that other readers of TFDS see pictures; opaque bytes otherwise."""
        array = first[key]
        channels = array.shape[-1] if array.ndim == 3 else 1
        dtype = np.uint16 if key == "instances" or array.dtype == np.uint16 else np.uint8
        if array.dtype == np.float32 or channels not in (1, 3) or (dtype == np.uint16 and channels == 3):
            return tfds.features.Scalar(np.object_)
        return tfds.features.Image(shape=(None, None, channels), dtype=dtype, encoding_format="png")

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = listing.info.name
        VERSION = tfds.core.Version(VERSION)

        def _info(self) -> Any:
            features = tfds.features.FeaturesDict({"name": tfds.features.Text(), **{key: feature(key) for key in arrays}})
            return tfds.core.DatasetInfo(
                builder=self,
                features=features,
                description=listing.info.description,
                metadata=tfds.core.MetadataDict(metadata),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            del dl_manager
            return {split: self._generate_examples(items) for split, items in listing.splits.items()}

        def _generate_examples(self, items: Sequence[Item]) -> Iterator[tuple[int, dict[str, Any]]]:
            for index, item in enumerate(items):
                record = listing.read(item)
                check_record(record, listing.info)
                if reason := mixed_fault(record["image"], first["image"], first["name"]):
                    raise InputError(f"{listing.info.name}/{item.name}: {reason}")
                if missing := [key for key in arrays if key not in record]:
                    raise InputError(f"{listing.info.name}/{item.name}: has no {missing[0]} but {first['name']} has: add it, or drop all")
                yield index, {"name": item.name, **{key: images.encode(record[key]) for key in arrays}}
                advance()

    was_active = tqdm_utils._active
    tqdm_utils.display_progress_bar(False)  # ours shows one bar, not five
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS speaks of downloads of unknown size
            Builder(data_dir=data_dir).download_and_prepare(file_format="array_record")
    finally:
        tqdm_utils.display_progress_bar(was_active)
