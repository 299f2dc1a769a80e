"""report.html of a run: one self-contained page (no outside requests) with facts, curves, scores, confusion matrix and pictures.

Everything is passed as plain data, so a run of another trainer can be reported as well.
"""

import base64
import dataclasses
import html
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, Num
from PIL import Image

from jaxseg import pictures, plots
from jaxseg.errors import InputError

_PANEL_WIDTH = 320  # pixels
_SHARES = "<p>Per cent of the pixels of a label (row) that are predicted as each class (column), over the whole set; a dot: under 0.5.</p>"
_MEANS = {"iou": "miou", "dice": "mean_dice", "class_accuracy": "mean_class_accuracy"}
_TITLES = {
    "iou": "IoU",
    "dice": "Dice",
    "class_accuracy": "accuracy",
    "miou": "mean IoU",
    "mean_dice": "mean Dice",
    "mean_class_accuracy": "mean class accuracy",
    "frequency_weighted_iou": "frequency-weighted IoU",
}


@dataclasses.dataclass(frozen=True)
class Panel:
    """One test image: `image` [H,W,C] of any numeric type, `label` and `prediction` [H,W] class numbers (255 in the label: ignored).

    `score` is its mean IoU.
    """

    name: str
    image: Num[np.ndarray, "h w c"]
    label: Integer[np.ndarray, "h w"]
    prediction: Integer[np.ndarray, "h w"]
    score: float


def write_report(
    path: str | Path,
    *,
    title: str,
    facts: Mapping[str, str],
    history: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Any],
    confusion: Integer[np.ndarray, "k k"],
    class_names: Sequence[str],
    colours: pictures.Colours,
    panels: Sequence[Panel],
    baselines: Mapping[str, float] | None = None,
) -> None:
    """Writes the page to `path`.

    Args:
      facts: rows of the first table, in order: model, parameters, data, steps, time, versions, command ...
      history: rows of metrics.jsonl, `{"step": 10, "loss": 0.4, ...}` and `{"step": 100, "val_miou": 0.6}`; of rows with the same step the
        last counts, as after a resumed run. May be empty.
      scores: as `jaxseg.metrics.scores` gives them: lists are one number a class, numbers are of the whole set; nan and None are "absent".
      confusion: counts [K,K], rows label, columns prediction.
      class_names, colours: one a class; colours as RGB 0..255.
      panels: the best and the worst test images; shown from the highest to the lowest score.
      baselines: mean IoU of other methods on the same data, beside `scores["miou"]`.
    """
    k, confusion = len(class_names), np.asarray(confusion)
    if confusion.shape != (k, k) or len(colours) != k:
        raise InputError(
            f"write_report: {k} class names need a confusion matrix {k}x{k} and {k} colours, got {confusion.shape} and {len(colours)}"
        )
    columns = {name: list(v) for name, v in scores.items() if isinstance(v, (list, tuple, np.ndarray)) and name != "class_names"}
    numbers = {name: v for name, v in scores.items() if v is None or isinstance(v, (int, float, np.integer, np.floating))}
    wrong = {name: len(v) for name, v in columns.items() if len(v) != k}
    if wrong:
        raise InputError(f"write_report: lists in scores have one number a class, {k} of them, got {wrong}")

    sections = [
        section("Run", facts_table(facts)),
        section("Scores", tiles(numbers) + _score_table(columns, numbers, class_names, colours)),
        section("Baselines", _baselines(scores.get("miou"), baselines)) if baselines else "",
        section("Training", plot(plots.curves(history)) or "<p>No training history was recorded.</p>"),
        section("Confusion matrix", _SHARES + plot(plots.confusion_picture(confusion, class_names))),
        section("Test images", _legend(class_names, colours) + _panels(panels, colours)) if panels else "",
    ]
    write_page(path, title, sections)


def write_page(path: str | Path, title: str, sections: Sequence[str]) -> None:
    """The page of the sections that are not empty."""
    page = _PAGE.format(style=_STYLE, title=html.escape(title), body="\n".join(filter(None, sections)))
    Path(path).write_text(page, encoding="utf-8")


def section(title: str, body: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>\n{body}</section>"


def facts_table(facts: Mapping[str, str]) -> str:
    rows = "".join(
        f"<tr><th scope=row>{html.escape(str(name))}</th><td>{html.escape(str(value))}</td></tr>" for name, value in facts.items()
    )
    return f"<div class=scroll><table class=facts>{rows}</table></div>" if rows else "<p>No facts were recorded.</p>"


def number(value: Any) -> str:
    if value is None or math.isnan(value):
        return "<i>absent</i>"
    return f"{value:,}" if isinstance(value, (int, np.integer)) else f"{value:.4f}"


def _name(name: str) -> str:
    return html.escape(_TITLES.get(name, name.replace("_", " ")))


def tiles(numbers: Mapping[str, Any]) -> str:
    shown = "".join(f"<div><b>{number(value)}</b><span>{_name(name)}</span></div>" for name, value in numbers.items())
    return f"<div class=tiles>{shown}</div>" if shown else ""


def _score_table(columns: Mapping[str, Sequence[Any]], numbers: Mapping[str, Any], class_names: Sequence[str], colours) -> str:
    if not columns:
        return ""
    head = "".join(f"<th scope=col class=n>{_name(name)}</th>" for name in columns)
    rows = ""
    for i, (name, colour) in enumerate(zip(class_names, colours, strict=True)):
        cells = "".join(f"<td class=n>{number(column[i])}</td>" for column in columns.values())
        rows += f"<tr><th scope=row>{_swatch(colour)}{html.escape(name)}</th>{cells}</tr>"
    means = [number(numbers[_MEANS[name]]) if _MEANS.get(name) in numbers else "" for name in columns]
    foot = f"<tfoot><tr><th scope=row>mean</th>{''.join(f'<td class=n>{m}</td>' for m in means)}</tr></tfoot>" if any(means) else ""
    return f"<div class=scroll><table><thead><tr><th scope=col>class</th>{head}</tr></thead><tbody>{rows}</tbody>{foot}</table></div>"


def _baselines(miou: float | None, baselines: Mapping[str, float]) -> str:
    rows = ""
    for name, value in [("this model", miou), *baselines.items()]:
        known = [x is not None and not math.isnan(x) for x in (miou, value)]
        gain = f"{miou - value:+.4f}" if all(known) and name != "this model" else ""  # pyright: ignore[reportOptionalOperand]
        bar = f'<span class=bar style="width:{max(0.0, min(1.0, float(value))) * 100:.1f}%"></span>' if known[1] else ""
        rows += f"<tr><th scope=row>{html.escape(name)}</th><td class=n>{number(value)}</td><td class=n>{gain}</td>"
        rows += f"<td class=bars>{bar}</td></tr>"
    head = "<th scope=col>method</th><th scope=col class=n>mean IoU</th><th scope=col class=n>model is better by</th><th scope=col></th>"
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"


def _legend(class_names: Sequence[str], colours: pictures.Colours) -> str:
    items = "".join(f"<li>{_swatch(colour)}{html.escape(name)}</li>" for name, colour in zip(class_names, colours, strict=True))
    return (
        f'<ul class=legend>{items}<li><span class="swatch hatch"></span>ignored</li><li>{_swatch((224, 32, 32))}wrong (error map)</li></ul>'
    )


def _panels(panels: Sequence[Panel], colours: pictures.Colours) -> str:
    ranked = sorted(panels, key=lambda panel: math.inf if math.isnan(panel.score) else -panel.score)
    half = (len(ranked) + 1) // 2
    out = ""
    for i, panel in enumerate(ranked):
        if len(ranked) > 1 and i in (0, half):
            out += f"<h3>{'Best' if i == 0 else 'Worst'}</h3>"
        views = {
            "image": photo(pictures.to_rgb(panel.image)),
            "label": _flat(pictures.colourise(panel.label, colours)),
            "prediction": _flat(pictures.colourise(panel.prediction, colours)),
            "error": photo(pictures.error_map(panel.label, panel.prediction, panel.image)),
        }
        out += article(panel.name, f"mean IoU {number(float(panel.score))}", views)
    return out


def article(name: str, score: str, views: Mapping[str, str]) -> str:
    """Pictures of one image side by side: `views` are their titles and data."""
    figures = "".join(f"<figure>{_img(v, f'{what} of {name}')}<figcaption>{what}</figcaption></figure>" for what, v in views.items())
    return f"<article><h4>{html.escape(name)} <span>{score}</span></h4><div class=views>{figures}</div></article>"


def plot(drawn: tuple[bytes, str] | None) -> str:
    return _img(_uri("png", drawn[0]), drawn[1], "plot") if drawn else ""


def photo(rgb: np.ndarray) -> str:
    """JPEG: photographs as PNG would make the page many megabytes."""
    buffer = io.BytesIO()
    Image.fromarray(pictures.shrink(rgb, _PANEL_WIDTH)).save(buffer, "JPEG", quality=88, subsampling=0)
    return _uri("jpeg", buffer.getvalue())


def _flat(rgb: np.ndarray) -> str:
    return _uri("png", pictures.png_bytes(pictures.shrink(rgb, _PANEL_WIDTH, nearest=True)))


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _img(uri: str, alt: str, css: str = "") -> str:
    return f'<img src="{uri}" alt="{html.escape(alt)}"{f" class={css}" if css else ""}>'


def _swatch(colour: tuple[int, int, int]) -> str:
    return f'<span class=swatch style="background:rgb({",".join(str(int(c)) for c in colour)})"></span>'


_PAGE = """<!doctype html>
<html lang=en>
<head>
<meta charset=utf-8>
<meta name=viewport content="width=device-width, initial-scale=1">
<meta http-equiv=Content-Security-Policy content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""

_STYLE = """
:root{color-scheme:light dark;--back:#fff;--card:#f5f6f8;--text:#1b1f24;--soft:#5b636e;--line:#dfe2e7;--accent:#0072b2}
@media(prefers-color-scheme:dark){:root{--back:#14171b;--card:#1d2127;--text:#e7eaee;--soft:#9da6b1;--line:#343a43;--accent:#56b4e9}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem;max-width:1080px;background:var(--back);color:var(--text);font:15px/1.5 system-ui,sans-serif}
h1{font-size:1.7rem;margin:.2rem 0 1rem}
h2{font-size:1.15rem;margin:2.2rem 0 .7rem;padding-bottom:.3rem;border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin:1.4rem 0 .3rem;color:var(--soft)}
h4{font-size:.95rem;margin:0 0 .5rem;overflow-wrap:anywhere}
h4 span,p,figcaption{color:var(--soft);font-weight:400}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .9rem;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600}
thead th{color:var(--soft);border-bottom-width:2px;white-space:nowrap}
tbody th{font-weight:400}
tfoot th,tfoot td{font-weight:700;border-bottom:0}
.n{text-align:right}
.n i{color:var(--soft)}
.facts th{color:var(--soft);white-space:nowrap;font-weight:400;padding-left:0}
.facts td{white-space:pre-wrap;overflow-wrap:anywhere}
.scroll{overflow-x:auto}
.tiles{display:flex;flex-wrap:wrap;gap:.7rem;margin-bottom:1.1rem}
.tiles div{background:var(--card);border-radius:8px;padding:.6rem 1rem;min-width:8.5rem}
.tiles b{display:block;font-size:1.35rem;font-variant-numeric:tabular-nums}
.tiles span{color:var(--soft);font-size:.85rem}
.bars{width:240px;vertical-align:middle}
.bar{display:block;height:.7rem;border-radius:3px;background:var(--accent)}
.swatch{display:inline-block;width:.95em;height:.95em;margin-right:.5em;border-radius:3px;border:1px solid var(--soft);vertical-align:-.1em}
.hatch{background:repeating-linear-gradient(135deg,#5a5a5a 0 2px,#808080 2px 6px)}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1.3rem;margin:0 0 .6rem;padding:0}
.plot{max-width:100%;height:auto;display:block}
article{background:var(--card);border-radius:8px;padding:.8rem 1rem;margin:.6rem 0}
.views{display:grid;grid-template-columns:repeat(4,1fr);gap:.7rem}
figure{margin:0}
figure img{width:100%;display:block;border-radius:3px;image-rendering:pixelated}
figcaption{font-size:.85rem;margin-top:.15rem}
@media(max-width:640px){.views{grid-template-columns:repeat(2,1fr)}body{padding:1rem}}
"""
