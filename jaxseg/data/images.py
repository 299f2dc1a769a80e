"""Image files and bytes to arrays and back: PNG, JPEG and TIFF, bounded in size, with errors that name the file.

Nothing is cut, scaled or guessed in silence: 16 bits stay 16 bits, palette labels stay indices, transparency is an error.
"""

import contextlib
import io
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from jaxseg.errors import InputError

MAX_PIXELS = 2**28
"""Largest height x width that is decoded (16384 x 16384); checked in the header, before any memory is taken."""

MAX_BYTES = 17 * MAX_PIXELS
"""Of the largest file that is read whole: four values of four bytes a pixel, and what a format adds."""

Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # Pillow's own limit is lower than ours and only warns

ORIENTATION = 274
"""The tag of EXIF and TIFF that says how a picture lies."""

EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff")

Source = str | os.PathLike[str] | bytes


def read_image(source: Source, name: str | None = None) -> np.ndarray:
    """A picture from a path or from a file's bytes: [H,W,C], uint8, uint16 or float32 (TIFF only).

    Palette pictures become RGB and 1-bit ones 0/255. The EXIF or TIFF orientation is applied, as viewers do. An alpha channel is
    dropped when it is fully opaque. TIFF channels may come first or last.

    Raises:
      InputError: naming the file (`name`, or else the path): not one of the formats, damaged, too large, transparent, or of another type.
    """
    data, name = _load(source, name)
    kind = _kind(data, name)
    with _damage_named(name):
        array, alpha = _image_tiff(data, name) if kind == "TIFF" else _image_pillow(data, name)
    array = array[..., None] if array.ndim == 2 else array
    if array.dtype not in (np.uint8, np.uint16, np.float32):
        raise InputError(f"{name}: pixels are {array.dtype}; uint8, uint16 or float32 is required: convert the file")
    if array.dtype == np.float32 and not np.isfinite(array).all():
        raise InputError(f"{name}: the picture holds nan or infinite values: replace them by finite ones")
    return np.ascontiguousarray(_without_alpha(array, name) if alpha else array)


def read_label(source: Source, name: str | None = None) -> np.ndarray:
    """A label from a path or from a file's bytes: [H,W] integers, or [H,W,3] uint8 where classes are RGB colours.

    Values are the numbers stored in the file: of a palette PNG its indices, never its colours; of a 1-bit PNG 0 and 1. PNG or TIFF.

    Raises:
      InputError: naming the file: JPEG (lossy), not integers, transparent, damaged, too large.
    """
    data, name = _load(source, name)
    kind = _kind(data, name)
    if kind == "JPEG":
        raise InputError(f"{name}: a JPEG file holds approximate values and cannot be a label: save labels as PNG (or TIFF)")
    with _damage_named(name):
        array, alpha = _label_tiff(data, name) if kind == "TIFF" else _label_png(data, name)
    array = _without_alpha(array, name) if alpha else array
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 3 and (array.shape[-1] != 3 or array.dtype != np.uint8):
        raise InputError(f"{name}: a label of shape {array.shape} {array.dtype}; one channel, or 8-bit RGB, is required")
    if array.dtype.kind not in "iu":
        raise InputError(f"{name}: label values are {array.dtype}; integers are required: save the label with an integer type")
    return np.ascontiguousarray(array)


def encode(array: np.ndarray) -> bytes:
    """Lossless bytes of an image [H,W,C] or label [H,W] of integers up to 32 bits or float32: PNG where that can hold it, else TIFF.

    >>> label = np.array([[0, 1], [255, 2]], np.int32)
    >>> decode(encode(label)).dtype, np.array_equal(decode(encode(label)), label)
    (dtype('int32'), True)
    """
    if array.ndim not in (2, 3) or 0 in array.shape or array.dtype.kind not in "iuf" or array.dtype.itemsize > 4:
        raise InputError(f"encode: got shape {array.shape} {array.dtype}; [H,W] or [H,W,C] integers up to 32 bits or float32 is required")
    note = f"{array.dtype.name} {array.ndim}"
    flat = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    if flat.ndim == 2 and flat.dtype.kind in "iu" and flat.min() >= 0 and flat.max() < 2**16:
        flat = flat.astype(np.uint8 if flat.max() < 2**8 else np.uint16)
    buffer = io.BytesIO()
    if (flat.dtype == np.uint8 and (flat.ndim == 2 or flat.shape[-1] == 3)) or (flat.dtype == np.uint16 and flat.ndim == 2):
        text = PngInfo()
        text.add_text("jaxseg", note)
        Image.fromarray(flat).save(buffer, "PNG", pnginfo=text)
    else:
        kept = flat if flat.ndim == 2 or flat.shape[-1] > 1 else flat[..., 0]
        planes = "contig" if kept.ndim == 3 else None
        about = f"jaxseg {note}"
        tifffile.imwrite(buffer, kept, photometric="minisblack", planarconfig=planes, compression="zlib", metadata=None, description=about)
    return buffer.getvalue()


def decode(data: bytes) -> np.ndarray:
    """Exactly the array given to `encode`: values, shape and dtype. Bytes of other origin are read as an image [H,W,C]."""
    if data[:8] == _PNG:
        image = Image.open(io.BytesIO(data), formats=("PNG",))
        note = getattr(image, "text", {}).get("jaxseg")
        array = np.asarray(image) if note else None
    else:
        note, array = None, None
        if data[:4] in _TIFF:
            with tifffile.TiffFile(io.BytesIO(data)) as file:
                page = file.pages.first
                note = page.description.removeprefix("jaxseg ") if page.description.startswith("jaxseg ") else None
                array = page.asarray() if note else None
    if note is None or array is None:
        return read_image(data, "stored image")
    dtype, ndim = note.split()
    array = array.astype(dtype, copy=False)
    return array[..., None] if array.ndim == 2 and ndim == "3" else array


# ---------------------------------------------------------------------------------------------------------------- reading

_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _load(source: Source, name: str | None) -> tuple[bytes, str]:
    if isinstance(source, bytes):
        return source, name or "image bytes"
    path = Path(source)
    try:
        size = path.stat().st_size
        if not path.is_file():  # a device or a pipe would be read for ever
            raise InputError(f"{name or source}: is no file; PNG, JPEG or TIFF is required: check the path")
        if size > MAX_BYTES:
            raise InputError(f"{name or source}: has {size} bytes; at most {MAX_BYTES} are read: cut it into tiles")
        return path.read_bytes(), name or str(source)
    except OSError as error:
        raise InputError(f"{name or source}: cannot be read ({error.strerror}): check the path") from error


def _kind(data: bytes, name: str) -> str:
    for kind, starts in (("PNG", (_PNG,)), ("JPEG", (b"\xff\xd8\xff",)), ("TIFF", _TIFF)):
        if data.startswith(starts):
            return kind
    got = "an empty file" if not data else f"a file that begins with {data[:8]!r}"
    raise InputError(f"{name}: {got}; PNG, JPEG or TIFF is required: convert the file")


@contextlib.contextmanager
def _damage_named(name: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{name}: {error}; at most {MAX_PIXELS} pixels are read: cut it into tiles") from error
    except Exception as error:  # damaged files make the decoders raise nearly anything
        raise InputError(f"{name}: the file is damaged or cut short ({type(error).__name__}: {error}): restore or re-export it") from error


def _check_pixels(height: int, width: int, name: str) -> None:
    if height * width > MAX_PIXELS:
        raise InputError(f"{name}: {height} x {width} is {height * width} pixels; at most {MAX_PIXELS} are read: cut it into tiles")


def _without_alpha(array: np.ndarray, name: str) -> np.ndarray:
    opaque = 1.0 if array.dtype.kind == "f" else np.iinfo(array.dtype).max
    if not (array[..., -1] == opaque).all():
        raise InputError(
            f"{name}: has a transparency channel that is not opaque everywhere; required is an image without one:"
            " flatten it, or save it as a plain channel of a TIFF file"
        )
    return array[..., :-1]


def _open(data: bytes, name: str) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
    _check_pixels(image.height, image.width, name)
    if image.format == "PNG" and getattr(image, "n_frames", 1) > 1:
        raise InputError(f"{name}: an animated PNG; one picture a file is required: split it")
    return image


def _png_header(data: bytes, name: str) -> tuple[int, int]:
    """Bits a channel and colour type (0 grey, 2 RGB, 3 palette, 4 grey+alpha, 6 RGBA), after the check of the size."""
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    _check_pixels(height, width, name)
    return depth, colour


def _image_pillow(data: bytes, name: str) -> tuple[np.ndarray, bool]:
    if data[:8] == _PNG and _png_header(data, name)[0] == 16:
        array = _upright(imagecodecs.png_decode(data), _orientation(data))  # Pillow would cut 16-bit colour to 8 bits
        return array, array.ndim == 3 and array.shape[-1] in (2, 4)
    image = _open(data, name)
    if image.mode == "CMYK":
        raise InputError(f"{name}: a CMYK picture; grey or RGB is required: convert it")
    alpha = image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info
    grey = image.mode in ("1", "L", "LA")
    array = np.asarray(image.convert(("LA" if alpha else "L") if grey else ("RGBA" if alpha else "RGB")))
    return _upright(array, _orientation(data)), alpha


def _orientation(data: bytes) -> int:
    """EXIF orientation of a PNG or JPEG file: 1 is upright."""
    if data[:8] == _PNG and b"eXIf" not in data:
        return 1
    return int(Image.open(io.BytesIO(data), formats=("PNG", "JPEG")).getexif().get(ORIENTATION, 1))


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """[H,W] or [H,W,C] turned and mirrored as the orientation (1..8) asks; other numbers ask nothing, as in every viewer."""
    if 5 <= orientation <= 8:
        array = array.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return array[::rows, ::columns]


def _label_png(data: bytes, name: str) -> tuple[np.ndarray, bool]:
    depth, colour = _png_header(data, name)
    if depth == 16:
        return _upright(imagecodecs.png_decode(data), _orientation(data)), colour in (4, 6)
    array = np.asarray(_open(data, name))  # of a palette: the indices
    if colour == 0 and depth < 8:  # Pillow spreads 2 and 4 bits over 0..255, and 1 bit is bool
        array = array.astype(np.uint8) // {1: 1, 2: 85, 4: 17}[depth]
    return _upright(array, _orientation(data)), colour in (4, 6)


def _tiff(data: bytes, name: str) -> tuple[np.ndarray, int, bool]:
    """Pixels [H,W] or [H,W,C], photometric code and whether the last channel is alpha, of a file with one picture."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        series = file.series[0]
        axes, shape = [axis for axis, n in zip(series.axes, series.shape, strict=True) if n > 1 or axis in "YX"], series.shape
        axes = "".join(axes)
        if axes not in ("YX", "YXS", "SYX", "YXC", "CYX") or len(file.series) > 1:
            raise InputError(
                f"{name}: a TIFF file of {len(file.pages)} pages, axes {series.axes} {shape}; one picture [H,W] or [H,W,C]"
                " a file is required: split it (or, if the first axis is channels, save it with axes CYX)"
            )
        _check_pixels(series.shape[series.axes.index("Y")], series.shape[series.axes.index("X")], name)
        if series.size > 4 * MAX_PIXELS:
            raise InputError(f"{name}: {shape} is {series.size} values; at most {4 * MAX_PIXELS} are read: cut it into tiles")
        for part in filter(None, series.pages):
            for offset, count in zip(part.dataoffsets, part.databytecounts, strict=True):
                if count == 0 or offset + count > len(data):
                    raise ValueError("pixel data end before the file says")
        array = series.asarray()
        array = array.reshape([n for axis, n in zip(series.axes, shape, strict=True) if n > 1 or axis in "YX"])
        if axes in ("SYX", "CYX"):
            array = np.moveaxis(array, 0, -1)
        turned = page.tags.get(ORIENTATION)
        array = _upright(array, int(turned.value) if turned else 1)
        return array, int(page.photometric), bool(page.extrasamples) and page.extrasamples[-1] in (1, 2)


def _image_tiff(data: bytes, name: str) -> tuple[np.ndarray, bool]:
    array, photometric, alpha = _tiff(data, name)
    if photometric not in (0, 1, 2, 6):  # white is zero, black is zero, RGB, YCbCr (decoded to RGB)
        raise InputError(f"{name}: a TIFF file with colour model {photometric}; grey or RGB is required: convert it")
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    if photometric == 0 and array.dtype.kind == "u":
        array = np.iinfo(array.dtype).max - array
    return array, alpha


def _label_tiff(data: bytes, name: str) -> tuple[np.ndarray, bool]:
    array, photometric, alpha = _tiff(data, name)
    if photometric not in (1, 2, 3):
        raise InputError(f"{name}: a TIFF label with colour model {photometric}; numbers (black is zero, palette) or RGB are required")
    return array.astype(np.uint8) if array.dtype == bool else array, alpha
