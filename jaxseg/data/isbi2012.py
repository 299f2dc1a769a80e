"""ISBI 2012 EM segmentation challenge: 30 labelled slices of a fly's nerve cord, cell interiors against membranes."""

from pathlib import Path

import numpy as np
from scipy import ndimage

from jaxseg.data import images
from jaxseg.data.listing import DataInfo, Item, Listing, Record
from jaxseg.errors import InputError

SPLITS = {"train": range(24), "test": range(24, 30)}
"""Slices of the challenge's training stack; the labels of its test stack were never published. Contiguous: neighbours look alike."""

INFO = DataInfo(
    name="isbi2012",
    class_names=("membrane", "cell"),
    channels=1,
    colours=((30, 30, 30), (235, 200, 120)),
    description=(
        "Serial section electron microscopy of the Drosophila ventral nerve cord, 512x512 grey (ISBI 2012 EM segmentation challenge;"
        " Cardona et al. 2010, Arganda-Carreras et al. 2015). Train: slices 00-23 of the training stack, test: slices 24-29."
    ),
)


def listing(source: Path) -> Listing:
    """The set in the folder `source`, which holds train/image/NN.png and train/label/NN.png, NN from 00 to 29.

    Instances are the 4-connected components of cell interior.

    Raises:
      InputError: a file is missing.
    """
    source = Path(source)
    splits = {}
    for split, slices in SPLITS.items():
        items = []
        for number in slices:
            image, label = (source / "train" / kind / f"{number:02d}.png" for kind in ("image", "label"))
            for path in (image, label):
                if not path.is_file():
                    there = sorted(p.name for p in source.iterdir())[:6] if source.is_dir() else "no such folder"
                    raise InputError(
                        f"isbi2012: {path} is missing ({source}: {there}); a folder with train/image/NN.png and train/label/NN.png,"
                        " NN = 00..29, is required: pass it as --source (github zhixuhao/unet, data/membrane, with N.png renamed NN.png)"
                    )
            items.append(Item(f"{number:02d}", (image, label)))
        splits[split] = items
    return Listing(INFO, splits, _read)


def _read(item: Item) -> Record:
    image_path, label_path = item.key
    image, stored = images.read_image(image_path), images.read_label(label_path)
    if stored.shape != image.shape[:2] or not np.isin(stored, (0, 255)).all():
        raise InputError(
            f"{label_path}: {stored.shape}, values {np.unique(stored)[:6].tolist()}; 0 (membrane) and 255 (cell) of the image's size"
            f" {image.shape[:2]} are required: fetch the file again"
        )
    label = (stored == 255).astype(np.int32)
    instances = np.zeros(label.shape, np.int32)
    ndimage.label(label, output=instances)
    return {"name": item.name, "image": image, "label": label, "instances": instances}
