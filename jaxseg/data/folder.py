"""Anyone's folder: `images/` and `labels/` paired by file name, perhaps `instances/`, `classes.csv` and split files.

    source/
      images/      PNG, TIFF or JPEG; 1, 3 or more channels; 8 or 16 bit; the same number of channels in all
      labels/      PNG or TIFF of the same names: class numbers, a palette PNG, 0/255 masks, or colours listed in classes.csv
      instances/   optional, PNG or TIFF of the same names: 0 is no object, 1.. number the objects
      classes.csv  optional; header `name`, `name,red,green,blue` or either with `index`; one row a class, in class order without `index`
      train.txt, val.txt, test.txt   optional, one file name (with or without ending) a line; files named in none are left out

`images/train`, `images/val`, `images/test` (and the same below labels/ and instances/) do instead of the split files. Without either
the split is drawn from the seed: 70 % train, 15 % val, 15 % test.

What 255 means is decided once, over all labels: where every value is 0 or 255 the labels are masks, and 255 becomes class 1 (unless
classes.csv names other than two classes or has a row of index 255); otherwise 255 is ignored. A palette PNG counts by its indices.
"""

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxseg.data.classes_csv import IGNORE, ClassTable, class_colours, read_classes
from jaxseg.data.images import read_image, read_label
from jaxseg.data.listing import DataInfo, Item, Listing, Record
from jaxseg.errors import InputError

SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
LABEL_SUFFIXES = (".png", ".tif", ".tiff")


class Paths(NamedTuple):
    """The files of one sample."""

    image: Path
    label: Path
    instances: Path | None


def listing(source: Path, seed: int = 0) -> Listing:
    """Finds, pairs, splits and looks through a folder (every label is read once, and one image).

    Raises:
      InputError: missing or empty folders, unpaired or doubled files, bad split files, bad classes.csv, bad label values.
    """
    source = Path(source)
    groups = _groups(source)
    splits = _splits(source, groups, seed)
    listed = read_classes(source / "classes.csv")
    samples = [paths for members in splits.values() for _, paths in members]
    colours = listed.number_of_colour() if listed else {}
    values_of = _scan(samples, colours)
    values = set().union(*values_of.values())
    mask = values <= {0, IGNORE} and (listed is None or (len(listed.names) == 2 and IGNORE not in listed.values))
    names = _class_names(listed, values_of, mask)
    faults = [fault for path, found in values_of.items() if (fault := _out_of_range(path, found, len(names)))]
    if faults:
        raise InputError(f"folder: {_some(faults)}: correct the labels or classes.csv; maps of single objects belong in instances/")
    first, channels = _first_readable(samples)
    info = DataInfo(
        name="folder",
        class_names=names,
        channels=channels,
        colours=class_colours(listed, len(names)),
        description=f"The folder {source.resolve().name}: {len(samples)} images, {len(names)} classes.",
    )
    read = functools.partial(_read, info=info, colours=colours, mask=mask, first=first)
    items = {split: [Item(name, paths) for name, paths in members] for split, members in splits.items()}
    return Listing(info, items, read)


# Files


def _groups(source: Path) -> dict[str, dict[str, Paths]]:
    """The samples by stem; by sub-folder where images/ has train, val or test, else in one group named ""."""
    for folder in (source, source / "images", source / "labels"):
        if not folder.is_dir():
            raise InputError(
                f"folder: there is no folder {folder}; required are {source}/images and {source}/labels with files of the same names: "
                "make them, or give the folder that holds both as --source"
            )
    parts = [split for split in SPLITS if (source / "images" / split).is_dir()] or [""]
    return {part: _pair(*(source / kind / part for kind in ("images", "labels", "instances"))) for part in parts}


def _pair(images: Path, labels: Path, instances: Path) -> dict[str, Paths]:
    if not labels.is_dir():
        raise InputError(f"folder: there is {images} but no folder {labels}: make it, with a label for every image")
    for folder in (labels, instances):
        lossy = [path.name for path in sorted(folder.glob("*")) if path.suffix.lower() in (".jpg", ".jpeg")]
        if lossy:
            raise InputError(
                f"folder: JPEG changes label values, so {folder} cannot hold {_some(lossy)}: save labels as PNG from their source"
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
            f"folder: unpaired files: {_some(faults)}. Each image needs a file of the same name before the ending: add or remove files"
        )
    return {stem: Paths(path, label[stem], instance.get(stem)) for stem, path in image.items()}


def _by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    doubled = []
    for path in sorted(folder.glob("*")):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem in files:
            doubled.append(f"{files[path.stem].name} and {path.name}")
        files[path.stem] = path
    if doubled:
        raise InputError(
            f"folder: in {folder} the same name stands twice: {_some(doubled)}. Names before the ending must differ: rename or remove one"
        )
    return files


def _splits(source: Path, groups: Mapping[str, Mapping[str, Paths]], seed: int) -> dict[str, list[tuple[str, Paths]]]:
    files = {split: source / f"{split}.txt" for split in SPLITS if (source / f"{split}.txt").is_file()}
    if "" not in groups:
        if files:
            raise InputError(
                f"folder: {source} has both sub-folders images/{'|'.join(groups)} and {_some(p.name for p in files.values())}: "
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
            stem = line if line in samples else Path(line).stem
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
            f"folder: split files in {source}: {_some(faults)}. Each sample belongs in one split: correct the files or remove them all"
        )
    return named


# Labels


def _class_names(listed: ClassTable | None, values_of: Mapping[Path, set[int]], mask: bool) -> tuple[str, ...]:
    if listed:
        return listed.names
    if mask:
        return "background", "foreground"
    values = set().union(*values_of.values())
    highest = max(values - {IGNORE})  # not empty: only {0, 255} and its parts are, and those are masks
    beyond = {highest} if highest > IGNORE else {value for value in values if value < 0}
    if beyond:
        path, found = next((path, found) for path, found in values_of.items() if found & beyond)
        raise InputError(
            f"folder: {path} has label values from {min(found)} to {max(found)}; required are class numbers 0..{IGNORE - 1}, "
            f"and {IGNORE} for ignored pixels: number the classes from 0; maps of single objects belong in instances/"
        )
    return tuple(f"class {number}" for number in range(highest + 1))


def _first_readable(samples: Iterable[Paths]) -> tuple[Path, int]:
    """An image and its number of channels: unreadable ones before it are faults of their own, for `check` to list."""
    faults = []
    for paths in samples:
        try:
            return paths.image, read_image(paths.image, str(paths.image)).shape[-1]
        except InputError as error:
            faults.append(str(error))
    raise InputError(f"folder: no image can be read: {_some(faults)}")


def _scan(samples: Iterable[Paths], colours: Mapping[int, int]) -> dict[Path, set[int]]:
    """All values of each label, colours turned to classes; every file that cannot be read or turned is named."""
    values: dict[Path, set[int]] = {}
    faults = []
    for paths in samples:
        try:
            values[paths.label] = set(np.unique(_numbers(paths.label, colours)).tolist())
        except InputError as error:
            faults.append(str(error))
    if faults:
        raise InputError(_some(faults))
    return values


def _numbers(path: Path, colours: Mapping[int, int]) -> np.ndarray:
    """[H,W] numbers as stored, or [H,W] classes where the label is in colours."""
    label = read_label(path, str(path))
    if label.ndim == 2:
        return label
    if not colours:
        if (label == label[..., :1]).all():  # a grey label saved as RGB
            return label[..., 0]
        raise InputError(
            f"{path} is a label in colours, and there is no classes.csv with colours: write one beside images/, header name,red,green,blue"
        )
    codes = label.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    known = np.array(sorted(colours))
    place = np.searchsorted(known, codes).clip(max=len(known) - 1)
    unlisted = codes[known[place] != codes]
    if unlisted.size:
        found, counts = np.unique(unlisted, return_counts=True)
        most = counts.argmax()
        colour = (int(found[most]) >> 16, int(found[most]) >> 8 & 255, int(found[most]) & 255)
        raise InputError(
            f"{path} has {counts[most]} pixels of colour {colour}, which classes.csv does not list "
            f"({found.size} such colours, {unlisted.size} pixels): "
            "add the colour to classes.csv (index 255: ignored), or save the label without smoothing"
        )
    return np.array([colours[code] for code in known.tolist()])[place]


def _out_of_range(path: Path, values: Iterable[int], num_classes: int) -> str:
    bad = sorted(value for value in values if not (0 <= value < num_classes or value == IGNORE))
    if not bad:
        return ""
    some = ", ".join(map(str, bad[:5])) + (" ..." if len(bad) > 5 else "")
    return f"{path} has the label values {some}; required are 0..{num_classes - 1}, and {IGNORE} for ignored pixels"


def _to_class(path: Path, num_classes: int, colours: Mapping[int, int], mask: bool) -> np.ndarray:
    """[H,W] int32 classes and 255."""
    label = _numbers(path, colours)
    values = np.unique(label).tolist()
    if mask and set(values) <= {0, IGNORE}:
        return (label == IGNORE).astype(np.int32)
    fault = _out_of_range(path, values, num_classes)
    if fault:
        raise InputError(f"{fault}: correct the label or classes.csv")
    return label.astype(np.int32)


def _read(item: Item, *, info: DataInfo, colours: Mapping[int, int], mask: bool, first: Path) -> Record:
    paths: Paths = item.key
    image, label = read_image(paths.image, str(paths.image)), _to_class(paths.label, info.num_classes, colours, mask)
    if image.shape[-1] != info.channels:
        raise InputError(
            f"{paths.image} has {image.shape[-1]} channels, {first} has {info.channels}; "
            "required is one number for all images: convert or remove it"
        )
    if image.shape[:2] != label.shape:
        raise InputError(
            f"{paths.image} is {_size(image)}, its label {paths.label} is {_size(label)}; required is the same size: export the label anew"
        )
    record: Record = {"name": item.name, "image": image, "label": label}
    if paths.instances:
        instances = read_label(paths.instances, str(paths.instances))
        if instances.shape != label.shape:
            raise InputError(
                f"{paths.instances} has shape {instances.shape}; required are whole numbers of shape {label.shape}, "
                "as its label has: export it anew"
            )
        record["instances"] = instances.astype(np.int32)
    return record


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]} x {array.shape[0]} (width x height)"


def _some(parts: Iterable[str]) -> str:
    parts = list(parts)
    return "; ".join(parts[:10]) + (f"; and {len(parts) - 10} more ({len(parts)} in all)" if len(parts) > 10 else "")
