"""`jaxseg predict`: label images, overlays and probabilities of anyone's pictures."""

from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxseg.data import images, to_float
from jaxseg.errors import InputError
from jaxseg.evaluate import check_dtype
from jaxseg.pictures import overlay, png_bytes, write_index_png
from jaxseg.progress import progress
from jaxseg.run_folder import Run, load_run

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


def predict(
    workdir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="WORKDIR")],
    inputs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE_OR_FOLDER...")],
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")],
    probabilities: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> int:
    """Segment images: for each NAME.EXT an index PNG NAME.png of its size and a colour overlay NAME_overlay.png.

    For example: `jaxseg predict runs/cells my_images/ --out predictions`

    Args:
      workdir: run folder of `jaxseg train`.
      inputs: PNG, JPEG or TIFF files, or folders of them, of the channels that the model was trained on.
      out: folder for the results, made when missing.
      probabilities: also write NAME_probabilities.npy, float32 [height, width, classes].
    """
    files = find_images(inputs)
    outputs = _outputs(files, out, probabilities)
    run = load_run(workdir)
    step = jax.jit(lambda variables, image: run.predict(variables, image[None])[0])
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; required is a folder, made when missing. Give another path.")
    out.mkdir(parents=True, exist_ok=True)
    failed = []
    with progress("predicting", len(files)) as advance:
        for file, (index, coloured, *more) in zip(files, outputs, strict=True):
            advance(1, note=file.name)
            try:
                image = _read(file, run)
            except InputError as error:
                failed.append(str(error))
                continue
            logits = step(run.variables, jnp.asarray(to_float(image)))
            label = np.asarray(jnp.argmax(logits, -1), np.int32)
            write_index_png(index, label, run.info.colours)
            coloured.write_bytes(png_bytes(overlay(image, label, run.info.colours)))
            for path in more:
                np.save(path, np.asarray(jax.nn.softmax(logits, -1)))
    print(f"{len(files) - len(failed)} images: {out}")
    if failed:
        raise InputError(f"{len(failed)} of {len(files)} images were not predicted, the others were: {'; '.join(failed[:10])}")
    return 0


def _read(file: Path, run: Run) -> np.ndarray:
    """The image in the channels and the type of the training; a grey picture saved as RGB is grey."""
    image = images.read_image(file)
    if run.info.channels == 1 and image.shape[-1] == 3 and (image == image[..., :1]).all():
        image = image[..., :1]
    if image.shape[-1] != run.info.channels:
        raise InputError(f"{file}: has {image.shape[-1]} channels; the model takes {run.info.channels}. Convert the image.")
    check_dtype(str(file), image, run)
    return image


def find_images(inputs: tuple[Path, ...]) -> list[Path]:
    """The files named, and the images in the folders named, in order.

    Raises:
      InputError: a path is missing, no image, or a folder holds none.
    """
    if not inputs:
        raise InputError("predict: no input; give at least one image file or folder of PNG, JPEG or TIFF images.")
    files = []
    for path in inputs:
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
            if not found:
                raise InputError(f"{path}: no images in this folder; PNG, JPEG or TIFF files are required. Give another folder, or files.")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise InputError(f"{path}: no such file or folder. Check the path.")
    return list(dict.fromkeys(files))  # a file named twice is predicted once


def _outputs(files: list[Path], out: Path, probabilities: bool) -> list[list[Path]]:
    """The paths that each file's results go to.

    Raises:
      InputError: two files would write the same path, or the results would lie among the images.
    """
    suffixes = [".png", "_overlay.png"] + ["_probabilities.npy"] * probabilities
    owners: dict[Path, Path] = {}
    outputs = []
    for file in files:
        if file.resolve().parent == out.resolve():
            raise InputError(f"--out {out}: is the folder of {file.name}, whose neighbours could be written over. Choose another folder.")
        outputs.append([out / f"{file.stem}{suffix}" for suffix in suffixes])
        for path in outputs[-1]:
            other = owners.setdefault(path, file)
            if other is not file:
                raise InputError(f"{file} and {other}: both would write {path}. Rename one, or predict them to two folders.")
    return outputs
