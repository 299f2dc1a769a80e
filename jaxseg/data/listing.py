"""What a data set is before it is prepared: its classes, its items by split, and how to read one."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Record = dict[str, Any]
"""`name` str, `image` [H,W,C] uint8 | uint16 | float32, `label` [H,W] int32, and perhaps `instances` [H,W] int32."""


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """What a model must know of its data set.

    Args:
      name: as on the command line.
      class_names: one a class; class number = position.
      channels: of an image.
      colours: one RGB triple (0..255) a class, for pictures.
      description: one or two sentences: what it shows, where it is from.
      ignore_index: the label of pixels that count nowhere.
    """

    name: str
    class_names: tuple[str, ...]
    channels: int
    colours: tuple[tuple[int, int, int], ...]
    description: str = ""
    ignore_index: int = 255

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


@dataclasses.dataclass(frozen=True)
class Item:
    """One sample before it is read: `name` is unique in its split, `key` is whatever `Listing.read` needs (paths, a number)."""

    name: str
    key: Any


@dataclasses.dataclass(frozen=True)
class Listing:
    """`read(item)` returns a checked Record or raises InputError naming the file and the reason.

    `generator` is the number of the program that makes the pictures of a generated set; `notes` are said to whoever prepares the set.
    """

    info: DataInfo
    splits: Mapping[str, Sequence[Item]]
    read: Callable[[Item], Record]
    generator: int = 0
    notes: tuple[str, ...] = ()
