"""Drawing on arrays: images, class colours, overlays, error maps as uint8 [H,W,3], and PNG files of class numbers; no JAX."""

import colorsys
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Integer, Num, UInt8
from PIL import Image

from jaxseg.errors import InputError

Colours = Sequence[tuple[int, int, int]]

# Okabe and Ito's palette, told apart with every common colour vision; ordered so that the first few also differ in lightness.
_OKABE_ITO = ((0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
_IGNORED = np.array([128, 128, 128], np.uint8)
_WRONG = np.array([224, 32, 32], np.uint8)
_MISSED, _EXTRA = np.array([0, 114, 178]), np.array([230, 159, 0])


def default_colours(num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """One RGB triple (0..255) a class, all different: black for class 0, then Okabe and Ito's colours, then evenly spread hues.

    >>> default_colours(3)
    ((0, 0, 0), (230, 159, 0), (86, 180, 233))
    """
    colours = list(_OKABE_ITO[:num_classes])
    taken, hue = set(colours), 0
    while len(colours) < num_classes:
        # Golden-ratio steps spread any number of hues; saturation and lightness cycle so that neighbours in hue still differ.
        rgb = colorsys.hls_to_rgb(hue * 0.618034 % 1, (0.4, 0.6, 0.75)[hue % 3], (0.85, 0.6)[hue // 3 % 2])
        colour = (round(rgb[0] * 255), round(rgb[1] * 255), round(rgb[2] * 255))
        hue += 1
        if colour not in taken:
            taken.add(colour)
            colours.append(colour)
    return tuple(colours)


def to_rgb(image: Num[np.ndarray, "h w c"], *, percentiles: tuple[float, float] = (1.0, 99.0)) -> UInt8[np.ndarray, "h w 3"]:
    """Any image as one to look at: uint8 [H,W,3].

    8-bit RGB stays as it is; everything else is stretched between the two percentiles of its finite values. One channel is grey; two are
    red and green; of more than three the first three are shown.
    """
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or 0 in image.shape:
        raise InputError(f"to_rgb: needs an image [H,W,C], got shape {image.shape}")
    image = image[..., :3]
    if image.shape[-1] == 2:
        image = np.concatenate([image, np.full_like(image[..., :1], image.min())], axis=-1)
    if image.dtype == np.uint8 and image.shape[-1] == 3:
        return image
    values = image.astype(np.float32)
    finite = values[np.isfinite(values)]
    low, high = map(float, np.percentile(finite, percentiles) if finite.size else (0, 1))
    if high <= low:  # nearly constant: the percentiles hide the little there is
        low, high = map(float, (finite.min(), finite.max()) if finite.size else (0, 1))
    stretched = (np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) / (high - low if high > low else 1.0)
    return np.broadcast_to(np.round(np.clip(stretched, 0, 1) * 255).astype(np.uint8), (*image.shape[:2], 3)).copy()


def colourise(label: Integer[np.ndarray, "h w"], colours: Colours, *, ignore_index: int = 255) -> UInt8[np.ndarray, "h w 3"]:
    """Class numbers as their colours; ignored pixels and numbers without a colour are hatched grey."""
    label, table = _label("colourise", label), np.asarray(colours, np.uint8).reshape(-1, 3)
    known = (label >= 0) & (label < len(table)) & (label != ignore_index)
    return np.where(known[..., None], table[np.where(known, label, 0)], _hatch(label.shape))


def overlay(
    image: Num[np.ndarray, "h w c"],
    label: Integer[np.ndarray, "h w"],
    colours: Colours,
    alpha: float | Float[np.ndarray, "h w"] = 0.5,
    *,
    ignore_index: int = 255,
) -> UInt8[np.ndarray, "h w 3"]:
    """The label's colours over the image, `alpha` of them (0: only the image, 1: only the label); ignored pixels show the image."""
    rgb, label = to_rgb(image).astype(np.float32), _same_size("overlay", np.asarray(image), label)
    part = np.where(label == ignore_index, 0.0, alpha)[..., None]
    return np.round(rgb * (1 - part) + colourise(label, colours, ignore_index=ignore_index) * part).astype(np.uint8)


def error_map(
    label: Integer[np.ndarray, "h w"],
    prediction: Integer[np.ndarray, "h w"],
    image: Num[np.ndarray, "h w c"],
    *,
    ignore_index: int = 255,
) -> UInt8[np.ndarray, "h w 3"]:
    """Correct pixels are the image in dim grey, wrong ones red, ignored ones hatched grey."""
    label, prediction = _same_size("error_map", np.asarray(image), label), _same_size("error_map", np.asarray(image), prediction)
    grey = (to_rgb(image).astype(np.float32).mean(-1, keepdims=True) * 0.5 + 16).astype(np.uint8).repeat(3, -1)
    wrong = np.where((prediction != label)[..., None], _WRONG, grey)
    return np.where((label == ignore_index)[..., None], _hatch(label.shape), wrong)


def outlines(image: Num[np.ndarray, "h w c"], instances: Integer[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """The image with every object of a label map outlined, one pixel wide, inside the object, in a colour that its number gives."""
    rgb, instances = to_rgb(image).copy(), _same_size("outlines", np.asarray(image), instances)
    edge = outline(instances)
    rgb[edge] = np.array(default_colours(20)[1:], np.uint8)[instances[edge] % 19]
    return rgb


def match_map(
    image: Num[np.ndarray, "h w c"],
    truth: Integer[np.ndarray, "h w"],
    prediction: Integer[np.ndarray, "h w"],
    missed: Integer[np.ndarray, "n"],
    extra: Integer[np.ndarray, "m"],
) -> UInt8[np.ndarray, "h w 3"]:
    """Objects that match are the image with white outlines, the missed ones of `truth` blue, the extra ones of `prediction` orange."""
    grey = (to_rgb(image).astype(np.float32).mean(-1, keepdims=True) * 0.5 + 16).repeat(3, -1)
    prediction = _same_size("match_map", np.asarray(image), prediction)
    grey[outline(prediction)] = 255
    for label, wrong, colour in ((truth, missed, _MISSED), (prediction, extra, _EXTRA)):
        inside = np.isin(_same_size("match_map", np.asarray(image), label), wrong)
        grey[inside] = 0.5 * grey[inside] + 0.5 * colour
        grey[outline(label) & inside] = colour
    return grey.astype(np.uint8)


def outline(instances: Integer[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Pixels of an object beside (4-connected) another number: its outermost pixels, save where the image ends."""
    edge = np.zeros(instances.shape, bool)
    for a, b in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differs = instances[a] != instances[b]
        edge[a] |= differs
        edge[b] |= differs
    return edge & (instances > 0)


def shrink(rgb: UInt8[np.ndarray, "h w 3"], width: int, *, nearest: bool = False) -> UInt8[np.ndarray, "h w 3"]:
    """At most `width` pixels wide and twice as tall, proportions kept; `nearest` for class colours. Smaller pictures stay as they are."""
    factor = min(width / rgb.shape[1], 2 * width / rgb.shape[0])
    if factor >= 1:
        return rgb
    size = max(1, round(rgb.shape[1] * factor)), max(1, round(rgb.shape[0] * factor))
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.NEAREST if nearest else Image.Resampling.LANCZOS))


def png_bytes(rgb: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """The picture as a PNG file in memory."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb, np.uint8)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def write_index_png(path: str | Path, label: Integer[np.ndarray, "h w"], colours: Colours) -> None:
    """Class numbers as a PNG whose pixels are the numbers: a palette picture up to 255, 16-bit grey (without colours) up to 65535.

    `np.asarray(PIL.Image.open(path))` gives the numbers back.
    """
    label = _label("write_index_png", label)
    low, high = (int(label.min()), int(label.max())) if label.size else (0, 0)
    if low < 0 or high > 65535:
        raise InputError(f"write_index_png: {path}: class numbers must be in 0..65535, got {low}..{high}; mark ignored pixels 255, not -1")
    if high > 255:
        Image.fromarray(label.astype(np.uint16)).save(path, "PNG", optimize=True)
        return
    palette = np.tile(_IGNORED, (256, 1))
    palette[: len(colours)] = np.asarray(colours, np.uint8).reshape(-1, 3)[:256]
    picture = Image.fromarray(label.astype(np.uint8))
    picture.putpalette(palette.tobytes())
    # bits=8: Pillow would pack few classes into 1, 2 or 4 bits, which not every reader unpacks.
    picture.save(path, "PNG", optimize=True, bits=8)


def write_label_map(path: str | Path, instances: Integer[np.ndarray, "h w"]) -> None:
    """A label map, 0 background and 1..65535 objects, as a PNG of 16-bit grey, however few objects there are."""
    instances = _label("write_label_map", instances)
    if instances.size and (instances.min() < 0 or instances.max() > 65535):
        raise InputError(
            f"write_label_map: {path}: numbers must be in 0..65535, got {instances.min()}..{instances.max()}; cut the image into parts"
        )
    Image.fromarray(instances.astype(np.uint16)).save(path, "PNG", optimize=True)


def _label(who: str, label: np.ndarray) -> np.ndarray:
    label = np.asarray(label)
    if label.ndim != 2 or not np.issubdtype(label.dtype, np.integer):
        raise InputError(f"{who}: needs integer class numbers [H,W], got {label.dtype} {label.shape}")
    return label


def _same_size(who: str, image: np.ndarray, label: np.ndarray) -> np.ndarray:
    label = _label(who, label)
    if label.shape != image.shape[:2]:
        raise InputError(f"{who}: the image is {image.shape[:2]}, its label or prediction {label.shape}; both must have the same size")
    return label


def _hatch(shape: tuple[int, ...]) -> UInt8[np.ndarray, "h w 3"]:
    """Diagonal grey stripes."""
    rows, columns = np.indices(shape[:2], sparse=True)
    return np.where(((rows + columns) % 8 < 2)[..., None], np.uint8(90), _IGNORED).astype(np.uint8)
