"""Data sets: listing, preparing, opening, batches. Augmentation (jaxseg.data.augment), which needs JAX, is imported by itself."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from jaxseg.data import camvid, cells, dsb2018, folder, isbi2012
from jaxseg.data.builder import prepare
from jaxseg.data.dataset import Dataset, Split, open_dataset
from jaxseg.data.listing import DataInfo, Item, Listing, Record
from jaxseg.data.pipeline import channel_statistics, to_float, train_batches
from jaxseg.errors import InputError


class Entry(NamedTuple):
    """`listing(source, seed)`; `source` is None where `needs_source` is false."""

    listing: Callable[..., Listing]
    needs_source: bool
    description: str


DATASETS: dict[str, Entry] = {
    "cells": Entry(lambda source, seed: cells.listing(seed), False, cells.INFO.description),
    "isbi2012": Entry(lambda source, seed: isbi2012.listing(source), True, isbi2012.INFO.description),
    "camvid": Entry(lambda source, seed: camvid.listing(source), True, camvid.INFO.description),
    "dsb2018": Entry(lambda source, seed: dsb2018.listing(source), True, dsb2018.INFO.description),
    "folder": Entry(lambda source, seed: folder.listing(source, seed), True, "Your own images/ and labels/ (docs: jaxseg/data/folder.py)."),
}


def make_listing(name: str, source: str | os.PathLike[str] | None = None, seed: int = 0) -> Listing:
    """The Listing of a data set of `DATASETS`.

    Raises:
      InputError: no such set, a source is missing or not wanted, or what the set's own listing finds wrong.
    """
    if name not in DATASETS:
        raise InputError(f"no data set {name!r} to prepare; there are {', '.join(DATASETS)}: choose one of them")
    entry = DATASETS[name]
    if entry.needs_source and source is None:
        raise InputError(f"{name}: no source; the folder that holds the data is required: pass --source FOLDER")
    if source is not None and not entry.needs_source:
        raise InputError(f"{name}: source {os.fspath(source)!r} given, but this set is generated: leave --source out")
    if not 0 <= seed < 2**63:
        raise InputError(f"{name}: seed={seed}; 0 <= seed < 2**63 is required: pass another --seed")
    return entry.listing(None if source is None else Path(source).expanduser(), seed)


__all__ = [
    "DATASETS",
    "DataInfo",
    "Dataset",
    "Entry",
    "Item",
    "Listing",
    "Record",
    "Split",
    "channel_statistics",
    "make_listing",
    "open_dataset",
    "prepare",
    "to_float",
    "train_batches",
]
