"""The pictures of the README that show objects and segments without labels.

    jaxseg data prepare dsb2018 --source FOLDER --data-dir data
    jaxseg train configs/nuclei_centre.py --data-dir data --workdir runs/nuclei_centre
    python benchmarks/gallery.py docs/images --run runs/nuclei_centre

writes objects.png, what a run that separates objects (of any data of one grey channel) makes of generated cells that it has never seen, and
unsupervised.png, the methods of `jaxseg segment` on scikit-image's picture of an astronaut (NASA, in the public domain).
"""

from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.figure import Figure
from skimage.data import astronaut

from jaxseg.cli import script
from jaxseg.data import cells, to_float
from jaxseg.errors import InputError
from jaxseg.instances.matching import match
from jaxseg.pictures import outlines
from jaxseg.run_folder import load_run
from jaxseg.segment import mean_colours, outline
from jaxseg.unsupervised import METHODS

SHOWN = {
    "kmeans": {"clusters": 6},
    "mean_shift": {"bandwidth": 12.0},
    "slic": {"segments": 128},
    "slic_merge": {"threshold": 0.5},
    "felzenszwalb": {"scale": 800.0},
}


def main(
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    run: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None,
) -> None:
    """Draw unsupervised.png and, of a run that separates objects, objects.png.

    Args:
      out: folder of the pictures.
      run: a run folder of `jaxseg train configs/nuclei_centre.py` or of another config with `instances`.
    """
    unsupervised().savefig(out / "unsupervised.png")
    if run is not None:
        objects(run).savefig(out / "objects.png")


def unsupervised() -> Figure:
    rgb = np.asarray(astronaut()[:320, 60:380])
    figure = Figure(figsize=(2.6 * (len(SHOWN) + 1), 5.6), layout="constrained", dpi=80)
    upper, lower = figure.subplots(2, len(SHOWN) + 1)
    upper[0].imshow(rgb)
    upper[0].set_title("image")
    for (name, options), above, below in zip(SHOWN.items(), upper[1:], lower[1:], strict=True):
        label = np.asarray(METHODS[name](jnp.asarray(to_float(rgb)), **options))
        above.imshow(outline(rgb, label))
        above.set_title(f"{name}, {', '.join(f'{k} {v:g}' for k, v in options.items())}\n{label.max() + 1} segments")
        below.imshow(mean_colours(rgb, label))
    for axes in figure.axes:
        axes.set_axis_off()
    return figure


def objects(folder: Path) -> Figure:
    run = load_run(folder)
    if run.route is None or run.info.channels != 1:
        raise InputError(f"--run {folder}: required is a run that separates objects in images of one channel.")
    step = jax.jit(run.predict)
    figure = Figure(figsize=(12, 6.4), layout="constrained", dpi=80)
    for number, (above, below) in enumerate(figure.subplots(2, 4).T):
        image, truth = cells.generate(np.random.default_rng(5000 + number))
        found = run.route.decode(np.asarray(step(run.variables, to_float(image[None, ..., None]))[0]))
        matched = match(truth, found)
        above.imshow(image, cmap="gray")
        above.set_title(f"generated cells: {matched.objects} objects")
        below.imshow(outlines(image[..., None], found))
        below.set_title(f"{matched.predicted} found, {matched.matches[0]} right at IoU 0.5")
    for axes in figure.axes:
        axes.set_axis_off()
    return figure


if __name__ == "__main__":
    script(main)
