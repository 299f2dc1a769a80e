"""`jaxseg predict`: label images, overlays and probabilities of anyone's pictures."""

from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxseg.data import images, to_float
from jaxseg.errors import InputError
from jaxseg.pictures import overlay, png_bytes, write_index_png
from jaxseg.progress import progress
from jaxseg.run_folder import load_run

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
    outputs = _outputs(files, out)
    run = load_run(workdir)
    step = jax.jit(lambda variables, image: run.predict(variables, image[None])[0])
    out.mkdir(parents=True, exist_ok=True)
    with progress("predicting", len(files)) as advance:
        for file, stem in zip(files, outputs, strict=True):
            image = images.read_image(file)
            if image.shape[-1] != run.info.channels:
                raise InputError(f"{file}: has {image.shape[-1]} channels; the model takes {run.info.channels}. Convert the image.")
            logits = step(run.variables, jnp.asarray(to_float(image)))
            label = np.asarray(jnp.argmax(logits, -1), np.int32)
            write_index_png(stem.with_name(f"{stem.name}.png"), label, run.info.colours)
            stem.with_name(f"{stem.name}_overlay.png").write_bytes(png_bytes(overlay(image, label, run.info.colours)))
            if probabilities:
                np.save(stem.with_name(f"{stem.name}_probabilities.npy"), np.asarray(jax.nn.softmax(logits, -1)))
            advance(1, note=file.name)
    print(f"{len(files)} images: {out}")
    return 0


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
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not found:
                raise InputError(f"{path}: no images in this folder; PNG, JPEG or TIFF files are required. Give another folder, or files.")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise InputError(f"{path}: no such file or folder. Check the path.")
    return files


def _outputs(files: list[Path], out: Path) -> list[Path]:
    """One output stem a file. Raises InputError where two would be the same, or an input would be written over."""
    stems: dict[str, Path] = {}
    for file in files:
        other = stems.setdefault(file.stem, file)
        if other is not file:
            raise InputError(f"{file} and {other}: both would become {out / file.stem}.png. Rename one, or predict them to two folders.")
        if file.resolve() == (out / f"{file.stem}.png").resolve():
            raise InputError(f"--out {out}: {file} would be written over. Choose another folder.")
    return [out / stem for stem in stems]
