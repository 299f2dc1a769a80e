"""heatmaps.html: one self-contained page where a click on a heat map shows what that pixel sees of the image.

Everything is passed as plain data. The page asks nothing of the network: pictures are inlined, the script is plain JavaScript.
"""

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from jaxseg.errors import InputError
from jaxseg.pictures import png_bytes
from jaxseg.receptive_field import Lines

COLOURS = "inferno"
"""The perceptually uniform colour map of all heat maps, of matplotlib's."""


class Heat(NamedTuple):
    """One heat map [H,W], shown in colours from `low` to `high`."""

    name: str
    values: Float[np.ndarray, "h w"]
    low: float
    high: float


class Layer(NamedTuple):
    """Heat maps of one size, what their rows and columns see of the image, and that in words."""

    name: str
    heats: Sequence[Heat]
    fields: tuple[Lines, ...]
    said: str


class Picture(NamedTuple):
    """An image and the layers' maps of it."""

    name: str
    rgb: UInt8[np.ndarray, "h w 3"]
    layers: Sequence[Layer]


def write_page(path: Path, title: str, pictures: Sequence[Picture], note: str = "") -> None:
    """Writes the page. What is shown first, or later, can be said behind its address: `#image=0&layer=1&map=2&row=3&column=4`.

    Raises:
      InputError: there is nothing to show, or the fields are not of the maps' size.
    """
    if not pictures or not all(picture.layers and all(layer.heats for layer in picture.layers) for picture in pictures):
        raise InputError("write_page: got no image, or one without layers or maps; required at least one of each.")
    table = (matplotlib.colormaps[COLOURS](np.arange(256), bytes=True)[:, :3]).tolist()
    data = json.dumps({"colours": table, "images": [_picture(picture) for picture in pictures]}, separators=(",", ":"))
    page = _PAGE.replace("TITLE", html.escape(title)).replace("NOTE", html.escape(note))
    # A name may hold "</script>"; in JSON "<" can also be written as an escape.
    path.write_text(page.replace("STYLE", _STYLE).replace("SCRIPT", _SCRIPT).replace("DATA", data.replace("<", "\\u003c")), "utf-8")


def _picture(picture: Picture) -> dict:
    height, width = picture.rgb.shape[:2]
    source = _uri(png_bytes(picture.rgb))
    return {"name": picture.name, "height": height, "width": width, "source": source, "layers": [_layer(each) for each in picture.layers]}


def _layer(layer: Layer) -> dict:
    (rows, columns), sizes = layer.fields, {heat.values.shape for heat in layer.heats}
    if sizes != {(len(rows[0]), len(columns[0]))}:
        raise InputError(f"write_page: layer {layer.name} has maps of {sizes} and fields of {len(rows[0])} x {len(columns[0])} places.")
    seen = {"rows": [a.tolist() for a in rows], "columns": [a.tolist() for a in columns]}
    return {"name": layer.name, "said": layer.said, "maps": [_heat(heat) for heat in layer.heats], **seen}


def _heat(heat: Heat) -> dict:
    span = heat.high - heat.low
    grey = np.nan_to_num((heat.values - heat.low) / (span if span > 0 else 1)).clip(0, 1) * 255
    buffer = io.BytesIO()
    Image.fromarray(grey.round().astype(np.uint8)).save(buffer, "PNG", optimize=True)
    return {"name": heat.name, "low": float(heat.low), "high": float(heat.high), "source": _uri(buffer.getvalue())}


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


_PAGE = """<!doctype html>
<html lang=en>
<head>
<meta charset=utf-8>
<meta name=viewport content="width=device-width, initial-scale=1">
<meta http-equiv=Content-Security-Policy
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>TITLE</title>
<style>STYLE</style>
</head>
<body>
<h1>TITLE</h1>
<p>Click or tap a pixel of the heat map, or move with the arrow keys (with Shift by 8): the frame shows what of the image that pixel
depends on. NOTE</p>
<div class=choices>
<label>Image <select id=image></select></label>
<label>Layer <select id=layer></select></label>
<label>Map <select id=map></select></label>
</div>
<p id=layer-said></p>
<p id=said role=status aria-live=polite></p>
<div class=views>
<figure>
<div class=stack id=heat tabindex=0 role=application aria-label="Heat map; the arrow keys choose a pixel" aria-describedby=said>
<canvas id=canvas></canvas>
<svg aria-hidden=true preserveAspectRatio=none><path class=cross /><rect class=under /><rect class=over /></svg></div>
<figcaption><span id=low></span><canvas id=bar width=256 height=1 role=img aria-label="Colours from the lowest to the highest value">
</canvas><span id=high></span></figcaption>
</figure>
<figure>
<div class=stack id=seen><img id=picture alt="">
<svg aria-hidden=true preserveAspectRatio=none><path class=dim fill-rule=evenodd /><rect class=under /><rect class=over /></svg></div>
<figcaption id=picture-name></figcaption>
</figure>
</div>
<noscript><p>This page needs JavaScript; the PNG files beside it do not.</p></noscript>
<script type=application/json id=data>DATA</script>
<script>SCRIPT</script>
</body>
</html>
"""

_STYLE = """
:root{color-scheme:light dark;--back:#fff;--card:#f5f6f8;--text:#1b1f24;--soft:#5b636e;--line:#c9ced6;--accent:#0072b2}
@media(prefers-color-scheme:dark){:root{--back:#14171b;--card:#1d2127;--text:#e7eaee;--soft:#9da6b1;--line:#454d58;--accent:#56b4e9}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem;max-width:1180px;background:var(--back);color:var(--text);font:15px/1.5 system-ui,sans-serif}
h1{font-size:1.5rem;margin:.2rem 0 .6rem;overflow-wrap:anywhere}
p{margin:.4rem 0;max-width:75ch;color:var(--soft)}
.choices{display:flex;flex-wrap:wrap;gap:.6rem 1.2rem;margin:1rem 0 .3rem}
.choices label{display:flex;flex-direction:column;font-size:.85rem;color:var(--soft);max-width:100%}
select{font:inherit;color:var(--text);background:var(--card);border:1px solid var(--line)}
select{border-radius:6px;padding:.35rem .5rem;max-width:100%}
.views{display:grid;grid-template-columns:1fr 1fr;gap:1.2rem;margin:.8rem 0}
figure{margin:0;min-width:0}
.stack{position:relative;line-height:0;background:var(--card);border-radius:4px;overflow:hidden}
.stack>canvas,.stack>img{width:100%;height:auto;image-rendering:pixelated}
.stack>svg{position:absolute;inset:0;width:100%;height:100%;pointer-events:none}
#heat{cursor:crosshair;touch-action:manipulation}
:focus-visible{outline:3px solid var(--accent);outline-offset:2px}
rect,.cross{fill:none;vector-effect:non-scaling-stroke}
.cross{stroke:#3df;stroke-width:1px;stroke-opacity:.45}
.under{stroke:#000;stroke-width:4px}
.over{stroke:#fff;stroke-width:1.8px}
#heat .over{stroke:#3df}
.dim{fill:#000;fill-opacity:.55}
figcaption{display:flex;gap:.6rem;align-items:center;font-size:.85rem;color:var(--soft);margin-top:.35rem;overflow-wrap:anywhere}
#bar{flex:1;min-width:0;height:.8rem;border-radius:3px}
#low,#high{font-variant-numeric:tabular-nums}
#said{color:var(--text);max-width:none;min-height:3.1em}
@media(max-width:640px){.views{grid-template-columns:1fr}body{padding:1rem}}
"""

_SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("data").textContent), $ = id => document.getElementById(id);
const state = {image: 0, layer: 0, map: 0, row: -1, column: -1};
let shown = "", grey = null;  // the heat map on the canvas, and its 8-bit values

const picture = () => data.images[state.image], layer = () => picture().layers[state.layer], heat = () => layer().maps[state.map];
const size = () => [layer().rows[0].length, layer().columns[0].length];
const clamp = (x, n) => Math.max(0, Math.min(n - 1, x));
const number = x => Math.abs(x) >= 1000 || (x && Math.abs(x) < 0.001) ? x.toExponential(2) : x.toFixed(3);

function options(select, names, chosen) {
  select.replaceChildren(...names.map((name, i) => new Option(name, i, false, i === chosen)));
}

function frame(stack, height, width, top, left, high, wide) {
  const svg = $(stack).querySelector("svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  for (const rect of svg.querySelectorAll("rect"))
    for (const [name, value] of Object.entries({x: left, y: top, width: wide, height: high})) rect.setAttribute(name, value);
  const y = top + high / 2, x = left + wide / 2;
  svg.querySelector(".cross")?.setAttribute("d", `M0 ${y}H${left}M${left + wide} ${y}H${width}M${x} 0V${top}M${x} ${top + high}V${height}`);
  svg.querySelector(".dim")?.setAttribute("d", `M0 0H${width}V${height}H0ZM${left} ${top}h${wide}v${high}h${-wide}Z`);
}

function colour(context, width, height, values) {
  const pixels = context.createImageData(width, height);
  values.forEach((value, i) => pixels.data.set([...data.colours[value], 255], 4 * i));
  context.putImageData(pixels, 0, 0);
}

function say() {
  const {row, column} = state, rows = layer().rows.map(a => a[row]), columns = layer().columns.map(a => a[column]);
  const value = grey ? number(heat().low + (heat().high - heat().low) * grey[row * size()[1] + column] / 255) : "...";
  const high = rows[1] - rows[0] + 1, wide = columns[1] - columns[0] + 1, some = high > 0 && wide > 0;
  const sees = some
    ? `depends on rows ${rows[0]} to ${rows[1]} and columns ${columns[0]} to ${columns[1]} of the image, ${high} x ${wide} pixels.`
    : "depends on no pixel of the image, only on padding.";
  $("said").textContent = `${layer().name}, ${heat().name}: ${value} at row ${row}, column ${column}; ${sees}`;
  frame("heat", ...size(), row, column, 1, 1);
  frame("seen", picture().height, picture().width, some ? rows[0] : 0, some ? columns[0] : 0, some ? high : 0, some ? wide : 0);
}

function show() {
  for (const [name, list] of [["image", data.images], ["layer", picture().layers], ["map", layer().maps]]) {
    state[name] = clamp(state[name], list.length);
    options($(name), list.map(each => each.name), state[name]);
  }
  const [height, width] = size();
  state.row = state.row < 0 ? height >> 1 : clamp(state.row, height);
  state.column = state.column < 0 ? width >> 1 : clamp(state.column, width);
  $("layer-said").textContent = layer().said;
  $("picture").src = picture().source;
  $("picture").alt = $("picture-name").textContent = picture().name;
  $("low").textContent = number(heat().low);
  $("high").textContent = number(heat().high);
  const key = [state.image, state.layer, state.map].join();
  if (key !== shown) {
    shown = key;
    grey = null;
    const source = new Image();
    source.onload = () => {
      if (key !== shown) return;  // another was chosen meanwhile
      const canvas = $("canvas");
      [canvas.width, canvas.height] = [width, height];
      const context = canvas.getContext("2d", {willReadFrequently: true});
      context.drawImage(source, 0, 0);
      grey = context.getImageData(0, 0, width, height).data.filter((_, i) => i % 4 === 0);
      colour(context, width, height, grey);
      say();
    };
    source.src = heat().source;
  }
  say();
}

function choose(changes) {
  const before = size();
  Object.assign(state, changes);
  state.image = clamp(state.image, data.images.length);
  state.layer = clamp(state.layer, picture().layers.length);
  const after = size();
  if (("layer" in changes || "image" in changes) && !("row" in changes)) {  // stay at the same part of the image
    state.row = Math.floor((state.row + 0.5) * after[0] / before[0]);
    state.column = Math.floor((state.column + 0.5) * after[1] / before[1]);
  }
  show();
  history.replaceState(null, "", "#" + new URLSearchParams(state));
}

function point(event) {
  const box = $("heat").getBoundingClientRect(), [height, width] = size();
  choose({
    row: clamp(Math.floor((event.clientY - box.top) / box.height * height), height),
    column: clamp(Math.floor((event.clientX - box.left) / box.width * width), width),
  });
}

function fromAddress() {
  for (const [name, value] of new URLSearchParams(location.hash.slice(1)))
    if (name in state && /^\\d+$/.test(value)) state[name] = Number(value);
  state.image = clamp(state.image, data.images.length);
  state.layer = clamp(state.layer, picture().layers.length);
  show();
}

$("heat").addEventListener("click", point);
$("heat").addEventListener("pointermove", event => { if (event.buttons && event.pointerType === "mouse") point(event); });
$("heat").addEventListener("keydown", event => {
  const move = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
  if (!move) return;
  event.preventDefault();
  const by = event.shiftKey ? 8 : 1, [height, width] = size();
  choose({row: clamp(state.row + by * move[0], height), column: clamp(state.column + by * move[1], width)});
});
for (const name of ["image", "layer", "map"]) $(name).addEventListener("change", event => choose({[name]: Number(event.target.value)}));
addEventListener("hashchange", fromAddress);
colour($("bar").getContext("2d"), 256, 1, [...Array(256).keys()]);
fromAddress();
"""
