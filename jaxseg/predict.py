"""`jaxseg predict`: label images, overlays and probabilities of anyone's pictures, and label maps of images larger than memory."""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Float

from jaxseg.checkpoint import digest
from jaxseg.data import to_float
from jaxseg.errors import InputError
from jaxseg.image_files import check_dtype, find_images, need_all, outputs_of, read
from jaxseg.inference.augmented import augmented
from jaxseg.inference.dense import Method
from jaxseg.inference.dense import dense as dense_predict
from jaxseg.inference.region_files import LARGE, is_region_file, is_zarr, open_regions, stretched_regions
from jaxseg.inference.region_prediction import file_identity, predict_regions
from jaxseg.inference.tiles import Blend, Region, assembled, tiled_regions
from jaxseg.inference.whole import Predict, predict_whole, standardise, stretched
from jaxseg.pictures import outlines, overlay, png_bytes, write_index_png, write_label_map
from jaxseg.progress import progress
from jaxseg.run_folder import Run, load_run

TILE, CUBE = 512, 96
"""Sides of the tiles of images and of volumes where nothing is said."""

Regions = Callable[..., Iterator[Region]]
Segment = Callable[[Float[np.ndarray, "h w c"]], Float[Any, "h w k"]]


def predict(
    workdir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="WORKDIR")],
    inputs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE_OR_FOLDER...")],
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")],
    probabilities: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    tile: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    blend: Blend | None = None,
    tta: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    dense: Method | None = None,
) -> int:
    """Segment images: for each NAME.EXT an index PNG NAME.png of its size and a colour overlay NAME_overlay.png.

    Of a run that separates objects NAME.png is a 16-bit label map, 0 background and 1.. objects, and the overlay shows their outlines.

    Files of any size, TIFF of 16 million pixels or of several images, Zarr, OME-Zarr and .npy, are read and written region by region: for
    each a label map NAME.tif (NAME.zarr of a Zarr), of objects uint32, and NAME_overview.png. The same command goes on after an
    interruption. Objects are found in windows of 2048 pixels once an image's outputs are there, in NAME.tif.logits: 12 bytes a pixel.

    A model of volumes takes the images of such a file as the slices of one.

    For example: `jaxseg predict runs/cells my_images/ --out predictions`

    Args:
      workdir: run folder of `jaxseg train`.
      inputs: PNG, JPEG, TIFF, .npy files and Zarr folders, or folders of them, of the channels that the model was trained on.
      out: folder for the results, made when missing.
      probabilities: also write NAME_probabilities.npy, float32 [height, width, classes]; of pictures that are read whole.
      tile: largest side of a tile, 512 where nothing is said, 96 of volumes. Pictures below 16 million pixels are predicted whole
        without it.
      blend: weights of overlapping tiles' mean, or "crop" for the middles of such tiles: approximations. Without it tiles are exact, which
        not every model allows.
      tta: average over the eight turned and mirrored images.
      dense: a prediction at every pixel from a coarse map, for models that enlarge one.
    """
    kinds = "PNG, JPEG, TIFF or .npy files or Zarr folders"
    files = find_images(inputs, lambda path: path.suffix.lower() == ".npy" or is_zarr(path), kinds)
    outputs = outputs_of(files, out, functools.partial(_suffixes, probabilities=probabilities))
    run = load_run(workdir, volumes=True)
    if run.takes_volumes and (probabilities or tta or dense):
        name = "probabilities" if probabilities else "tta" if tta else "dense"
        raise InputError(f"--{name}: {workdir} takes volumes, and the option is for images. Leave it out.")
    if run.route is not None and (probabilities or tta):
        raise InputError(
            f"--{'probabilities' if probabilities else 'tta'}: {workdir} separates objects, and its outputs are not all probabilities of "
            "classes, nor the same in a turned image. Leave the option out."
        )
    predict = _predictor(run, dense, tta)
    side = (CUBE if run.takes_volumes else TILE) if tile is None else tile
    regions = functools.partial(_tiles, run, predict, dense is None and not tta, side, blend)
    segment = _segmenter(run, predict, regions(), tile is not None or blend is not None)
    by_regions = regions(classes=run.route is None)
    options = [version("jaxseg"), digest(run.variables), run.description["model"], run.description["preprocess"], tile, blend, tta, dense]
    out.mkdir(parents=True, exist_ok=True)
    failed = []
    with progress("predicting", len(files)) as advance:
        for file, paths in zip(files, outputs, strict=True):
            advance(1, note=file.name)
            try:
                if run.takes_volumes and not is_region_file(file):
                    raise InputError(f"{file}: is one image; the model takes volumes. Give a TIFF of all slices, a .npy file or a Zarr.")
                if is_region_file(file):
                    _predict_regions(run, by_regions, file, paths, options)
                else:
                    image = read(file, run)
                    _write(run, image, segment(to_float(image)), paths)
            except InputError as error:
                failed.append(str(error))
    print(f"{len(files) - len(failed)} images: {out}")
    need_all(files, failed, "predicted")
    return 0


def _predictor(run: Run, dense: Method | None, tta: bool) -> Predict:
    """(variables, image [N,H,W,C] in 0..1) -> logits [N,H,W,K], compiled as far as that can be."""
    preprocess = {**run.description["preprocess"], "percentiles": None}  # of the whole image, before it is cut into tiles
    predict = functools.partial(predict_whole, run.model, **preprocess) if dense is None else dense_predict(run.model, dense, **preprocess)
    if dense != "shift_and_stitch":  # which compiles the coarse net, and runs it several times
        predict = jax.jit(predict)
    return augmented(predict) if tta else predict


def tiles_at_once(side: int) -> int:
    """Of images: 4 up to 1448 pixels a side, and of larger ones as many as have 2^23 pixels."""
    return max(min(4, 2**23 // max(side, 1) ** 2), 1)


def _tiles(run: Run, predict: Predict, exact: bool, tile: int, blend: Blend | None, *, classes: bool = False) -> Regions:
    """(variables, image, skip=0) -> logits, or classes. Exact tiles see their neighbours' pixels: nothing is mirrored in them."""
    preprocess, axes = run.description["preprocess"], 3 if run.takes_volumes else 2
    options: Any = {"tile": tile, "batch": tiles_at_once(tile) if axes == 2 else 1, "axes": axes, "classes": classes}
    if blend is not None:
        return tiled_regions(predict, blend=blend, **options)

    def apply(variables: Any, image: Float[jax.Array, "n *s c"]) -> Any:
        return run.model.apply(variables, standardise(image, preprocess["mean"], preprocess["std"]))

    def refuse(*_: Any, **__: Any) -> Any:
        raise InputError(
            f"exact tiles: this run resamples images by {preprocess['resize']}, and tiles are resampled otherwise than the whole. "
            "Add --blend gaussian."
            if exact
            else "exact tiles: not with --tta or --dense, which turn or shift each tile. Add --blend gaussian."
        )

    return tiled_regions(apply, **options) if exact and preprocess["resize"] == 1 else refuse


def _segmenter(run: Run, predict: Predict, regions: Regions, tiled: bool) -> Segment:
    """Logits of one image in memory: by tiles where that is asked for or the image is large, or else whole."""
    by_tiles = assembled(regions)
    percentiles = run.description["preprocess"].get("percentiles")

    def segment(image: Float[np.ndarray, "h w c"]) -> Any:
        image = image if percentiles is None else stretched(image[None], percentiles)[0]
        if tiled or image.shape[0] * image.shape[1] >= LARGE:
            return by_tiles(run.variables, image)
        return predict(run.variables, jnp.asarray(image)[None])[0]

    return segment


def _write(run: Run, image: np.ndarray, logits: Any, paths: list[Path]) -> None:
    """The results for a picture: index PNG, overlay and, where there is a third path, probabilities; of objects label map and outlines."""
    index, coloured, *more = paths
    if run.route is not None:
        instances = run.route.decode(np.asarray(logits))
        write_label_map(index, instances)
        coloured.write_bytes(png_bytes(outlines(image, instances)))
        return
    label = np.asarray(jnp.argmax(logits, -1), np.int32)
    write_index_png(index, label, run.info.colours)
    coloured.write_bytes(png_bytes(overlay(image, label, run.info.colours)))
    for path in more:
        np.save(path, np.asarray(jax.nn.softmax(logits, -1)))


def _predict_regions(run: Run, regions: Regions, file: Path, paths: list[Path], options: list[Any]) -> None:
    """The results for a file that is read region by region: label map and overview."""
    if len(paths) > 2:
        raise InputError(f"{file}: --probabilities is not for files that are read by regions. Leave it out, or cut the image.")
    labels, overview = paths
    identity = hashlib.sha256(json.dumps([*options, file_identity(file)], default=str).encode()).hexdigest()
    with open_regions(file, run.info.channels, volume=run.takes_volumes) as image:
        check_dtype(str(file), image, run)  # type: ignore[arg-type]
        percentiles, decode = run.description["preprocess"].get("percentiles"), run.route and run.route.decode
        image = image if percentiles is None else stretched_regions(image, percentiles)
        predict_regions(regions, run.variables, image, labels, overview, colours=run.info.colours, identity=identity, decode=decode)


def _suffixes(file: Path, probabilities: bool) -> Sequence[str]:
    large = (".zarr" if file.is_dir() else ".tif", "_overview.png")
    return [*(large if is_region_file(file) else (".png", "_overlay.png")), *["_probabilities.npy"] * probabilities]
