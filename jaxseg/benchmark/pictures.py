"""The benchmark's two plots as PNG bytes: transparent, letters in a grey that is legible on white and on black."""

import io
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from jaxseg.benchmark.results import gradient_speedup

GREY = "#7d838c"
COLOURS = {"ours": "#3b8fd0", "stock": "#d55e00", "torch eager": "#e0a100", "torch compiled": "#8f6a2a"}


def throughput(models: Mapping[str, Any]) -> bytes:
    """Images a second, inference and training, a bar for each model and method and for each peer beside it."""
    bars = [(key, who) for key, record in models.items() for who in record["phases"]["inference"]]
    figure = Figure(figsize=(10, 1.2 + 0.32 * len(bars)), layout="constrained", dpi=130)
    for axes, phase in zip(figure.subplots(1, 2, sharey=True), ("inference", "training"), strict=True):
        found = [models[key]["phases"][phase].get(who, {}).get("images_per_s", 0.0) for key, who in bars]
        _frame(axes, f"{phase}, images/s")
        axes.barh(range(len(bars)), found, color=[COLOURS[who] for _, who in bars], height=0.72)
        for row, value in enumerate(found):
            axes.text(value, row, f" {number(value)}" if value else " failed", va="center", fontsize=8, color=GREY)
        names = [key.replace("/", ", ") if who == "ours" else f"{key.replace('/', ', ')}: {who}" for key, who in bars]
        axes.set_yticks(range(len(bars)), names)
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.set_xlim(0, 1.15 * max(found))
    return _png(figure)


def speedups(operators: Mapping[str, Any]) -> bytes:
    """By operator, how many times faster than stock ours is: forward, gradients, both; and than eager torch, both."""

    operators = {name: record for name, record in operators.items() if any(len(found) > 1 for found in record["phases"].values())}

    def ratio(record: Mapping[str, Any], phase: str, who: str) -> float | None:
        return record["phases"][phase].get(who, {}).get("ratio")

    series = {
        "stock, forward": (COLOURS["stock"], "o", [ratio(r, "fwd", "stock") for r in operators.values()]),
        "stock, gradients": (COLOURS["stock"], "D", [gradient_speedup(r["phases"]) for r in operators.values()]),
        "torch eager, forward and gradients": (COLOURS["torch eager"], "s", [ratio(r, "both", "torch eager") for r in operators.values()]),
        "torch compiled, forward and gradients": (
            COLOURS["torch compiled"],
            "^",
            [ratio(r, "both", "torch compiled") for r in operators.values()],
        ),
    }
    figure = Figure(figsize=(10, 1.4 + 0.3 * len(operators)), layout="constrained", dpi=130)
    axes = figure.subplots()
    _frame(axes, "times as long as ours takes (right of 1: ours is faster)")
    axes.set_xscale("log")
    axes.axvline(1, color=GREY, linewidth=1.2)
    for name, (colour, marker, values) in series.items():
        there = [(value, row) for row, value in enumerate(values) if value is not None]
        if there:
            axes.plot(*zip(*there, strict=True), linestyle="", marker=marker, markersize=6.5, color=colour, alpha=0.9, label=name)
    axes.set_yticks(range(len(operators)), list(operators))
    axes.set_ylim(max(len(operators), 1) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    _legend(figure)
    return _png(figure)


def number(value: float | None) -> str:
    """Three significant digits, and nothing for None.

    >>> [number(v) for v in (None, 0.01234, 1.5, 12.34, 123.4, 12345.6)]
    ['', '0.0123', '1.50', '12.3', '123', '12346']
    """
    if value is None:
        return ""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:#.3g}" if value else "0"


def _frame(axes: Any, title: str) -> None:
    axes.set_title(title, color=GREY, fontsize=10)
    axes.tick_params(colors=GREY, labelsize=8, which="both", length=0)
    axes.grid(color=GREY, alpha=0.25, linewidth=0.6, axis="both" if title.startswith("times") else "x")
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _legend(figure: Figure) -> None:
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, labelcolor=GREY, frameon=False)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", transparent=True)
    return buffer.getvalue()
