"""`jaxseg segment`: label maps, mean colours and boundaries of anyone's pictures, by a method that needs no training data."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Int, UInt8

from jaxseg.data import images, to_float
from jaxseg.errors import InputError
from jaxseg.image_files import find_images, need_all, outputs_of
from jaxseg.pictures import default_colours, png_bytes, to_rgb, write_index_png
from jaxseg.progress import progress
from jaxseg.region_metrics import boundaries
from jaxseg.unsupervised import METHODS, SCALES

BOUNDARY_COLOUR = (255, 255, 0)

USAGE = """\
usage: jaxseg segment METHOD FILE_OR_FOLDER... --out DIR [--option value ...]

Cuts PNG, JPEG and TIFF images into segments without any training. For each NAME.EXT, in the image's size:

  NAME.png             the number of each pixel's segment: 8 bits up to 255, 16 bits beyond
  NAME_mean.png        each segment in its mean colour
  NAME_boundaries.png  the image with the segments' boundaries in yellow

Images are grey or RGB: 8 or 16 bits, divided by 255 or 65535, or floats in 0..1. An alpha channel that hides nothing is dropped, another is
refused.

Methods, with the option that makes segments larger or smaller:

{methods}

`jaxseg segment METHOD --help` says what its options do. For example:

  jaxseg segment kmeans photographs/ --clusters 5 --out segments
"""


def main(words: list[str]) -> int:
    """Runs `jaxseg segment` with these words."""
    if not words or words[0] in ("-h", "--help"):
        wide = max(map(len, METHODS))
        about = [f"  {name:<{wide}}  {_first_line(method)} [--{SCALES[name][0].replace('_', '-')}]" for name, method in METHODS.items()]
        print(USAGE.format(methods="\n".join(about)), end="")
        return 0
    name, *rest = words
    if name not in METHODS:
        raise InputError(f"no such method: {name!r}; there are {', '.join(METHODS)}. The method comes first; see jaxseg segment --help.")
    return tyro.cli(_command(name), args=rest, prog=f"jaxseg segment {name}")


def _command(name: str) -> Callable[..., int]:
    """The method as a command: its keyword options behind the files and the folder of the results."""
    method = METHODS[name]

    def command(
        inputs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE_OR_FOLDER...")],
        out: Annotated[Path, tyro.conf.arg(metavar="DIR")],
        **options: Any,
    ) -> int:
        return segment(name, inputs, out, options)

    ours, theirs = inspect.signature(command).parameters, inspect.signature(method).parameters
    parameters = [ours["inputs"], ours["out"]] + [p for p in theirs.values() if p.kind is p.KEYWORD_ONLY]
    command.__signature__ = inspect.Signature([p.replace(kind=p.KEYWORD_ONLY) for p in parameters], return_annotation=int)
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = (inspect.getdoc(method) or "").replace(
        "Args:\n",
        "Args:\n  inputs: PNG, JPEG or TIFF files, or folders of them.\n"
        "  out: folder for NAME.png (numbers of the segments), NAME_mean.png and NAME_boundaries.png, made when missing.\n",
    )
    return command


def _first_line(method: Callable[..., Any]) -> str:
    return (inspect.getdoc(method) or "").split("\n")[0].split(": [")[0].rstrip(".")


def segment(name: str, inputs: tuple[Path, ...], out: Path, options: dict[str, Any]) -> int:
    """Writes the results of a method of METHODS for the images named, and goes on after an image that cannot be segmented."""
    files = find_images(inputs)
    outputs = outputs_of(files, out, lambda _: (".png", "_mean.png", "_boundaries.png"))
    out.mkdir(parents=True, exist_ok=True)
    failed = []
    with progress("segmenting", len(files)) as advance:
        for file, (index, mean, outlined) in zip(files, outputs, strict=True):
            try:
                image = images.read_image(file)
                label = np.asarray(METHODS[name](jnp.asarray(to_float(image)), **options))
                write_index_png(index, label, default_colours(min(int(label.max()) + 1, 256)))
            except InputError as error:
                failed.append(str(error) if str(file) in str(error) else f"{file}: {error}")
            else:
                mean.write_bytes(png_bytes(mean_colours(to_rgb(image), label)))
                outlined.write_bytes(png_bytes(outline(to_rgb(image), label)))
            advance(1, note=file.name)
    print(f"{len(files) - len(failed)} images: {out}")
    need_all(files, failed, "segmented")
    return 0


def mean_colours(rgb: UInt8[np.ndarray, "h w 3"], label: Int[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Each segment in the mean of its colours."""
    flat = label.ravel()
    pixels = np.maximum(np.bincount(flat), 1)
    means = [np.bincount(flat, rgb[..., channel].ravel()) / pixels for channel in range(3)]
    return np.round(np.stack(means, -1)).astype(np.uint8)[label]


def outline(rgb: UInt8[np.ndarray, "h w 3"], label: Int[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """The picture with the segments' boundaries, one pixel wide."""
    return np.where(boundaries(label)[..., None], np.array(BOUNDARY_COLOUR, np.uint8), rgb)
