"""A prepared data set, open for random access from any thread."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

from jaxseg.data import builder, cells, images
from jaxseg.data.listing import DataInfo, Record
from jaxseg.errors import InputError


class Split(Sequence[Record]):
    """Records of one split, each read and decoded when asked for: `split[i]`, `len(split)`, iteration. Safe to share among threads."""

    def __init__(self, source: Sequence[Any], to_record: Callable[[Any], Record], name: str = "split", remedy: str = "prepare it again"):
        self._source = source
        self._to_record = to_record
        self._name = name
        self._remedy = remedy

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: SupportsIndex) -> Record:  # pyright: ignore[reportIncompatibleMethodOverride]
        number = index.__index__()
        if not -len(self) <= number < len(self):
            raise IndexError(f"record {number} of a split of {len(self)}")
        number %= len(self)
        try:
            return self._to_record(self._source[number])
        except InputError:
            raise
        except Exception as error:  # the readers raise nearly anything where files are damaged
            raise InputError(f"{self._name}: record {number} is damaged or missing ({_reason(error)}): {self._remedy}") from error


@dataclasses.dataclass(frozen=True)
class Dataset:
    """An open data set.

    Args:
      info: classes, channels, colours.
      sources: by split, raw examples with random access (for instance TFDS `as_data_source` with SkipDecoding).
      to_record: makes a Record of a raw example; called from many threads.
      digest: of everything the set was prepared from; "" where that is not known (the TFDS catalogue).
      remedy: what to do where a record cannot be read.
    """

    info: DataInfo
    sources: Mapping[str, Sequence[Any]]
    to_record: Callable[[Any], Record]
    digest: str = ""
    remedy: str = "prepare the set again"

    @property
    def splits(self) -> dict[str, int]:
        """Number of records by split."""
        return {split: len(source) for split, source in self.sources.items()}

    def split(self, name: str) -> Split:
        """The records of one split.

        Raises:
          InputError: no such split; the message names those there are.
        """
        if name not in self.sources:
            raise InputError(f"{self.info.name}: no split {name!r}; there are {', '.join(map(repr, self.sources))}: choose one of them")
        return Split(self.sources[name], self.to_record, f"{self.info.name}/{name}", self.remedy)


def open_dataset(name: str, data_dir: str | os.PathLike[str]) -> Dataset:
    """Opens what `prepare` made, or a prepared set of the TFDS catalogue: `open_dataset("cells", "data").split("train")[0]["image"]`.

    Raises:
      InputError: not prepared there, with the command that does it; damaged; or prepared by something else than this jaxseg.
    """
    from jaxseg.data.catalogue import CATALOGUE, open_catalogue  # that module builds on this one

    if name in CATALOGUE:
        return open_catalogue(name, data_dir)
    folder = builder.prepared_folder(name, data_dir)
    if (folder / "metadata.json").is_file() and not (folder / "dataset_info.json").is_file():
        raise InputError(f"{name}: {folder} has lost its dataset_info.json: {builder.again(folder)}")
    if not (folder / "dataset_info.json").is_file():
        raise InputError(f"{name}: not prepared in {data_dir}{_others(folder.parent.parent)}: run `{builder.command(name, data_dir)}`")
    metadata = builder.read_metadata(folder)
    if "jaxseg" not in metadata:
        raise InputError(f"{name}: {folder} was not prepared by jaxseg: {builder.again(folder)}")
    if name == "cells" and (made_by := metadata.get("generator", 1)) != cells.GENERATOR:
        raise InputError(f"cells: {folder} holds pictures of generator {made_by}, this is {cells.GENERATOR}: {builder.again(folder)}")
    try:
        info = builder.info_from(metadata["jaxseg"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{name}: {folder / 'metadata.json'} is damaged ({error!r}): {builder.again(folder)}") from error
    remedy = builder.again(folder)
    return Dataset(info, tfds_sources(folder, remedy), _to_record, str(metadata.get("digest", "")), remedy)


def tfds_sources(folder: Path, remedy: str) -> dict[str, Sequence[Any]]:
    """The raw examples of each split of a TFDS set prepared as array_record in `folder` (.../NAME/VERSION); images stay encoded bytes.

    Raises:
      InputError: TFDS cannot read what describes the set; ends with `remedy`.
    """
    import tensorflow_datasets as tfds

    try:
        reader: Any = tfds.builder_from_directory(folder)
        features = reader.info.features
        decoders = {key: tfds.decode.SkipDecoding() for key, feature in features.items() if isinstance(feature, tfds.features.Image)}
        return {split: reader.as_data_source(split, decoders=decoders) for split in reader.info.splits}
    except Exception as error:  # JSON, protobuf and TFDS's own errors
        files = "dataset_info.json or features.json"
        raise InputError(f"{folder.parent.name}: {files} in {folder} is damaged or missing ({_reason(error)}): {remedy}") from error


def _to_record(example: Mapping[str, Any]) -> Record:
    record: Record = {"name": example["name"].decode() if isinstance(example["name"], bytes) else str(example["name"])}
    for key in ("image", "label", *({"instances"} & example.keys())):
        record[key] = images.decode(_as_bytes(example[key]))
    return record


def _as_bytes(value: Any) -> bytes:
    if value is None:
        raise ValueError("the file ends before this record")
    return value if isinstance(value, bytes) else value.item()


def _reason(error: Exception) -> str:
    """In one line."""
    return " ".join([f"{type(error).__name__}:", *str(error).split()])[:160]


def _others(data_dir: Path) -> str:
    names = sorted(path.parent.parent.name for path in data_dir.glob(f"*/{builder.VERSION}/dataset_info.json"))
    return f" (there: {', '.join(names)})" if names else ""
