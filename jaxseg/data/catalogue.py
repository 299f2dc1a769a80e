"""Data sets of the TFDS catalogue, read where they have been prepared as array_record.

Preparing them runs TFDS's own code, which needs TensorFlow; reading them does not. So preparing is a step of its own, in an environment of
its own, and the error of a set that is not there says how.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg.data.dataset import Dataset, tfds_sources
from jaxseg.data.images import read_image, read_label
from jaxseg.data.listing import DataInfo, Record
from jaxseg.errors import InputError
from jaxseg.pictures import default_colours

IGNORE = 255


@dataclasses.dataclass(frozen=True)
class CatalogueSet:
    """How the features of a TFDS set become records.

    Args:
      info: of the records.
      image, label: names of the features.
      class_of: [256] class, or 255, of each value of the label as stored.
      sample_name: name of the feature that names a sample; without one samples are named by their number.
      splits: split as TFDS names it -> as it is named here.
      config: of the TFDS builder, if it has any.
      coded: the label is RGB; red is the class and green the number of the object.
    """

    info: DataInfo
    image: str
    label: str
    class_of: np.ndarray
    splits: Mapping[str, str]
    sample_name: str | None = None
    config: str | None = None
    coded: bool = False


def open_catalogue(name: str, data_dir: str | os.PathLike[str]) -> Dataset:
    """Opens a prepared set of `CATALOGUE`: `open_catalogue("oxford_iiit_pet", "data").split("train")[0]["image"]`.

    Raises:
      InputError: no such set; not prepared, or not as array_record, with the commands that do it; unexpected features or splits.
    """
    if name not in CATALOGUE:
        raise InputError(f"catalogue: no data set {name!r}; there are {', '.join(CATALOGUE)}: give one of them")
    entry = CATALOGUE[name]
    data_dir = Path(data_dir).expanduser()
    parent = data_dir / name / (entry.config or "")
    folders = sorted(parent.glob("[0-9]*.[0-9]*.[0-9]*/dataset_info.json"), key=lambda path: [int(n) for n in path.parent.name.split(".")])
    if not folders:
        raise InputError(f"{name}: not prepared in {parent}. {how_to_prepare(name, data_dir)}")
    folder = folders[-1].parent
    try:
        stored = json.loads(folders[-1].read_text())
    except ValueError as error:
        remedy = f"remove {folder}, then: {how_to_prepare(name, data_dir)}"
        raise InputError(f"{name}: {folders[-1]} is damaged ({error}): {remedy}") from error
    formats = [stored.get("fileFormat", "tfrecord"), *stored.get("alternativeFileFormats", [])]
    if "array_record" not in formats:
        remedy = f"Remove it, then: {how_to_prepare(name, data_dir)}"
        raise InputError(f"{name}: {folder} is prepared as {formats[0]}; array_record is required. {remedy}")
    remedy = f"Remove {folder}, then: {how_to_prepare(name, data_dir)}"
    sources = tfds_sources(folder, remedy)
    missing = [split for split in entry.splits if split not in sources]
    if missing:
        raise InputError(
            f"{name}: {folder} has the splits {', '.join(sources)}; {missing[0]} is required. {how_to_prepare(name, data_dir)}"
        )
    named = {split: _Numbered(sources[stored_name]) for stored_name, split in entry.splits.items()}
    return Dataset(entry.info, named, _to_record(name, entry), remedy=remedy)


def how_to_prepare(name: str, data_dir: str | os.PathLike[str]) -> str:
    """The commands that prepare a set, in one line, and what must be downloaded by hand before."""
    config = CATALOGUE[name].config
    builder = f"{name}/{config}" if config else name
    made = f"tfds.builder('{builder}', data_dir='{data_dir}')"
    snippet = f"import tensorflow_datasets as tfds; {made}.download_and_prepare(file_format='array_record')"
    by_hand = (
        f"Download leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from https://www.cityscapes-dataset.com/login/ (registration) "
        f"into {Path(data_dir) / 'downloads' / 'manual'}. "
        if name == "cityscapes"
        else ""
    )
    return (
        f"{by_hand}Preparing it needs TensorFlow, in a separate environment: "
        f"`python -m venv prepare && prepare/bin/pip install tensorflow tensorflow-datasets array_record importlib_resources`, "
        f'then `prepare/bin/python -c "{snippet}"`'
    )


class _Numbered(Sequence[Any]):
    """Raw examples that know their number."""

    def __init__(self, source: Sequence[Any]):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: Any) -> dict[str, Any]:
        return {**self._source[index], "_number": int(index)}


def _to_record(name: str, entry: CatalogueSet) -> Callable[[Mapping[str, Any]], Record]:
    def to_record(example: Mapping[str, Any]) -> Record:
        for key in (entry.image, entry.label):
            if key not in example:
                raise InputError(
                    f"{name}: an example has the features {', '.join(example)}; {key} is required: prepare it with its TFDS builder"
                )
        sample = Path(_bytes(example[entry.sample_name]).decode()).stem if entry.sample_name else f"{example['_number']:06d}"
        where = f"{name}/{sample}"
        image = read_image(_bytes(example[entry.image]), where)
        if image.shape[-1] == 1:  # some JPEGs of RGB sets are grey
            image = np.repeat(image, entry.info.channels, axis=-1)
        label = read_label(_bytes(example[entry.label]), f"{where} (label)")
        if label.ndim == 3 and not entry.coded:
            raise InputError(f"{where}: the label is RGB; class numbers are required: prepare the set with its TFDS builder")
        record: Record = {"name": sample, "image": image}
        if entry.coded and label.ndim == 3:
            record["instances"] = label[..., 1].astype(np.int32)
            label = label[..., 0]
        if label.max() > IGNORE:
            raise InputError(f"{where}: the label has the value {label.max()}; 0..255 are required: prepare the set with its TFDS builder")
        record["label"] = entry.class_of[label]
        return record

    return to_record


def _bytes(value: Any) -> bytes:
    """Of a bytes object or of a NumPy array that holds one."""
    return value if isinstance(value, bytes) else value.item()


def _class_of(stored: Sequence[int]) -> np.ndarray:
    """[256] int32: stored[k] -> k, all else -> 255."""
    table = np.full(256, IGNORE, np.int32)
    table[list(stored)] = np.arange(len(stored))
    return table


_CITYSCAPES = (  # id in the label files, name, colour
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)

# TFDS downloads annotations_instance.tar, that is the 100 classes of the instance challenge and not the 150 of scene parsing;
# names in the order of instanceInfo100_train.txt (github CSAILVision/placeschallenge).
_SCENE_PARSE = tuple(
    """bed,windowpane,cabinet,person,door,table,curtain,chair,car,painting,sofa,shelf,mirror,armchair,seat,fence,desk,
wardrobe,lamp,bathtub,railing,cushion,box,column,signboard,chest of drawers,counter,sink,fireplace,refrigerator,
stairs,case,pool table,pillow,screen door,bookcase,coffee table,toilet,flower,book,bench,countertop,stove,palm,
kitchen island,computer,swivel chair,boat,arcade machine,bus,towel,light,truck,chandelier,awning,streetlight,booth,
television receiver,airplane,apparel,pole,bannister,ottoman,bottle,van,ship,fountain,washer,plaything,stool,barrel,
basket,bag,minibike,oven,ball,food,step,trade name,microwave,pot,animal,bicycle,dishwasher,screen,sculpture,hood,
sconce,vase,traffic light,tray,ashcan,fan,plate,monitor,bulletin board,radiator,glass,clock,flag""".replace("\n", "").split(",")
)

CATALOGUE: dict[str, CatalogueSet] = {
    "oxford_iiit_pet": CatalogueSet(
        info=DataInfo(
            name="oxford_iiit_pet",
            class_names=("foreground", "background", "outline"),
            channels=3,
            colours=((230, 120, 40), (40, 40, 60), (250, 250, 250)),
            description="Oxford-IIIT Pet: photographs of cats and dogs with trimaps (pet, background, outline). Parkhi et al., CVPR 2012.",
        ),
        image="image",
        label="segmentation_mask",
        class_of=_class_of((1, 2, 3)),
        splits={"train": "train", "test": "test"},
        sample_name="file_name",
    ),
    "cityscapes": CatalogueSet(
        info=DataInfo(
            name="cityscapes",
            class_names=tuple(name for _, name, _ in _CITYSCAPES),
            channels=3,
            colours=tuple(colour for _, _, colour in _CITYSCAPES),
            description="Cityscapes, fine labels: German streets, 19 classes; the labels of test are withheld. Cordts et al., CVPR 2016.",
        ),
        image="image_left",
        label="segmentation_label",
        class_of=_class_of([number for number, _, _ in _CITYSCAPES]),
        splits={"train": "train", "validation": "val", "test": "test"},
        sample_name="image_id",
        config="semantic_segmentation",
    ),
    "scene_parse150": CatalogueSet(
        info=DataInfo(
            name="scene_parse150",
            class_names=_SCENE_PARSE,
            channels=3,
            colours=default_colours(101)[1:],
            description="ADE20K as TFDS has it: 100 classes of things, and their objects; all else is ignored. Zhou et al., CVPR 2017.",
        ),
        image="image",
        label="annotation",
        class_of=_class_of(range(1, 101)),
        splits={"train": "train", "test": "test"},
        coded=True,
    ),
}
"""The sets by name."""
