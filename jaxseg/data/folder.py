"""Anyone's folder: `images/` and `labels/` paired by file name, perhaps `instances/`, `classes.csv` and split files.

    source/
      images/      PNG, TIFF or JPEG; 1, 3 or more channels; 8 or 16 bit; the same number of channels in all
      labels/      PNG or TIFF of the same names: class numbers, a palette PNG, 0/255 masks, or colours listed in classes.csv
      instances/   optional, PNG or TIFF of the same names: 0 is no object, 1.. number the objects
      classes.csv  optional; header `name`, `name,red,green,blue` or either with `index`; one row a class, in class order without `index`
      train.txt, val.txt, test.txt   optional, one file name (with or without ending) a line; files named in none are left out,
                 and the listing's notes say how many

`images/train`, `images/val`, `images/test` (and the same below labels/ and instances/) do instead of the split files. Without either
the split is drawn from the seed: 70 % train, 15 % val, 15 % test.

What 255 means is decided once, over all labels: where every value is 0 or 255 the labels are masks, and 255 becomes class 1 (unless
classes.csv names other than two classes or has a row of index 255); otherwise 255 is ignored. A palette PNG counts by its indices.
Without classes.csv the class numbers have no gaps. Hidden files are passed over; any other file that would be left out is an error.
"""

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from jaxseg.data.classes_csv import IGNORE, ClassTable, class_colours, read_classes
from jaxseg.data.folder_files import Paths, find_samples, some
from jaxseg.data.images import read_image, read_label
from jaxseg.data.listing import DataInfo, Item, Listing, Record
from jaxseg.errors import InputError

MASK_16 = 2**16 - 1
UNNAMED = 64
"""More classes than this need a classes.csv: without one they are taken for a mask's smoothed edges."""


def listing(source: Path, seed: int = 0) -> Listing:
    """Finds, pairs, splits and looks through a folder (every label is read once, and one image).

    Raises:
      InputError: missing or empty folders, unpaired or doubled files, bad split files, bad classes.csv, bad label values.
    """
    source = Path(source)
    splits, notes = find_samples(source, seed)
    listed = read_classes(source / "classes.csv")
    samples = [paths for members in splits.values() for _, paths in members]
    colours = listed.number_of_colour() if listed else {}
    values_of = _scan(samples, colours)
    values = set().union(*values_of.values())
    if values <= {0, IGNORE, MASK_16} and MASK_16 in values:
        path = next(path for path, found in values_of.items() if MASK_16 in found)
        raise InputError(f"folder: {path} looks like a 16-bit mask (0 and {MASK_16}); 0 and {IGNORE} are required: save masks with 8 bits")
    mask = values <= {0, IGNORE} and (listed is None or (len(listed.names) == 2 and IGNORE not in listed.values))
    names = _class_names(listed, values_of, mask)
    faults = [fault for path, found in values_of.items() if (fault := _out_of_range(path, found, len(names)))]
    if faults:
        raise InputError(f"folder: {some(faults)}: correct the labels or classes.csv; maps of single objects belong in instances/")
    first, channels = _first_readable(samples)
    info = DataInfo(
        name="folder",
        class_names=names,
        channels=channels,
        colours=class_colours(listed, len(names)),
        description=f"A folder of {len(samples)} images, {len(names)} classes.",
    )
    read = functools.partial(_read, info=info, colours=colours, mask=mask, first=first)
    items = {split: [Item(name, paths) for name, paths in members] for split, members in splits.items()}
    return Listing(info, items, read, notes=notes)


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
    known = sorted(values - {IGNORE})
    if len(known) <= highest or len(known) > UNNAMED:
        few = ", ".join(map(str, known[:8])) + (" ..." if len(known) > 8 else "")
        path = max(values_of, key=lambda path: len(values_of[path]))
        raise InputError(
            f"folder: the labels have {len(known)} values {few} up to {highest} ({path} has most); without classes.csv at most {UNNAMED} "
            f"classes 0, 1, 2 ... without gaps are required: threshold masks with smoothed edges to 0/{IGNORE}, number the classes "
            "without gaps, or list them in classes.csv"
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
    raise InputError(f"folder: no image can be read: {some(faults)}")


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
        raise InputError(some(faults))
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
