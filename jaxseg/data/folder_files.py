"""The files of a folder: found, paired and split. What would be left out in silence is an error, or a note."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxseg.errors import InputError

SPLITS = ("train", "val", "test")
NEARLY_SPLITS = (*SPLITS, "training", "trn", "valid", "validation", "dev", "eval", "testing", "tst")
IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
LABEL_SUFFIXES = (".png", ".tif", ".tiff")


class Paths(NamedTuple):
    """The files of one sample."""

    image: Path
    label: Path
    instances: Path | None


def find_samples(source: Path, seed: int) -> tuple[dict[str, list[tuple[str, Paths]]], tuple[str, ...]]:
    """Names and files of the samples by split, and what should be said of the folder.

    Raises:
      InputError: missing or empty folders, unpaired or doubled files, files that belong to no split or cannot be read, bad split files.
    """
    groups = _groups(source)
    splits = _splits(source, groups, seed)
    left_out = sum(map(len, groups.values())) - sum(map(len, splits.values()))
    return splits, ((f"{left_out} images are in no split file and are left out",) if left_out else ())


def some(parts: Iterable[str]) -> str:
    """The first ten, and how many there are."""
    parts = list(parts)
    return "; ".join(parts[:10]) + (f"; and {len(parts) - 10} more ({len(parts)} in all)" if len(parts) > 10 else "")


def _groups(source: Path) -> dict[str, dict[str, Paths]]:
    """The samples by stem; by sub-folder where images/ has train, val or test, else in one group named ""."""
    for folder in (source, source / "images", source / "labels"):
        if not folder.is_dir():
            raise InputError(
                f"folder: there is no folder {folder}; required are {source}/images and {source}/labels with files of the same names: "
                "make them, or give the folder that holds both as --source"
            )
    parts = [split for split in SPLITS if (source / "images" / split).is_dir()] or [""]
    faults = [f"{path} is no split file" for path in sorted(source.glob("*")) if _looks_like_a_split(path)]
    for kind in ("images", "labels", "instances"):
        strays = [path for path in _visible(source / kind) if (path.name not in parts if "" not in parts else path.is_dir())]
        faults += [f"{path} is in no split" for path in strays]
    if faults:
        raise InputError(
            f"folder: {some(faults)}. Required are sub-folders train, val, test with all the files, or no sub-folders and perhaps "
            "train.txt, val.txt, test.txt: rename or remove these"
        )
    return {part: _pair(*(source / kind / part for kind in ("images", "labels", "instances"))) for part in parts}


def _pair(images: Path, labels: Path, instances: Path) -> dict[str, Paths]:
    if not labels.is_dir():
        raise InputError(f"folder: there is {images} but no folder {labels}: make it, with a label for every image")
    for folder in (labels, instances):
        lossy = [path.name for path in _visible(folder) if path.suffix.lower() in (".jpg", ".jpeg")]
        if lossy:
            raise InputError(
                f"folder: JPEG changes label values, so {folder} cannot hold {some(lossy)}: save labels as PNG from their source"
            )
    image, label, instance = _by_stem(images, IMAGE_SUFFIXES), _by_stem(labels, LABEL_SUFFIXES), _by_stem(instances, LABEL_SUFFIXES)
    if not image:
        raise InputError(f"folder: {images} holds no image: put files ending in {', '.join(IMAGE_SUFFIXES)} there")
    faults = [f"{path} has no label in {labels}" for stem, path in image.items() if stem not in label]
    faults += [f"{path} has no image in {images}" for stem, path in label.items() if stem not in image]
    if instance:
        faults += [f"{path} has no instance map in {instances}" for stem, path in image.items() if stem not in instance]
        faults += [f"{path} has no image in {images}" for stem, path in instance.items() if stem not in image]
    if faults:
        raise InputError(
            f"folder: unpaired files: {some(faults)}. Each image needs a file of the same name before the ending: add or remove files"
        )
    return {stem: Paths(path, label[stem], instance.get(stem)) for stem, path in image.items()}


def _by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    doubled, unreadable = [], []
    for path in _visible(folder):
        if path.suffix.lower() not in suffixes or path.is_dir():
            unreadable.append(path.name)
            continue
        if path.stem in files:
            doubled.append(f"{files[path.stem].name} and {path.name}")
        files[path.stem] = path
    if unreadable:
        raise InputError(
            f"folder: {folder} holds {some(unreadable)}; only files ending in {', '.join(suffixes)} can be read: "
            "convert or remove the others"
        )
    if doubled:
        raise InputError(
            f"folder: in {folder} the same name stands twice: {some(doubled)}. Names before the ending must differ: rename or remove one"
        )
    return files


def _splits(source: Path, groups: Mapping[str, Mapping[str, Paths]], seed: int) -> dict[str, list[tuple[str, Paths]]]:
    files = {split: source / f"{split}.txt" for split in SPLITS if (source / f"{split}.txt").is_file()}
    if "" not in groups:
        if files:
            raise InputError(
                f"folder: {source} has both sub-folders images/{'|'.join(groups)} and {some(p.name for p in files.values())}: "
                "keep one of the two"
            )
        return {split: list(members.items()) for split, members in groups.items()}
    samples = groups[""]
    if not files:
        names = sorted(samples)
        order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
        part = max(1, round(0.15 * len(order)))
        val, test = (part, part) if len(order) >= 3 else (len(order) - 1, 0)
        drawn = {"val": order[:val], "test": order[val : val + test], "train": order[val + test :]}
        return {split: [(name, samples[name]) for name in sorted(drawn[split])] for split in SPLITS if drawn[split]}
    named: dict[str, list[tuple[str, Paths]]] = {}
    home: dict[str, str] = {}
    faults = []
    for split, path in files.items():
        named[split] = []
        for line in filter(None, map(str.strip, path.read_text("utf-8-sig", "replace").splitlines())):
            stem = Path(line).name
            if stem not in samples and Path(line).suffix.lower() in IMAGE_SUFFIXES:
                stem = Path(line).stem
            if stem not in samples:
                faults.append(f"{path.name} names {line}, which is not in {source / 'images'}")
            elif stem in home:
                faults.append(f"{path.name} names {line}, which {home[stem]} names already")
            else:
                home[stem] = path.name
                named[split].append((stem, samples[stem]))
        if not named[split]:
            faults.append(f"{path.name} names no sample")
    if "train" not in files:
        faults.append("there is no train.txt")
    if faults:
        raise InputError(
            f"folder: split files in {source}: {some(faults)}. Each sample belongs in one split: correct the files or remove them all"
        )
    return named


def _visible(folder: Path) -> list[Path]:
    """What lies in a folder, without what systems leave there."""
    paths = [
        path for path in sorted(folder.glob("*")) if not path.name.startswith(".") and path.name.lower() not in ("thumbs.db", "desktop.ini")
    ]
    odd = [os.fsencode(path.name) for path in paths if not _is_utf8(path.name)]
    if odd:
        raise InputError(f"folder: in {folder} the file name {odd[0]!r} is not UTF-8, which is required: rename it")
    return paths


def _looks_like_a_split(path: Path) -> bool:
    return path.suffix.lower() == ".txt" and path.stem.lower() in NEARLY_SPLITS and path.name not in [f"{split}.txt" for split in SPLITS]


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
