"""A prepared data set, open for random access from any thread."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

from jaxseg.data import builder, images
from jaxseg.data.listing import DataInfo, Record
from jaxseg.errors import InputError


class Split(Sequence[Record]):
    """Records of one split, each read and decoded when asked for: `split[i]`, `len(split)`, iteration. Safe to share among threads."""

    def __init__(self, source: Sequence[Any], to_record: Callable[[Any], Record]):
        self._source = source
        self._to_record = to_record

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: SupportsIndex) -> Record:  # pyright: ignore[reportIncompatibleMethodOverride]
        number = index.__index__()
        if not -len(self) <= number < len(self):
            raise IndexError(f"record {number} of a split of {len(self)}")
        return self._to_record(self._source[number % len(self)])


@dataclasses.dataclass(frozen=True)
class Dataset:
    """An open data set.

    Args:
      info: classes, channels, colours.
      sources: by split, raw examples with random access (for instance TFDS `as_data_source` with SkipDecoding).
      to_record: makes a Record of a raw example; called from many threads.
    """

    info: DataInfo
    sources: Mapping[str, Sequence[Any]]
    to_record: Callable[[Any], Record]

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
        return Split(self.sources[name], self.to_record)


def open_dataset(name: str, data_dir: str | os.PathLike[str]) -> Dataset:
    """Opens what `prepare` made, or a prepared set of the TFDS catalogue: `open_dataset("cells", "data").split("train")[0]["image"]`.

    Raises:
      InputError: not prepared there, with the command that does it; or prepared by something else than jaxseg.
    """
    from jaxseg.data.catalogue import CATALOGUE, open_catalogue  # that module builds on this one

    if name in CATALOGUE:
        return open_catalogue(name, data_dir)
    folder = builder.prepared_folder(name, data_dir)
    if not (folder / "dataset_info.json").is_file():
        raise InputError(f"{name}: not prepared in {data_dir}{_others(folder.parent.parent)}: run `{_command(name, data_dir)}`")
    metadata = builder.read_metadata(folder)
    if "jaxseg" not in metadata:
        raise InputError(f"{name}: {folder} was not prepared by jaxseg: remove it and run `{_command(name, data_dir)}`")
    return Dataset(builder.info_from(metadata["jaxseg"]), tfds_sources(folder), _to_record)


def tfds_sources(folder: Path) -> dict[str, Sequence[Any]]:
    """The raw examples of each split of a TFDS set prepared as array_record in `folder` (.../NAME/VERSION); images stay encoded bytes."""
    import tensorflow_datasets as tfds

    reader: Any = tfds.builder_from_directory(folder)
    features = reader.info.features
    decoders = {key: tfds.decode.SkipDecoding() for key, feature in features.items() if isinstance(feature, tfds.features.Image)}
    return {split: reader.as_data_source(split, decoders=decoders) for split in reader.info.splits}


def _to_record(example: Mapping[str, Any]) -> Record:
    record: Record = {"name": example["name"].decode() if isinstance(example["name"], bytes) else str(example["name"])}
    for key in ("image", "label", "instances"):
        if key in example:
            record[key] = images.decode(_as_bytes(example[key]))
    return record


def _as_bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else value.item()


def _command(name: str, data_dir: str | os.PathLike[str]) -> str:
    from jaxseg.data import DATASETS

    source = " --source FOLDER" if name in DATASETS and DATASETS[name].needs_source else ""
    return f"jaxseg data prepare {name} --data-dir {data_dir}{source}"


def _others(data_dir: Path) -> str:
    names = sorted(path.parent.parent.name for path in data_dir.glob(f"*/{builder.VERSION}/dataset_info.json"))
    return f" (there: {', '.join(names)})" if names else ""
