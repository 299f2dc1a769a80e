"""Looks at every sample of a data set and says all that is wrong, not only the first thing."""

import collections
import dataclasses
import hashlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from jaxseg.data.builder import float_fault, mixed_fault
from jaxseg.data.listing import DataInfo, Listing, Record
from jaxseg.errors import InputError

if TYPE_CHECKING:
    from jaxseg.data.dataset import Dataset


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing wrong, or doubtful, with one sample (`name` is empty where it is with the whole split)."""

    split: str
    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.split}/{self.name}: {self.reason}" if self.name else f"{self.split}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class Report:
    """What `check` found.

    Args:
      info: of the data set.
      lengths: samples by split, unreadable ones included.
      faults: what must be put right before training.
      warnings: what should be looked at.
      pixels: by split, [K] int64: pixels of each class; ignored pixels are in no class.
      ignored: by split, ignored pixels.
      weights: [K] median-frequency weights of the training split, `median_frequency_weights`.
    """

    info: DataInfo
    lengths: dict[str, int]
    faults: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    pixels: dict[str, np.ndarray]
    ignored: dict[str, int]
    weights: np.ndarray

    @property
    def ok(self) -> bool:
        return not self.faults

    def frequencies(self, split: str = "train") -> np.ndarray:
        """[K] share of each class in the pixels that are not ignored; nan where all are ignored."""
        total = self.pixels[split].sum()
        return self.pixels[split] / total if total else np.full(self.info.num_classes, np.nan)


def median_frequency_weights(pixels: np.ndarray, image_pixels: np.ndarray) -> np.ndarray:
    """weight(c) = median(f) / f(c), with f(c) = pixels of c / pixels of the images that contain c; 0 for a class that is nowhere.

    Args:
      pixels: [K], of each class.
      image_pixels: [K], of all images that contain the class, ignored pixels included.

    Source: Eigen and Fergus, Predicting Depth, Surface Normals and Semantic Labels, ICCV 2015, section 6.3.2.

    >>> median_frequency_weights(np.array([25, 100, 50]), np.array([100, 100, 100])).tolist()
    [2.0, 0.5, 1.0]
    """
    there = pixels > 0
    frequency = np.divide(pixels, image_pixels, out=np.ones(len(pixels)), where=there)
    return np.where(there, np.median(frequency[there]) / frequency, 0.0) if there.any() else np.zeros(len(pixels))


def check(data: "Listing | Dataset", progress: bool = True) -> Report:
    """Reads every sample of every split. `progress` shows a bar on standard error."""
    info = data.info
    faults, warnings = [], []
    pixels = {split: np.zeros(info.num_classes, np.int64) for split in data.splits}
    image_pixels = np.zeros(info.num_classes, np.int64)
    ignored = collections.Counter(dict.fromkeys(data.splits, 0))
    names = {split: collections.Counter() for split in data.splits}
    homes: dict[bytes, dict[str, str]] = collections.defaultdict(dict)  # digest of an image -> split -> name
    first: tuple[np.ndarray, str] | None = None  # an image and where it is from
    samples = {split: list(_samples(data, split)) for split in data.splits}
    with Progress(console=Console(stderr=True), disable=not progress, transient=True) as bar:
        for split, members in samples.items():
            for name, read in bar.track(members, description=f"check {split}"):
                try:
                    record = read()
                except InputError as error:
                    faults.append(Finding(split, name, str(error)))
                    continue
                name = str(record.get("name", name))
                names[split][name] += 1
                sample_faults, sample_warnings = _look(record, info)
                faults += [Finding(split, name, reason) for reason in sample_faults]
                warnings += [Finding(split, name, reason) for reason in sample_warnings]
                first = first or (np.asarray(record["image"]), f"{split}/{name}")
                if reason := mixed_fault(np.asarray(record["image"]), *first):
                    faults.append(Finding(split, name, reason))
                label = np.asarray(record["label"])
                counts = _count(label, info.num_classes)
                pixels[split] += counts
                ignored[split] += int((label == info.ignore_index).sum())
                if split == "train":
                    image_pixels += np.where(counts > 0, label.size, 0)
                homes[_digest(record["image"])].setdefault(split, name)
    faults += [Finding(split, "", reason) for split, reason in _split_faults(info, names, pixels)]
    warnings += [Finding(split, name, reason) for split, name, reason in _shared(names, homes)]
    weights = median_frequency_weights(pixels.get("train", np.zeros(info.num_classes, np.int64)), image_pixels)
    lengths = {split: len(members) for split, members in samples.items()}
    return Report(info, lengths, tuple(faults), tuple(warnings), pixels, dict(ignored), weights)


def print_report(report: Report, console: Console | None = None) -> None:
    """A table of the classes, then every warning and every fault in a line each."""
    console = console or Console(file=sys.stdout)
    table = Table(title=f"{report.info.name}: " + ", ".join(f"{split} {length}" for split, length in report.lengths.items()))
    table.add_column("class")
    table.add_column("name")
    for split in report.lengths:
        table.add_column(f"{split} %", justify="right")
    table.add_column("weight", justify="right")
    shares = {split: 100 * report.frequencies(split) for split in report.lengths}
    for number, name in enumerate(report.info.class_names):
        cells = [f"{share[number]:.2f}" for share in shares.values()]
        table.add_row(str(number), escape(name), *cells, f"{report.weights[number]:.4f}")
    if any(report.ignored.values()):
        totals = {split: max(1, int(counts.sum()) + report.ignored[split]) for split, counts in report.pixels.items()}
        cells = [f"{100 * report.ignored[split] / total:.2f}" for split, total in totals.items()]
        table.add_row(str(report.info.ignore_index), "(ignored, % of all pixels)", *cells, "")
    console.print(table)
    console.print("[dim]weight: median frequency over train, for a weighted loss[/dim]")
    for kind, style, findings in (("warning", "yellow", report.warnings), ("fault", "red", report.faults)):
        for finding in findings:
            console.print(f"[{style}]{kind}[/{style}] {escape(str(finding))}", soft_wrap=True, highlight=False)
    console.print(f"{len(report.faults)} faults, {len(report.warnings)} warnings", highlight=False)


def _samples(data: "Listing | Dataset", split: str) -> Iterator[tuple[str, Callable[[], Record]]]:
    if isinstance(data, Listing):
        for item in data.splits[split]:
            yield item.name, lambda item=item: data.read(item)
    else:
        records = data.split(split)
        for number in range(len(records)):
            yield f"number {number}", lambda number=number: records[number]


def _look(record: Record, info: DataInfo) -> tuple[list[str], list[str]]:
    """Faults and warnings of one record."""
    image, label = np.asarray(record["image"]), np.asarray(record["label"])
    faults, warnings = [], []
    if image.ndim != 3 or image.shape[-1] != info.channels:
        faults.append(f"the image has shape {image.shape}; required is [H,W,{info.channels}]: convert it")
    if image.shape[:2] != label.shape:
        faults.append(f"the image is {image.shape[:2]} (H, W), its label {label.shape}; required is the same size: export the label anew")
    wrong = np.unique(label[((label < 0) | (label >= info.num_classes)) & (label != info.ignore_index)])
    if wrong.size:
        some = ", ".join(map(str, wrong[:5].tolist())) + (" ..." if wrong.size > 5 else "")
        faults.append(
            f"the label has the values {some}; required are 0..{info.num_classes - 1}, "
            f"and {info.ignore_index} for ignored pixels: correct it"
        )
    if "instances" in record and np.asarray(record["instances"]).shape != label.shape:
        faults.append(f"the instance map has shape {np.asarray(record['instances']).shape}, the label {label.shape}: export it anew")
    broken = np.count_nonzero(~np.isfinite(image))
    if broken:
        faults.append(f"the image has {broken} values that are NaN or infinite: replace them, or leave the image out")
    elif image.dtype.kind == "f" and image.size and (reason := float_fault(image)):
        faults.append(reason)
    if image.size and image.min() == image.max():
        warnings.append(f"every value of the image is {image.flat[0]}")
    if (label == info.ignore_index).all():
        warnings.append("every pixel of the label is ignored")
    return faults, warnings


def _count(label: np.ndarray, num_classes: int) -> np.ndarray:
    inside = label[(label >= 0) & (label < num_classes)]
    return np.bincount(inside.ravel(), minlength=num_classes).astype(np.int64)


def _digest(image: np.ndarray) -> bytes:
    return hashlib.blake2b(f"{image.dtype}{image.shape}".encode() + image.tobytes(), digest_size=16).digest()


def _split_faults(info: DataInfo, names: dict[str, collections.Counter], pixels: dict[str, np.ndarray]) -> Iterator[tuple[str, str]]:
    for split, counts in names.items():
        for name, times in counts.items():
            if times > 1:
                yield split, f"{times} samples have the name {name}; names must differ within a split: rename them"
    if "train" not in pixels:
        yield "train", "there is no such split: training needs one"
        return
    for number in np.flatnonzero(pixels["train"] == 0).tolist():
        yield (
            "train",
            f"class {number} ({info.class_names[number]}) has no pixel: nothing can learn it; add images that show it, "
            "or take the class out of the list",
        )


def _shared(names: dict[str, collections.Counter], homes: dict[bytes, dict[str, str]]) -> Iterator[tuple[str, str, str]]:
    for by_split in homes.values():
        if len(by_split) > 1:
            (split, name), *others = by_split.items()
            where = ", ".join(f"{other}/{twin}" for other, twin in others)
            yield split, name, f"the same image, value by value, is in {where}: a score on it says nothing; leave it in one split"
    splits = list(names)
    for place, split in enumerate(splits):
        for other in splits[place + 1 :]:
            for name in sorted(names[split].keys() & names[other].keys()):
                yield split, name, f"{other} has a sample of the same name: make sure that it is another image"
