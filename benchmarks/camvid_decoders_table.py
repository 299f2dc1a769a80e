"""The table of camvid_decoders.py: SegNet's table 1 (Badrinarayanan et al. 2017), the paper's numbers and ours, and its orderings."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

MEASURES = ("global", "class", "miou", "bf", "train_global", "train_class", "train_miou")

PAPER: dict[str, tuple[str, float, dict[str, tuple[float, ...]]]] = {  # name, million parameters, MEASURES in per cent
    "bilinear": (
        "Bilinear-Interpolation",
        0.625,
        {"median": (77.9, 61.1, 43.3, 20.83, 89.1, 90.2, 82.7), "natural": (82.7, 52.5, 43.8, 23.08, 93.5, 74.1, 59.9)},
    ),
    "segnet": (
        "SegNet-Basic",
        1.425,
        {"median": (82.7, 62.0, 47.7, 35.78, 94.7, 96.2, 92.7), "natural": (84.0, 54.6, 46.3, 36.67, 96.1, 83.9, 73.3)},
    ),
    "segnet_addition": (
        "SegNet-Basic-EncoderAddition",
        1.425,
        {"median": (83.4, 63.6, 48.5, 35.92, 94.3, 95.8, 92.0), "natural": (84.2, 56.5, 47.7, 36.27, 95.3, 80.9, 68.9)},
    ),
    "segnet_single_channel": (
        "SegNet-Basic-SingleChannelDecoder",
        0.625,
        {"median": (81.2, 60.7, 46.1, 31.62, 93.2, 94.8, 90.3), "natural": (83.5, 53.9, 45.2, 32.45, 92.6, 68.4, 52.8)},
    ),
    "fcn": (
        "FCN-Basic",
        0.65,
        {"median": (81.7, 62.4, 47.3, 38.11, 92.8, 93.6, 88.1), "natural": (83.9, 55.6, 45.0, 37.33, 92.0, 66.8, 50.7)},
    ),
    "fcn_no_addition": (
        "FCN-Basic-NoAddition",
        0.65,
        {"median": (80.5, 58.6, 44.1, 31.96, 92.5, 93.0, 87.2), "natural": (82.3, 53.9, 44.2, 29.43, 93.1, 72.8, 57.6)},
    ),
    "fcn_no_reduction": (
        "FCN-Basic-NoDimReduction",
        1.625,
        {"median": (84.1, 63.4, 50.1, 37.37, 95.1, 96.5, 93.2), "natural": (83.5, 57.3, 47.0, 37.13, 97.2, 91.7, 84.8)},
    ),
    "fcn_no_addition_no_reduction": (
        "FCN-Basic-NoAddition-NoDimReduction",
        1.625,
        {"median": (80.5, 61.6, 45.9, 30.47, 92.5, 94.6, 89.9), "natural": (83.7, 54.8, 45.5, 33.17, 95.0, 80.2, 67.8)},
    ),
}

Get = Callable[[str, str], float]
"""(decoder, measure) -> per cent; KeyError where that was not run."""


def _above(decoder: str, other: str, measure: str = "miou") -> Callable[[Get], bool]:
    return lambda get: get(decoder, measure) > get(other, measure)


def _lead(*best: str, measure: str) -> Callable[[Get], bool]:
    return lambda get: min(get(d, measure) for d in best) > max(get(d, measure) for d in PAPER if d not in best)


ORDERINGS: dict[str, Callable[[Get], bool]] = {
    "Bilinear-Interpolation has the lowest mIoU": _lead(*(d for d in PAPER if d != "bilinear"), measure="miou"),
    "Bilinear-Interpolation has the lowest G, mIoU and BF": lambda get: all(
        get("bilinear", m) < get(d, m) for m in ("global", "miou", "bf") for d in PAPER if d != "bilinear"
    ),
    "SegNet-Basic and FCN-Basic are within 2 points of mIoU": lambda get: abs(get("segnet", "miou") - get("fcn", "miou")) <= 2,
    "SegNet-Basic above FCN-Basic-NoAddition": _above("segnet", "fcn_no_addition"),
    "SegNet-Basic above SegNet-Basic-SingleChannelDecoder": _above("segnet", "segnet_single_channel"),
    "SegNet-Basic-EncoderAddition above SegNet-Basic": _above("segnet_addition", "segnet"),
    "FCN-Basic above FCN-Basic-NoAddition": _above("fcn", "fcn_no_addition"),
    "FCN-Basic-NoDimReduction above FCN-Basic": _above("fcn_no_reduction", "fcn"),
    "FCN-Basic-NoDimReduction above FCN-Basic-NoAddition-NoDimReduction": _above("fcn_no_reduction", "fcn_no_addition_no_reduction"),
    "EncoderAddition and NoDimReduction, which keep whole maps, have the two highest mIoU": _lead(
        "segnet_addition", "fcn_no_reduction", measure="miou"
    ),
    "they, SegNet-Basic and FCN-Basic have the four highest BF": _lead(
        "segnet_addition", "fcn_no_reduction", "segnet", "fcn", measure="bf"
    ),
    "SegNet-Basic has the higher training mIoU than FCN-Basic": _above("segnet", "fcn", measure="train_miou"),
}


def table(out: Path, scale: str) -> str:
    """All runs in `out` beside the paper's numbers, and which of its orderings hold."""
    records = {(r["decoder"], r["balancing"]): r for r in (json.loads(f.read_text()) for f in sorted(out.glob("*-*.json")))}
    lines = [
        f"SegNet's table 1, scale {scale} ({_settings(records)}): ours / the paper's, per cent.",
        "",
        "| decoder | 10^6 parameters | frequencies | test G | C | mIoU | BF | train G | C | mIoU |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for decoder, (name, million, paper) in PAPER.items():
        for b in ("median", "natural"):
            r = records.get((decoder, b), {})
            got = r.get("scores") or {}
            none = "diverged" if r else "-"
            cells = [f"{got[m]:.1f} / {p:.1f}" if m in got else f"{none} / {p:.1f}" for m, p in zip(MEASURES, paper[b], strict=True)]
            ours = f"{r['parameters'] / 1e6:.3f}" if r else "-"
            lines.append(f"| {name} | {ours} / {million} | {b} | {' | '.join(cells)} |")
    lines += ["", "| ordering (of test mIoU where not said otherwise) | median | natural | paper, median | paper, natural |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    ours = {
        b: {(d, m): v for (d, x), r in records.items() if x == b for m, v in (r["scores"] or {}).items()} for b in ("median", "natural")
    }
    theirs = {b: {(d, m): v for d, p in PAPER.items() for m, v in zip(MEASURES, p[2][b], strict=True)} for b in ("median", "natural")}
    tables = (ours["median"], ours["natural"], theirs["median"], theirs["natural"])
    for text, holds in ORDERINGS.items():
        lines.append(f"| {text} | {' | '.join(_verdict(holds, t) for t in tables)} |")
    raised = [_verdict(lambda get: all(get(d, "class") > 0 for d in PAPER), _difference(s)) for s in (ours, theirs)]
    lines.append(f"| median-frequency weights raise every decoder's class average | {raised[0]} | | {raised[1]} | |")
    return "\n".join(lines) + "\n"


def _difference(scores: dict[str, dict[tuple[str, str], float]]) -> dict[tuple[str, str], float]:
    median, natural = scores["median"], scores["natural"]
    return {key: median[key] - natural[key] for key in median.keys() & natural.keys()}


def _verdict(holds: Callable[[Get], bool], numbers: dict[tuple[str, str], float]) -> str:
    try:
        return "holds" if holds(lambda decoder, measure: numbers[decoder, measure]) else "does not hold"
    except KeyError:
        return "not run"


def _settings(records: dict[Any, dict[str, Any]]) -> str:
    for r in records.values():
        s = r["settings"]
        return (
            f"pictures x {s['resize']:g}, {s['features']} channels, {s['steps']} steps of {s['batch_size']}, seed {s['seed']}, "
            f"{r['device']}, {sum(x['seconds'] for x in records.values()) / 3600:.1f} h in all"
        )
    return "nothing run"
