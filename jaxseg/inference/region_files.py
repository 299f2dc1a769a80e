"""Image files larger than memory, of which regions are read: TIFF, Zarr and OME-Zarr, and NumPy's .npy.

A damaged or hostile file ends in one InputError, and no chunk is decoded that its header declares larger than `CHUNK_BYTES`.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from jaxtyping import Float, Num

from jaxseg.data import to_float
from jaxseg.data.images import ORIENTATION
from jaxseg.errors import InputError
from jaxseg.inference.whole import between

CHUNK_BYTES = 2**28
"""Largest chunk (TIFF tile or strip, Zarr chunk) that is decoded, and what decoded chunks are kept in."""

LARGE = 2**24
"""Pixels from which a TIFF file is read by regions rather than whole."""

BAND = 512
"""Rows that are counted at a time."""

TIFF = (".tif", ".tiff")

Guess = Callable[[tuple[int, ...], int, str], str]
"""(shape, channels, name) -> letters of the axes."""

Chunk = Callable[[int, int, int], Num[np.ndarray, "h w c"]]
"""Of image n, the chunk in row y and column x of its grid."""


@dataclasses.dataclass(frozen=True)
class RegionFile:
    """Images [N, H, W, C] in a file: `file[n, top:bottom, left:right]` is float32 [h, w, C], integers divided by their maximum.

    `file[first:last, top:bottom, left:right]` is a part of a volume, [d, h, w, C].

    Attributes:
      shape: [N, H, W, C].
      dtype: of the file, in this machine's byte order.
      stack: how many images each axis of images has; none where the file is one image.
      read: (n, rows, columns) -> [h, w, C] as stored.
    """

    name: str
    shape: tuple[int, int, int, int]
    dtype: np.dtype
    stack: tuple[int, ...]
    read: Callable[[int, slice, slice], Num[np.ndarray, "h w c"]]

    def __getitem__(self, where: tuple[int | slice, slice, slice]) -> Float[np.ndarray, "*d h w c"]:
        if isinstance(where[0], slice):
            return np.stack([self[n, *where[1:]] for n in range(where[0].start, where[0].stop)])
        part = to_float(self.read(*where))  # type: ignore[arg-type]
        if self.dtype.kind == "f" and not np.isfinite(part).all():
            n, rows, columns = where
            place = f"rows {rows.start} to {rows.stop}, columns {columns.start} to {columns.stop}"
            raise InputError(f"{self.name}: image {n} holds nan or infinite values in {place}: replace them by finite ones.")
        return part


def stretched_regions(image: RegionFile, percentiles: tuple[float, float]) -> RegionFile:
    """`jaxseg.inference.whole.stretched` of a file's images, whose values are counted in a pass over each.

    Raises:
      InputError: they are not integers.
    """
    if image.dtype.kind != "u":
        raise InputError(
            f"{image.name}: is read by regions, and this run needs percentiles of whole images, which are counted of integers, "
            f"not of {image.dtype}. Cut the image into pictures, or train on uint8 or uint16."
        )
    _, height, width, channels = image.shape
    most = np.iinfo(image.dtype).max

    @functools.cache
    def limits(n: int) -> Float[np.ndarray, "2 c"]:
        counts = np.zeros((channels, most + 1), np.int64)
        for top in range(0, height, BAND):
            band = image.read(n, slice(top, min(top + BAND, height)), slice(0, width))
            counts += [np.bincount(band[..., c].ravel(), minlength=most + 1) for c in range(channels)]
        at, part = np.divmod(np.asarray(percentiles) / 100 * (height * width - 1), 1)
        below, above = (np.array([np.searchsorted(line, at + k, "right") for line in counts.cumsum(1)]) for k in (0, 1))  # [C, 2]
        return ((below * (1 - part) + above.clip(max=most) * part) / most).T.astype(np.float32)

    def read(n: int, rows: slice, columns: slice) -> Float[np.ndarray, "h w c"]:
        return between(to_float(image.read(n, rows, columns)), *limits(n))

    return dataclasses.replace(image, dtype=np.dtype(np.float32), read=read)


def is_region_file(path: Path) -> bool:
    """Whether a file is read by regions: .npy, a Zarr folder, and a TIFF file of `LARGE` pixels or of a stack of images."""
    if path.is_dir():
        return is_zarr(path)
    if path.suffix.lower() not in TIFF or not path.is_file():
        return path.suffix.lower() == ".npy"
    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            sides = dict(zip(series.axes, series.shape, strict=True))
            lead = math.prod(n for axis, n in sides.items() if axis not in "YXSC")
            return lead > 1 or sides.get("Y", 0) * sides.get("X", 0) >= LARGE
    except Exception:  # damaged, which the reader of whole pictures says better, if that many bytes may be read at once
        return path.stat().st_size > CHUNK_BYTES


def is_zarr(path: Path) -> bool:
    return any((path / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup"))


@contextlib.contextmanager
def open_regions(path: Path, channels: int, *, volume: bool = False) -> Iterator[RegionFile]:
    """The images of a file that `is_region_file`.

    Which axis is which is said by TIFF and OME-Zarr. Elsewhere two axes are [H, W], a last axis of `channels`, or of up to 4, is the
    channels', and of grey images another third one is a stack's. All further axes are the stack's. Grey images saved as RGB are taken for
    one channel.

    Where the images are to be one `volume`'s slices, unnamed axes are [D, H, W], of several channels [D, H, W, C].

    Raises:
      InputError: naming the file: damaged, of other axes or channels, chunks missing or too large, a type that is no image's; no volume.
    """
    name = str(path)
    opened = _tiff if path.suffix.lower() in TIFF else _zarr if path.is_dir() else _npy
    with contextlib.ExitStack() as stack:
        with damage_named(name):  # of what is done with the images nothing is said
            axes, sides, dtype, read = stack.enter_context(opened(path, volume_axes if volume else guessed_axes, channels))
            shape = _sized(axes, sides, name)
        if dtype not in (np.uint8, np.uint16, np.float32):
            raise InputError(f"{name}: pixels are {dtype}; uint8, uint16 or float32 is required: convert the file.")
        if 0 in shape:
            raise InputError(f"{name}: has the shape {shape}; required are images without empty axes.")

        found = shape[-1]
        if found != channels and not (channels == 1 and found == 3):
            raise InputError(f"{name}: has {found} channels (axes {axes}); the model takes {channels}. Convert the image.")

        def one(n: int, rows: slice, columns: slice) -> np.ndarray:
            with damage_named(name):
                part = read(n, rows, columns)
            if found == channels:
                return part
            if not (part == part[..., :1]).all():
                raise InputError(f"{name}: has 3 channels that differ; the model takes 1. Convert the image.")
            return part[..., :1]

        native = np.dtype(dtype).newbyteorder("=")
        images = tuple(n for a, n in zip(axes, sides, strict=True) if a not in "YXCS")
        if volume and (not images or sum(n > 1 for n in images) > 1 or any(a == "T" and n > 1 for a, n in zip(axes, sides, strict=True))):
            raise InputError(
                f"{name}: has the axes {axes} {sides}; the model takes volumes. Give all slices of one, and nothing else, in a TIFF, a "
                ".npy file or a Zarr."
            )
        yield RegionFile(name, (*shape[:3], channels), native, images, one)


@contextlib.contextmanager
def damage_named(name: str) -> Iterator[None]:
    """Whatever a reader raises on a damaged file becomes an InputError that names it."""
    try:
        yield
    except (InputError, GeneratorExit):
        raise
    except ImportError as error:
        raise InputError(f"{name}: {error}. Install it: pip install 'jaxseg[large]'.") from error
    except Exception as error:
        raise InputError(f"{name}: the file is damaged or cut short ({type(error).__name__}: {error}): restore or re-export it.") from error


def order(axes: str, shape: tuple[int, ...], name: str) -> tuple[list[int], int, int, int | None]:
    """Which axes are the stack's, rows, columns and, where there is one, channels."""
    if "Y" not in axes or "X" not in axes or sum(a in "CS" and n > 1 for a, n in zip(axes, shape, strict=True)) > 1:
        raise InputError(f"{name}: has the axes {axes} {shape}; required rows Y and columns X, at most one of channels, and any of images.")
    many = [i for i, a in enumerate(axes) if a in "CS" and shape[i] > 1] or [i for i, a in enumerate(axes) if a in "CS"]
    lead = [i for i, a in enumerate(axes) if a not in "YXCS"]
    return lead, axes.index("Y"), axes.index("X"), many[0] if many else None


def guessed_axes(shape: tuple[int, ...], channels: int, name: str) -> str:
    """Letters of axes that nobody named.

    A last axis of up to 4 is never taken for columns: it is grey saved as RGB, or of another model.

    >>> guessed_axes((5, 64, 64), 1, "a"), guessed_axes((64, 64, 3), 3, "a"), guessed_axes((64, 64, 3), 1, "a")
    ('ZYX', 'YXC', 'YXC')
    """
    coloured = len(shape) > 2 and (shape[-1] == channels or shape[-1] <= 4)
    plain = shape[:-1] if coloured else shape
    if len(plain) not in (2, 3) or (channels > 1 and not coloured):
        raise InputError(f"{name}: has the shape {shape}; the model takes [H, W] or a stack [N, H, W], with {channels} channels last.")
    return "ZYX"[3 - len(plain) :] + "C" * coloured


def volume_axes(shape: tuple[int, ...], channels: int, name: str) -> str:
    """Letters of a volume's axes that nobody named.

    >>> volume_axes((20, 30, 1), 1, "a"), volume_axes((20, 30, 4, 2), 2, "a")
    ('ZYX', 'ZYXC')
    """
    if channels == 1 and len(shape) == 3:
        return "ZYX"
    if len(shape) != 4 or shape[-1] != channels:
        wanted = "[D, H, W] or [D, H, W, 1]" if channels == 1 else f"[D, H, W, {channels}]"
        raise InputError(f"{name}: has the shape {shape}; the model takes volumes, {wanted}. Turn the axes, or give one volume.")
    return "ZYXC"


def _sized(axes: str, shape: tuple[int, ...], name: str) -> tuple[int, int, int, int]:
    lead, y, x, c = order(axes, shape, name)
    return math.prod(shape[i] for i in lead), shape[y], shape[x], 1 if c is None else shape[c]


def _sliced(array: Any, axes: str, name: str) -> Callable[[int | slice, slice, slice], np.ndarray]:
    """Reads [h, w, c] of image n out of an array of those axes, or of several images, where but one axis is theirs, [n, h, w, c]."""
    lead, y, x, c = order(axes, array.shape, name)

    def read(n: int | slice, rows: slice, columns: slice) -> np.ndarray:
        where: list[Any] = [slice(None) if i == c else 0 for i in range(len(axes))]
        several = None
        if isinstance(n, slice):
            (several,) = (i for i in lead if array.shape[i] > 1)
            where[several] = n
        else:
            for i, k in zip(lead, np.unravel_index(n, [array.shape[i] for i in lead]) if lead else (), strict=True):
                where[i] = int(k)
        where[y], where[x] = rows, columns
        part = np.asarray(array[tuple(where)])
        wanted = [i for i in (several, y, x, c) if i is not None]
        part = part.transpose([sorted(wanted).index(i) for i in wanted])
        return part if c is not None else part[..., None]

    return read


def _mapped(path: Path, map_: Callable[[], Any], axes: str) -> Any:
    """Of a memory map that is made anew for each region: what was read would otherwise count as this process's memory."""
    array = map_()

    def read(n: int, rows: slice, columns: slice) -> np.ndarray:
        part = _sliced(map_(), axes, str(path))(n, rows, columns)
        return part.astype(part.dtype.newbyteorder("="))

    return axes, array.shape, array.dtype.newbyteorder("="), read


@contextlib.contextmanager
def _npy(path: Path, guess: Guess, channels: int) -> Iterator[Any]:
    def map_() -> Any:
        return np.lib.format.open_memmap(path, mode="r")  # refuses objects, which would have to be unpickled

    yield _mapped(path, map_, guess(map_().shape, channels, str(path)))


@contextlib.contextmanager
def _zarr(path: Path, guess: Guess, channels: int) -> Iterator[Any]:
    import zarr

    name = str(path)
    node = zarr.open(str(path), mode="r")
    axes = None
    if isinstance(node, zarr.Group):
        about: Any = node.attrs.get("ome", node.attrs)
        try:
            scales = about["multiscales"][0]
            axes = "".join(a["name"][0].upper() if isinstance(a, dict) else a[0].upper() for a in scales.get("axes", "tczyx"))
            node = node[scales["datasets"][0]["path"]]
        except (KeyError, IndexError, TypeError) as error:
            raise InputError(f"{name}: a Zarr group without OME-Zarr's multiscales. Give the folder of one array.") from error
    if not isinstance(node, zarr.Array):
        raise InputError(f"{name}: OME-Zarr's first data set is a {type(node).__name__}; required is an array.")
    axes = axes or guess(node.shape, channels, name)
    if len(axes) != node.ndim:
        raise InputError(f"{name}: names the axes {axes}, its array has the shape {node.shape}. Repair the metadata.")
    stored = node.shards or node.chunks
    _check_chunk(math.prod(stored) * node.dtype.itemsize, stored, name)
    _check_chunks_there(path / node.path, node, [-(-n // c) for n, c in zip(node.shape, stored, strict=True)], name)
    lead, y, x, _ = order(axes, node.shape, name)
    whole, (_, height, width, _) = _sliced(node, axes, name), _sized(axes, node.shape, name)
    high, wide, size = node.chunks[y], node.chunks[x], math.prod(node.chunks) * node.dtype.itemsize
    several = [i for i in lead if node.shape[i] > 1]
    deep = node.chunks[several[0]] if len(several) == 1 else 1

    @functools.lru_cache(max(CHUNK_BYTES // size, 1))
    def block(first: int, row: int, column: int) -> np.ndarray:
        """The images of a chunk, which is decoded once for all of them."""
        rows, columns = (slice(k * s, min((k + 1) * s, m)) for k, s, m in ((row, high, height), (column, wide, width)))
        part = whole(slice(first, first + deep) if deep > 1 else first, rows, columns)
        return part.astype(part.dtype.newbyteorder("="), copy=False)

    def chunk(n: int, row: int, column: int) -> np.ndarray:
        return block(n - n % deep, row, column)[n % deep] if deep > 1 else block(n, row, column)

    read = _assembled(chunk, (high, wide), CHUNK_BYTES)  # one, since blocks are kept
    yield axes, node.shape, node.dtype.newbyteorder("="), read


def _check_chunks_there(folder: Path, array: Any, grid: list[int], name: str) -> None:
    """Zarr fills what is not there, so that a lost chunk would be predicted as if it were an image."""
    stored = math.prod(array.shards or array.chunks) * array.dtype.itemsize
    sizes = [os.path.getsize(os.path.join(at, file)) for at, _, names in os.walk(folder) for file in names]
    if max(sizes, default=0) > 2 * stored + 2**16:
        raise InputError(f"{name}: holds a file of {max(sizes)} bytes for chunks of {stored}: it is damaged. Restore or re-export it.")
    expected = math.prod(grid)
    lost = max(expected - len(sizes), 0)  # of an absurd shape not all names are tried
    if not lost:
        lost = sum(not (folder / array.metadata.encode_chunk_key(at)).is_file() for at in np.ndindex(*grid))
    if lost:
        raise InputError(
            f"{name}: {lost} of {expected} chunks are missing. Restore them; where blank ones were left out, write them (zarr: "
            "write_empty_chunks)."
        )


@contextlib.contextmanager
def _tiff(path: Path, guess: Guess, channels: int) -> Iterator[Any]:
    name = str(path)
    with tifffile.TiffFile(path) as file:
        series, page = file.series[0], file.series[0].keyframe
        turned = page.tags.get(ORIENTATION)
        if int(page.photometric) not in (1, 2, 6) or (turned and int(turned.value) != 1):  # black is zero, RGB, YCbCr (decoded to RGB)
            raise InputError(
                f"{name}: colour model {page.photometric!r}, orientation {turned.value if turned else 1}; of large files only upright grey "
                "and RGB ones are read. Convert it."
            )
        if page.dtype is None:
            raise InputError(f"{name}: its pixels are of no type that NumPy has. Convert the file.")
        if series.dataoffset is not None:
            where = functools.partial(np.memmap, path, file.byteorder + page.dtype.char, "r", series.dataoffset, series.shape)
            yield _mapped(path, where, series.axes)
            return

        lead, _, _, c = order(series.axes, series.shape, name)
        n, height, width, found = _sized(series.axes, series.shape, name)
        planes = found if page.planarconfig == 2 else 1
        # Channels in pages of their own come after the stack's axes or before them.
        paged = found if page.samplesperpixel == 1 else 1
        strides = (paged, 1) if c is None or not lead or c > max(lead) else (1, n)
        if len(series.pages) != n * paged or (page.imagelength, page.imagewidth) != (height, width):
            raise InputError(f"{name}: {len(series.pages)} pages for axes {series.axes} {series.shape}; required is one for each image.")
        high, wide = (page.tilelength, page.tilewidth) if page.is_tiled else (min(page.rowsperstrip, height), width)
        down, across = -(-height // high), -(-width // wide)
        inside = high * wide * found // (planes * paged) * page.dtype.itemsize
        _check_chunk(inside, (high, wide), name)
        tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader} if page.compression in (6, 7) else {}

        def segment(at: int, index: int) -> np.ndarray:
            part: Any = series.pages[at]
            if part is None or len(part.dataoffsets) != planes * down * across:
                raise ValueError(f"page {at} has not the {planes * down * across} tiles or strips of its size")
            offset, count = part.dataoffsets[index], part.databytecounts[index]
            if count == 0 or count > 2 * inside + 2**16 or offset + count > file.filehandle.size:
                raise ValueError(f"tile or strip {index} of page {at}: {count} bytes at {offset} of {file.filehandle.size}")
            decode = part.keyframe.decode  # which may itself read from the file, the first time
            file.filehandle.seek(offset)
            decoded = decode(file.filehandle.read(count), index, **tables)[0]
            if decoded is None:
                raise ValueError(f"tile or strip {index} of page {at} has no pixels")
            return decoded[0]

        def chunk(n: int, row: int, column: int) -> np.ndarray:
            parts = itertools.product(range(paged), range(planes))
            return np.concatenate([segment(n * strides[0] + p * strides[1], (s * down + row) * across + column) for p, s in parts], -1)

        yield series.axes, series.shape, page.dtype, _assembled(chunk, (high, wide), inside * planes * paged)


def _check_chunk(size: int, shape: tuple[int, ...], name: str) -> None:
    if not 0 < size <= CHUNK_BYTES:
        raise InputError(f"{name}: has chunks of {shape}, {size} bytes; at most {CHUNK_BYTES} are decoded at a time. Write smaller ones.")


def _assembled(chunk: Chunk, side: tuple[int, int], size: int) -> Callable[[int, slice, slice], np.ndarray]:
    """Regions put together of chunks; the last ones are kept, since neighbouring regions share them."""
    kept = functools.lru_cache(max(CHUNK_BYTES // size, 1))(chunk)

    def read(n: int, rows: slice, columns: slice) -> np.ndarray:
        lines = []
        for row in range(rows.start // side[0], -(-rows.stop // side[0])):
            line = []
            for column in range(columns.start // side[1], -(-columns.stop // side[1])):
                top, left = row * side[0], column * side[1]
                inside = (slice(max(a.start - o, 0), a.stop - o) for a, o in ((rows, top), (columns, left)))
                line.append(kept(n, row, column)[tuple(inside)])
            lines.append(np.concatenate(line, 1))
        return np.concatenate(lines)

    return read
