"""`jaxseg data`: list, prepare, check and show data sets."""

import difflib
import shlex
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from jaxseg.data import DATASETS, camvid, cells, dsb2018, isbi2012, make_listing, open_dataset
from jaxseg.data import prepare as prepare_listing
from jaxseg.data.catalogue import CATALOGUE, how_to_prepare
from jaxseg.data.check import check as check_data
from jaxseg.data.check import print_report
from jaxseg.data.dataset import Dataset
from jaxseg.data.listing import Listing
from jaxseg.data.show import contact_sheet
from jaxseg.errors import InputError

Name = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
Folder = Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
MaybeFolder = Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")]

EXAMPLE = """Data sets: see which there are, prepare one, check it, look at it.

For example, from nothing to a picture: `jaxseg data prepare cells --data-dir data`, then `jaxseg data check cells --data-dir data`,
then `jaxseg data show cells --data-dir data --out cells.png`."""


def list_sets() -> int:
    """The data sets that there are: name, number of classes, what it is and how to get it.

    For example: `jaxseg data list`
    """
    table = Table()
    for column in ("name", "classes", "how to get it", "what it is"):
        table.add_column(column, no_wrap=column != "what it is")
    known = {"cells": cells.INFO, "isbi2012": isbi2012.INFO, "camvid": camvid.INFO, "dsb2018": dsb2018.INFO}
    for name, entry in DATASETS.items():
        how = "--source FOLDER" if entry.needs_source else "made here"
        table.add_row(name, str(known[name].num_classes) if name in known else "yours", how, entry.description)
    for name, entry in CATALOGUE.items():
        table.add_row(name, str(entry.info.num_classes), "TFDS", entry.info.description)
    console = Console(highlight=False)
    console.print(table)
    console.print("made here: jaxseg data prepare NAME --data-dir DIR", soft_wrap=True, markup=False)
    console.print("--source FOLDER: jaxseg data prepare NAME --source FOLDER --data-dir DIR", soft_wrap=True, markup=False)
    console.print("TFDS: needs TensorFlow in an environment of its own; jaxseg data prepare NAME --data-dir DIR says how", soft_wrap=True)
    return 0


def prepare(name: Name, data_dir: Folder, source: MaybeFolder = None, seed: int = 0) -> int:
    """Prepare a data set for training: every sample is read, checked and written below --data-dir.

    For example: `jaxseg data prepare cells --data-dir data`, which needs no source, or, for your own images/ and labels/,
    `jaxseg data prepare folder --source my_folder --data-dir data`

    Such a folder holds images/ (PNG, TIFF, JPEG) and labels/ (PNG, TIFF) with files of the same names; labels are class numbers from 0
    (255: ignored), 0/255 masks, or colours listed in classes.csv (name,red,green,blue). train.txt, val.txt, test.txt may name the splits.

    Args:
      name: of the data set, as `jaxseg data list` names it.
      data_dir: where prepared sets are kept; made if need be.
      source: the folder that holds the files of the set.
      seed: of what is drawn: the samples of cells, the split of a folder without split files.
    """
    _check_name(name)
    if name in CATALOGUE:
        if source is not None:
            raise InputError(
                f"{name}: source {str(source)!r} given, but TFDS prepares this set: leave --source out. {how_to_prepare(name, data_dir)}"
            )
        dataset = open_dataset(name, data_dir)
        print(f"{name}: is prepared in {data_dir / name}")
    else:
        listing = make_listing(name, source, seed)
        where = prepare_listing(listing, data_dir)
        dataset = open_dataset(name, data_dir)
        print(f"{name}: prepared in {where}")
        _print_notes(listing)
    print(
        f"{dataset.info.num_classes} classes, {dataset.info.channels} channels: {', '.join(f'{s} {n}' for s, n in dataset.splits.items())}"
    )
    print(f"next: jaxseg data check {name} --data-dir {shlex.quote(str(data_dir))}")
    print(f"      jaxseg data show {name} --data-dir {shlex.quote(str(data_dir))} --out {name}.png")
    return 0


def check(name: Name, data_dir: MaybeFolder = None, source: MaybeFolder = None, seed: int = 0) -> int:
    """Look at every sample and say all that is wrong: exit code 0 without faults, 2 with. Warnings leave the code as it is.

    For example, before it is prepared: `jaxseg data check folder --source my_folder`, or afterwards:
    `jaxseg data check folder --data-dir data`

    Args:
      name: of the data set, as `jaxseg data list` names it.
      data_dir: where the set has been prepared.
      source: instead of --data-dir: the folder that holds the files of the set.
      seed: with --source: of the split.
    """
    data = _open(name, data_dir, source, seed)
    report = check_data(data)
    _print_notes(data)
    print_report(report)
    return 0 if report.ok else 2


def show(
    name: Name,
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.png")],
    data_dir: MaybeFolder = None,
    source: MaybeFolder = None,
    split: str = "train",
    count: int = 12,
    seed: int = 0,
) -> int:
    """Write a picture of some samples: image, label in colours and overlay, with the names of the classes.

    For example: `jaxseg data show cells --data-dir data --out cells.png`

    Args:
      name: of the data set, as `jaxseg data list` names it.
      out: the PNG file to write.
      data_dir: where the set has been prepared.
      source: instead of --data-dir: the folder that holds the files of the set.
      split: train, val or test.
      count: samples, spread evenly over the split.
      seed: with --source: of the split.
    """
    contact_sheet(_open(name, data_dir, source, seed), out, split, count)
    print(f"{name}: {split} shown in {out}")
    return 0


def main(argv: list[str]) -> int:
    """Runs `jaxseg data ARGV` and returns the exit code; InputErrors pass through."""
    app = tyro.extras.SubcommandApp()
    app.command(name="list")(list_sets)
    app.command(prepare)
    app.command(check)
    app.command(show)
    return app.cli(prog="jaxseg data", description=EXAMPLE, args=argv)


def _print_notes(data: Dataset | Listing) -> None:
    for note in data.notes if isinstance(data, Listing) else ():
        print(f"{data.info.name}: {note}")


def _open(name: str, data_dir: Path | None, source: Path | None, seed: int) -> Dataset | Listing:
    _check_name(name)
    if (data_dir is None) == (source is None):
        got = "neither" if data_dir is None else "both"
        raise InputError(
            f"{name}: {got} of --data-dir and --source given; one is required: the folder of prepared sets, or that of the set's files"
        )
    if data_dir is None:
        if name in CATALOGUE:
            raise InputError(f"{name}: --source given, but this set is read where TFDS has prepared it: pass --data-dir FOLDER")
        return make_listing(name, source, seed)
    return open_dataset(name, data_dir)


def _check_name(name: str) -> None:
    names = [*DATASETS, *CATALOGUE]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else "`jaxseg data list` describes them"
        raise InputError(f"no data set {name!r}; there are {', '.join(names)}: {hint}")
