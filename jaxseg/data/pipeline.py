"""Records to batches: seeded shuffling, resizing, cropping. The batch of a step depends on (seed, step) only, whatever the threads do."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from jaxseg.data.listing import Record
from jaxseg.errors import InputError

IGNORED = 255

Batch = dict[str, np.ndarray]
"""`image` float32 [N,h,w,C], `label` int32 [N,h,w] and perhaps `weight` float32 [N,h,w]."""

WeightMap = Callable[[Record], Float[np.ndarray, "h w"]]


def train_batches(
    split: Sequence[Record],
    *,
    batch_size: int,
    size: int | tuple[int, int],
    seed: int,
    start_step: int = 0,
    resize: float = 1.0,
    weight_map: WeightMap | None = None,
    ignored: int = IGNORED,
    num_threads: int | None = None,
) -> Iterator[Batch]:
    """Endless batches {"image": [N,h,w,C] f32 in 0..1, "label": [N,h,w] int32, "weight"?: [N,h,w] f32}, each record once an epoch.

    Every epoch has its own order and its own crops. Batches run over the ends of epochs, so none is short.

    Args:
      split: records, read from several threads at once.
      size: height and width of the random crops (one number: both). A smaller picture is padded by reflection, its label with `ignored`.
      start_step: number of the first batch: resuming is `start_step=step`.
      resize: factor for height and width before the crop; see `resize_record`.
      weight_map: pixel weights [H,W] of a record (after resizing); kept in memory once computed.
      ignored: the label where there is no picture; -1 where labels are instance maps, in which 255 is an object.
      num_threads: readers; by default one a processor, 8 at most.

    Raises:
      InputError: a number is out of range.
    """
    import grain

    height, width = (size, size) if isinstance(size, int) else size
    given = {"batch_size": (batch_size, 1), "size": (min(height, width), 1), "start_step": (start_step, 0), "seed": (seed, 0)}
    for what, (got, least) in given.items():
        if got < least:
            raise InputError(f"train_batches: {what}={got}; at least {least} is required: pass {what}={least} or more")
    if not len(split):
        raise InputError("train_batches: the split has no records; at least one is required: prepare the data set again")
    _check_resize(resize)
    threads = num_threads or min(os.cpu_count() or 1, 8)
    weights: dict[int, np.ndarray] = {}

    def load(index: int) -> Record:
        record = resize_record(split[index], resize)
        if weight_map is not None:
            if index not in weights:
                weights[index] = np.asarray(weight_map(record), np.float32)
            record["weight"] = weights[index]
        return record

    def crop(record: Record, rng: np.random.Generator) -> Batch:
        return crop_record(record, (height, width), rng, ignored)

    indices = grain.MapDataset.range(len(split)).seed(seed).shuffle().repeat(None)
    batches = indices.map(load).random_map(crop).batch(batch_size, drop_remainder=True)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2 * threads, 4))
    return iter(batches[start_step:].to_iter_dataset(options))


def channel_statistics(split: Sequence[Record], limit: int = 200) -> tuple[Float[np.ndarray, "c"], Float[np.ndarray, "c"]]:
    """Mean and standard deviation of each channel, [C] float32 each, in the scale of `to_float`, over `limit` evenly spaced records."""
    count, total, squares = 0, np.zeros(()), np.zeros(())
    for index in np.unique(np.linspace(0, len(split) - 1, min(limit, len(split))).round().astype(int)):
        pixels = to_float(split[int(index)]["image"]).astype(np.float64)
        count += pixels.shape[0] * pixels.shape[1]
        total = total + pixels.sum((0, 1))
        squares = squares + (pixels**2).sum((0, 1))
    mean = total / count
    return mean.astype(np.float32), np.sqrt(np.maximum(squares / count - mean**2, 0)).astype(np.float32)


def to_float(image: np.ndarray) -> Float[np.ndarray, "*dims"]:
    """float32; integer types are divided by their maximum, so that they lie in 0..1.

    >>> to_float(np.array([0, 51, 255], np.uint8)).tolist()
    [0.0, 0.20000000298023224, 1.0]
    """
    if image.dtype.kind in "iu":
        return image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)
    return image.astype(np.float32, copy=False)


def resize_record(record: Record, factor: float) -> Record:
    """A copy of the record with height and width times `factor` (rounded): image antialiased and of its own type, labels nearest."""
    record = dict(record)
    if factor == 1:
        return record
    height, width = (max(round(n * factor), 1) for n in record["image"].shape[:2])
    record["image"] = resize_image(record["image"], height, width)
    for key in ("label", "instances"):
        if key in record:
            record[key] = resize_label(record[key], height, width)
    return record


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """[H,W,C] -> [height,width,C] of the same type, bilinear and antialiased (Pillow's triangle filter), any number of channels."""
    channels = [Image.fromarray(np.ascontiguousarray(image[..., c], np.float32)) for c in range(image.shape[-1])]
    resized = np.stack([np.asarray(channel.resize((width, height), Image.Resampling.BILINEAR)) for channel in channels], axis=-1)
    if image.dtype.kind in "iu":
        resized = np.clip(np.round(resized), 0, np.iinfo(image.dtype).max)
    return resized.astype(image.dtype)


def resize_label(label: Int[np.ndarray, "h w"], height: int, width: int) -> Int[np.ndarray, "height width"]:
    """[H,W] -> [height,width], each pixel that of the nearest centre."""
    rows, columns = (((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip((height, width), label.shape, strict=True))
    return label[rows[:, None], columns]


def crop_record(record: Mapping[str, Any], size: tuple[int, int], rng: np.random.Generator, ignored: int = IGNORED) -> Batch:
    """A window of `size` at a random place, image scaled by `to_float`.

    Where the picture is smaller than the window it is centred: the image is continued by reflection, the label by `ignored`, the weight
    by 0.
    """
    height, width = record["image"].shape[:2]
    before, after, start = [], [], []
    for have, want in zip((height, width), size, strict=True):
        missing = max(want - have, 0)
        before.append(missing // 2)
        after.append(missing - missing // 2)
        start.append(int(rng.integers(max(have - want, 0) + 1)))
    window = tuple(slice(first, first + want) for first, want in zip(start, size, strict=True))
    border = list(zip(before, after, strict=True))

    def cut(array: np.ndarray, **padding: Any) -> np.ndarray:
        array = array[window]
        return np.pad(array, [*border, *[(0, 0)] * (array.ndim - 2)], **padding) if any(map(any, border)) else array

    batch = {
        "image": to_float(cut(record["image"], mode="reflect")),
        "label": cut(record["label"].astype(np.int32, copy=False), constant_values=ignored),
    }
    if "weight" in record:
        batch["weight"] = cut(record["weight"], constant_values=0)
    return batch


def _check_resize(resize: float) -> None:
    if not 0 < resize <= 8:
        raise InputError(f"resize={resize}; a factor above 0 and at most 8 is required (1 leaves pictures as they are)")
