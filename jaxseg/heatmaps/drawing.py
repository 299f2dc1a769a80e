"""Heat maps, receptive fields and patches as pictures: PNG bytes of matplotlib's figures."""

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jaxseg.heatmaps.effective_field import effective_size
from jaxseg.heatmaps.page import COLOURS, Heat
from jaxseg.heatmaps.patches import Patch

Box = tuple[tuple[int, int], tuple[int, int]]
"""Rows and columns of the image, each from .. to below."""


def over_image(rgb: UInt8[np.ndarray, "h w 3"], heats: Sequence[Heat], label: str, *, opacity: float = 0.75) -> bytes:
    """The image, and each heat map of the image's size over it in grey, with one colour bar: they share their range."""
    figure, cells = _grid(1 + len(heats), rgb.shape[:2])
    cells[0].imshow(rgb)
    _title(cells[0], "image")
    grey = rgb.mean(-1)
    for axes, heat in zip(cells[1:], heats, strict=True):
        axes.imshow(grey, cmap="gray", vmin=0, vmax=255)
        axes.imshow(heat.values, cmap=COLOURS, vmin=heat.low, vmax=heat.high, alpha=opacity)
        _title(axes, heat.name)
    solid = _scale(heats[0])
    figure.colorbar(solid, ax=cells, label=label, shrink=0.7, aspect=30)
    return _png(figure)


def of_layer(rgb: UInt8[np.ndarray, "h w 3"], box: Box, heats: Sequence[Heat]) -> bytes:
    """Heat maps in the layer's own size, each in its own range, beside the image with the receptive field of the map's middle."""
    figure, cells = _grid(1 + len(heats), rgb.shape[:2])
    cells[0].imshow(rgb)
    _frame(cells[0], box)
    _title(cells[0], "field of the middle")
    for axes, heat in zip(cells[1:], heats, strict=True):
        axes.imshow(heat.values, cmap=COLOURS, vmin=heat.low, vmax=heat.high, interpolation="nearest")
        _title(axes, f"{heat.name}\n{heat.low:.3g} to {heat.high:.3g}")
    return _png(figure)


def of_patches(images: Sequence[UInt8[np.ndarray, "_ _ 3"]], filters: Mapping[str, Sequence[Patch]]) -> bytes:
    """A row for each filter: the parts of images that excite it most, strongest first, each with its activation."""
    columns = max(map(len, filters.values()))
    figure = Figure(figsize=(1.15 * columns + 1, 1.35 * len(filters) + 0.2), layout="constrained", dpi=80)
    rows = figure.subplots(len(filters), columns, squeeze=False)
    for axes in rows.flat:
        axes.set_axis_off()
    for line, (name, patches) in zip(rows, filters.items(), strict=True):
        line[0].text(-0.15, 0.5, name, rotation=90, ha="right", va="center", fontsize=9, transform=line[0].transAxes, parse_math=False)
        for axes, patch in zip(line, patches, strict=False):
            axes.imshow(images[patch.image][slice(*patch.rows), slice(*patch.columns)], interpolation="nearest", vmin=0, vmax=255)
            _title(axes, f"{patch.value:.3g}")
    return _png(figure)


def of_effective_field(field: Float[np.ndarray, "h w"], box: Box) -> bytes:
    """An effective field, its contour at 4.55 % of its maximum, and the theoretical field as a frame."""
    size = effective_size(field)
    figure, (axes,) = _grid(1, field.shape, inches=5)
    relative = field / field.max()
    picture = axes.imshow(relative, cmap=COLOURS, vmin=0, vmax=1, interpolation="nearest")
    if min(field.shape) > 1:  # matplotlib draws no contour of a single line
        axes.contour(relative, levels=[1 - 0.9545], colors="#3df", linewidths=0.8)
    _frame(axes, box)
    (top, bottom), (left, right) = box
    _title(axes, f"theoretical {bottom - top} x {right - left} pixels (frame), effective {size.side:.0f} x {size.side:.0f} (contour)")
    figure.colorbar(picture, ax=axes, label="|derivative| / largest", shrink=0.7, aspect=30)
    return _png(figure)


def _grid(count: int, shape: Sequence[int], inches: float = 2.3) -> tuple[Figure, list[Any]]:
    """A figure with room for so many pictures of one shape, at most 5 in a row."""
    wide = min(count, 5)
    high, ratio = -(-count // wide), min(max(shape[0] / shape[1], 0.4), 2.5)
    figure = Figure(figsize=(inches * wide + 0.9, high * (inches * ratio + 0.45)), layout="constrained", dpi=110)
    cells = list(figure.subplots(high, wide, squeeze=False).flat)
    for axes in cells:
        axes.set_axis_off()
    return figure, cells[:count]


def _scale(heat: Heat) -> Any:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(Normalize(heat.low, heat.high), COLOURS)


def _frame(axes: Any, box: Box) -> None:
    (top, bottom), (left, right) = box
    for colour, width in (("black", 3), ("white", 1.4)):
        axes.add_patch(Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=width))


def _title(axes: Any, text: str) -> None:
    axes.set_title(text, fontsize=8.5, parse_math=False)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # class names in scripts that matplotlib's font lacks
        figure.savefig(buffer, format="png")
    return buffer.getvalue()
