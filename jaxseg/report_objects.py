"""report.html of a run that separates objects: facts, curves, average precision, and pictures of the objects found, missed and extra."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, Num

from jaxseg import pictures, plots
from jaxseg.instances.matching import overlaps
from jaxseg.report import article, facts_table, number, photo, plot, section, tiles, write_page

_LEGEND = "<p>Matches at an IoU above 0.5. Last picture: found objects outlined white, missed ones blue, extra ones orange.</p>"
_NAMES = {
    "ap50": "AP above IoU 0.5",
    "mean_ap": "mean AP of all thresholds",
    "pq": "panoptic quality",
    "sq": "segmentation quality",
    "rq": "recognition quality",
    "image_ap50": "mean over images of AP above 0.5",
    "count_error": "error of an image's count",
    "objects": "objects",
    "predicted": "predicted",
}


@dataclasses.dataclass(frozen=True)
class ObjectPanel:
    """One test image with its true and its predicted label map; `score` is its AP above IoU 0.5."""

    name: str
    image: Num[np.ndarray, "h w c"]
    truth: Integer[np.ndarray, "h w"]
    prediction: Integer[np.ndarray, "h w"]
    score: float


def write_object_report(
    path: str | Path,
    *,
    title: str,
    facts: Mapping[str, str],
    history: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Any],
    panels: Sequence[ObjectPanel],
) -> None:
    """Writes the page to `path`.

    Args:
      facts, history: as in `jaxseg.report.write_report`; the metric of the history is `val_ap50`.
      scores: as `jaxseg.instances.matching.scores` gives them.
      panels: test images in the order in which they are shown.
    """
    curves = plots.curves(history, "val_ap50", "validation AP above IoU 0.5")
    sections = [
        section("Run", facts_table(facts)),
        section("Scores", tiles({name: scores[key] for key, name in _NAMES.items()}) + _thresholds(scores)),
        section("Training", plot(curves) or "<p>No training history was recorded.</p>"),
        section("Test images, from the best to the worst", _LEGEND + "".join(map(_article, panels))) if panels else "",
    ]
    write_page(path, title, sections)


def _thresholds(scores: Mapping[str, Any]) -> str:
    head = "".join(f"<th scope=col class=n>{name}</th>" for name in ("IoU above", "AP", "found", "missed", "extra"))
    rows = ""
    for threshold, ap, found in zip(scores["thresholds"], scores["ap"], scores["matches"], strict=True):
        cells = f"{threshold:.2f}", number(ap), *(f"{n:,}" for n in (found, scores["objects"] - found, scores["predicted"] - found))
        rows += f"<tr>{''.join(f'<td class=n>{cell}</td>' for cell in cells)}</tr>"
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"


def _article(panel: ObjectPanel) -> str:
    found = overlaps(panel.truth, panel.prediction)
    i, j = found.pairs[found.iou > 0.5].T
    missed, extra = np.delete(found.objects, i), np.delete(found.predicted, j)
    views = {
        "image": pictures.to_rgb(panel.image),
        "true objects": pictures.outlines(panel.image, panel.truth),
        "predicted objects": pictures.outlines(panel.image, panel.prediction),
        "found, missed, extra": pictures.match_map(panel.image, panel.truth, panel.prediction, missed, extra),
    }
    return article(panel.name, f"AP {number(panel.score)}", {what: photo(rgb) for what, rgb in views.items()})
