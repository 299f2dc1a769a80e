"""What three nets see of a picture: `python benchmarks/receptive_field_pictures.py docs/images/receptive_fields.png`.

Convolutions alone, a direct heat map of stride 8 and a small U-Net, on a generated picture of cells. Above, the theoretical field of the
pixel in the middle in each convolution, computed from the traced function. Below, the effective field of the logits there: the derivative
by each pixel, averaged over random weights and pictures (Luo et al. 2016), beside the theoretical field as a frame.
"""

import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jaxseg.data import cells
from jaxseg.heatmaps import effective_field, effective_size, layers
from jaxseg.models.conv_only import ConvOnly
from jaxseg.models.heatmap import DirectHeatmap, PlainEncoder
from jaxseg.models.unet import UNet
from jaxseg.progress import progress
from jaxseg.receptive_field import fields_of_maps

SIDE, NETWORKS = 128, 12  # pixels; random networks, each of its own picture
NETS = {
    "convolutions only": ConvOnly(3),
    "direct heat map, stride 8": DirectHeatmap(3, partial(PlainEncoder, (16, 32, 64)), enlarge=None),
    "U-Net of four levels": UNet(3, features=(8, 16, 32, 48), padding="same"),
}


def main(path: str) -> None:
    images = np.stack([cells.generate(np.random.default_rng(i))[0][:SIDE, :SIDE] for i in range(NETWORKS)])
    image = ((images - images.mean()) / images.std())[..., None].astype(np.float32)
    figure = Figure(figsize=(3.6 * len(NETS) + 0.6, 7.6), layout="constrained", dpi=80)
    rows = figure.subplots(2, len(NETS))
    shown = None
    with progress("networks", len(NETS) * NETWORKS) as advance:
        for (name, net), (above, below) in zip(NETS.items(), rows.T, strict=True):
            boxes = _boxes(net, image.shape)
            effective = _effective(net, image, advance)
            size = effective_size(effective)
            (top, bottom), (left, right) = boxes["output"]
            sides = f"theoretical {bottom - top + 1} x {right - left + 1}, effective {size.side:.0f} x {size.side:.0f}"
            print(f"{name}: {sides}, sigma {size.sigma_rows:.1f} x {size.sigma_columns:.1f} pixels")
            above.imshow(images[0], cmap="gray")
            convolutions = {layer: box for layer, box in boxes.items() if "conv" in layer}
            for box, shade in zip(convolutions.values(), np.linspace(0.25, 1, len(convolutions)), strict=True):
                _frame(above, box, colormaps["inferno"](shade))
            above.set_title(f"{name}\n{len(convolutions)} convolutions", fontsize=11)
            shown = below.imshow(np.log10(np.maximum(effective / effective.max(), 1e-4)), cmap="inferno", vmin=-4, vmax=0)
            _frame(below, boxes["output"], "white")
            below.set_title(sides, fontsize=11)
    for axes in rows.flat:
        axes.set_axis_off()
    figure.colorbar(shown, ax=rows[1], label="derivative, log10 of the share of the largest", shrink=0.8)  # pyright: ignore[reportArgumentType]
    figure.savefig(path)


def _boxes(net: Any, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, int], tuple[int, int]]]:
    """Of each layer, the first and last row and column that the middle of its map sees."""
    variables = jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape[1:]), jnp.float32))
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), variables)
    found = fields_of_maps(partial(layers(net.apply), variables), (1, *shape[1:]))  # type: ignore[arg-type]

    def middle(lines: tuple[np.ndarray, np.ndarray]) -> tuple[int, int]:
        first, last = lines
        return int(first[len(first) // 2]), int(last[len(last) // 2])

    return {name: (middle(rows), middle(columns)) for name, (rows, columns) in found.items()}


def _effective(net: Any, image: np.ndarray, advance: Any) -> np.ndarray:
    @jax.jit
    def of(key: Any, image: Any) -> Any:
        return effective_field(net.apply, net.init(key, image), image)

    total = np.zeros(image.shape[1:3])
    for i, key in enumerate(jax.random.split(jax.random.key(0), len(image))):
        total += np.asarray(of(key, image[i : i + 1]))
        advance(1)
    return total / len(image)


def _frame(axes: Any, box: tuple[tuple[int, int], tuple[int, int]], colour: Any) -> None:
    (top, bottom), (left, right) = box
    axes.add_patch(Rectangle((left - 0.5, top - 0.5), right - left + 1, bottom - top + 1, fill=False, edgecolor=colour, linewidth=1.6))


if __name__ == "__main__":
    main(*sys.argv[1:])
