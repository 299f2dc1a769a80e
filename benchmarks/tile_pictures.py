"""How tiles differ from the whole image: `python benchmarks/tile_pictures.py docs/images/tiles.png`.

A padded U-Net with random weights looks at generated cells: as a whole, in exact tiles, in tiles blended by a Gaussian and by a tent at
several overlaps, and in naive tiles side by side. The picture shows the largest difference of a pixel's logits from the whole's, in
standard deviations of the logits; the table also the classes that change, and the time.
"""

import sys
from functools import partial
from time import perf_counter

import jax
import numpy as np
from matplotlib.figure import Figure

from jaxseg.data import cells
from jaxseg.inference.tiles import tiled
from jaxseg.models import UNet

TILE, SIDE, SHOWN = 128, 509, ("exact", "gaussian, overlap 0.5", "gaussian, overlap 0.25", "naive")


def main(path: str) -> None:
    image = np.block([[cells.generate(np.random.default_rng(2 * i + j))[0] for j in range(2)] for i in range(2)])
    image = image[:SIDE, :SIDE, None].astype(np.float32) / 255
    model = UNet(3, (8, 16, 32, 32), padding="same", norm="batch")
    variables = jax.jit(model.init)(jax.random.key(0), image[None, :64, :64])
    ways = {"whole": lambda v, x: np.asarray(whole(v, x[None])[0]), "exact": tiled(model.apply, tile=TILE)}
    whole = jax.jit(model.apply)
    for blend in ("gaussian", "linear"):
        for overlap in (0.5, 0.25, 0.125):
            ways[f"{blend}, overlap {overlap}"] = tiled(model.apply, tile=TILE, blend=blend, overlap=overlap)
    ways["naive"] = partial(_naive, whole)

    expected = ways["whole"](variables, image)
    figure = Figure(figsize=(3.2 * (len(SHOWN) + 1), 4), layout="constrained", dpi=80)
    axes = iter(figure.subplots(1, len(SHOWN) + 1))
    first = next(axes)
    first.imshow(image[..., 0], cmap="gray")
    first.set_title(f"{SIDE} x {SIDE} pixels, tiles of {TILE}")
    for name, predict in ways.items():
        predict(variables, image)  # compiles
        start = perf_counter()
        logits = predict(variables, image)
        seconds = perf_counter() - start
        error = np.abs(logits - expected).max(-1) / expected.std()
        changed = (logits.argmax(-1) != expected.argmax(-1)).mean()
        print(f"{name:24} largest {error.max():8.1e}  mean {error.mean():8.1e}  classes changed {changed:8.3%}  {seconds:5.2f} s")
        if name in SHOWN:
            shown = next(axes)
            shown.imshow(np.maximum(error, 1e-8), cmap="inferno", norm="log", vmin=1e-6, vmax=1)
            shown.set_title(f"{name}\nlargest {error.max():.1e}\nclasses changed {changed:.2%}")
    for shown in figure.axes:
        shown.set_axis_off()
    figure.savefig(path, bbox_inches="tight")


def _naive(step, variables, image):
    """Tiles side by side, each as if it were an image."""
    rows = [image[y : y + TILE] for y in range(0, len(image), TILE)]
    return np.concatenate(
        [np.concatenate([step(variables, row[None, :, x : x + TILE])[0] for x in range(0, row.shape[1], TILE)], 1) for row in rows]
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
