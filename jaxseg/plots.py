"""The two plots of a report, training curves and confusion matrix, as PNG bytes with their alternative text.

Transparent, with labels in a grey that is legible on white and on black.
"""

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer
from matplotlib.figure import Figure

_GREY = "#7d838c"


def curves(
    history: Sequence[Mapping[str, Any]], metric: str = "val_miou", metric_name: str = "validation mean IoU"
) -> tuple[bytes, str] | None:
    """Training loss and a validation metric over the step, from rows of metrics.jsonl; None where there are neither."""
    loss, scores = _series(history, "loss"), _series(history, metric)
    if not loss and not scores:
        return None
    figure = Figure(figsize=(9, 3), layout="constrained", dpi=130)
    said = []
    for axes, values, name, colour in zip(
        figure.subplots(1, 2), (loss, scores), ("training loss", metric_name), ("#d55e00", "#3b8fd0"), strict=True
    ):
        _grey(axes)
        axes.set_title(name, color=_GREY, fontsize=10)
        axes.set_xlabel("step", color=_GREY)
        axes.grid(color=_GREY, alpha=0.25, linewidth=0.6)
        if not values:
            axes.text(0.5, 0.5, "not recorded", color=_GREY, ha="center", transform=axes.transAxes)
            continue
        steps, heights = np.array(sorted(values.items()), float).T
        few = len(steps) <= 60
        axes.plot(
            steps, heights, color=colour, alpha=1.0 if few else 0.35, linewidth=1.6 if few else 0.7, marker="o" if few else "", markersize=3
        )
        if not few:
            window = max(3, len(steps) // 40)
            mean = np.convolve(heights, np.ones(window) / window, "valid")
            axes.plot(steps[window // 2 : window // 2 + len(mean)], mean, color=colour, linewidth=1.8)
        finite = heights[np.isfinite(heights)]
        if name == "training loss" and finite.size and finite.min() > 0 and finite.max() > 20 * finite.min():
            axes.set_yscale("log")
        said.append(f"{name} from {heights[0]:.4f} at step {steps[0]:.0f} to {heights[-1]:.4f} at step {steps[-1]:.0f}")
    return _png(figure), "Training curves: " + "; ".join(said)


def _series(history: Sequence[Mapping[str, Any]], name: str) -> dict[int, float]:
    return {int(row["step"]): float(row[name]) for row in history if row.get(name) is not None and "step" in row}


def confusion_picture(confusion: Integer[np.ndarray, "k k"], class_names: Sequence[str]) -> tuple[bytes, str]:
    """The matrix (rows label, columns prediction) in per cent of each row, with numbers up to 40 classes."""
    k, total = len(confusion), confusion.sum(axis=1, keepdims=True)
    share = np.divide(confusion, total, out=np.full(confusion.shape, np.nan), where=total > 0)
    # Inches: every cell holds its number, and 30 classes still fit the page's width without shrinking the letters.
    side = 2.2 + 0.55 * k if k <= 6 else min(2.4 + 0.42 * min(k, 11) + 0.2 * max(k - 11, 0), 12.0)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained", dpi=110)
    axes = figure.subplots()
    _grey(axes)
    picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    names = [" ".join(name.split()) for name in class_names]
    names = [name if len(name) <= 18 else name[:17] + "…" for name in names]
    axes.set_xticks(
        range(k), names, rotation=45 if k > 2 else 0, ha="right" if k > 2 else "center", rotation_mode="anchor", parse_math=False
    )
    axes.set_yticks(range(k), names, parse_math=False)
    axes.set_xlabel("prediction", color=_GREY)
    axes.set_ylabel("label", color=_GREY)
    axes.tick_params(length=0)
    for (row, column), value in np.ndenumerate(share.astype(float)):
        if k <= 40 and not math.isnan(value):
            text = f"{value * 100:.1f}" if k <= 11 else f"{value * 100:.0f}" if value >= 0.005 else "·"
            axes.text(
                column, row, text, ha="center", va="center", fontsize=8.5 if k <= 11 else 8, color="white" if value > 0.55 else "#123"
            )
    for row in np.flatnonzero(total[:, 0] == 0).tolist():
        axes.text((k - 1) / 2, row, "absent from the labels", ha="center", va="center", fontsize=8, color=_GREY, style="italic")
    bar = figure.colorbar(picture, ax=axes, shrink=0.8, aspect=30, format=lambda x, _: f"{x * 100:.0f}%")
    bar.ax.tick_params(colors=_GREY, labelsize=8)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    pairs = ", ".join(f"{name} {'absent' if np.isnan(s) else f'{s:.1%}'}" for name, s in zip(class_names, np.diag(share), strict=True))
    return _png(figure), f"Confusion matrix, share of each class predicted correctly: {pairs}"


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # class names in scripts that matplotlib's font lacks: boxes, no failure
        figure.savefig(buffer, format="png", transparent=True)
    return buffer.getvalue()


def _grey(axes) -> None:
    axes.tick_params(colors=_GREY, labelsize=8)
    for spine in axes.spines.values():
        spine.set_visible(False)
