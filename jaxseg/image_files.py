"""The images that commands are given: which files, as a run takes them, and where the results go."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jaxseg.data import images
from jaxseg.data.folder_files import IMAGE_SUFFIXES
from jaxseg.errors import InputError
from jaxseg.run_folder import Run


def find_images(
    inputs: tuple[Path, ...], also: Callable[[Path], bool] = lambda _: False, kinds: str = "PNG, JPEG or TIFF files"
) -> list[Path]:
    """The files named, and the images in the folders named, in order.

    Args:
      also: which files and folders are taken for images beside those that end as PNG, JPEG and TIFF do.
      kinds: what is taken, in words.

    Raises:
      InputError: a path is missing, no image, or a folder holds none.
    """
    if not inputs:
        raise InputError(f"no input; required are {kinds}, or folders of them. Give at least one.")
    files = []
    for path in inputs:
        if path.is_dir() and not also(path):
            found = sorted(p for p in path.iterdir() if (p.suffix.lower() in IMAGE_SUFFIXES or also(p)) and not p.name.startswith("."))
            if not found:
                raise InputError(f"{path}: no images in this folder; required are {kinds}. Give another folder, or files.")
            files += found
        elif path.exists():
            files.append(path)
        else:
            raise InputError(f"{path}: no such file or folder. Check the path.")
    return list(dict.fromkeys(files))  # a file named twice is taken once


def outputs_of(files: list[Path], out: Path, suffixes: Callable[[Path], Sequence[str]]) -> list[list[Path]]:
    """The paths that each file's results go to: its stem with its `suffixes`, in `out`.

    Raises:
      InputError: `out` is a file or the images' folder, a folder is in a result's place, or two files would write the same path.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; required is a folder, made when missing. Give another path.")
    owners: dict[Path, Path] = {}
    outputs = []
    for file in files:
        if file.resolve().parent == out.resolve():
            raise InputError(f"--out {out}: is the folder of {file.name}, whose neighbours could be written over. Choose another folder.")
        outputs.append([out / f"{file.stem.removesuffix('.ome')}{suffix}" for suffix in suffixes(file)])
        for path in outputs[-1]:
            if path.is_dir() and path.suffix != ".zarr":
                raise InputError(f"{path}: is a folder where the results of {file.name} go. Move it away, or choose another --out.")
            other = owners.setdefault(path, file)
            if other is not file:
                raise InputError(f"{file} and {other}: both would write {path}. Rename one, or write them to two folders.")
    return outputs


def need_all(files: Sequence[Path], failed: Sequence[str], done: str) -> None:
    """Raises InputError where images could not be `done`, with what was said of the first ten."""
    if failed:
        raise InputError(f"{len(failed)} of {len(files)} images were not {done}: {'; '.join([*dict.fromkeys(failed)][:10])}")


def read(file: Path, run: Run) -> np.ndarray:
    """The image in the channels and the type of the training; a grey picture saved as RGB is grey."""
    image = images.read_image(file)
    if run.info.channels == 1 and image.shape[-1] == 3 and (image == image[..., :1]).all():
        image = image[..., :1]
    if image.shape[-1] != run.info.channels:
        raise InputError(f"{file}: has {image.shape[-1]} channels; the model takes {run.info.channels}. Convert the image.")
    check_dtype(str(file), image, run)
    return image


def check_dtype(what: str, image: np.ndarray, run: Run) -> None:
    """Raises InputError where an image is not of the training's type: 12 bits in 16 would look black, 0..255 as floats white."""
    trained = run.description["image_dtype"]
    if image.dtype != trained:
        raise InputError(f"{what}: has {image.dtype} pixels; the model was trained on {trained}. Convert to {trained} in the same scale.")
