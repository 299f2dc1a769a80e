"""A contact sheet: samples as image, label in colours and overlay, with the names of the classes."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxseg.data.listing import DataInfo, Listing, Record
from jaxseg.errors import InputError
from jaxseg.pictures import colourise, to_rgb

if TYPE_CHECKING:
    from jaxseg.data.dataset import Dataset

CELL = 240  # pixels, of the longer side of a picture
GAP = 8
LINE = 20
IGNORED = (200, 200, 200)


def contact_sheet(data: "Listing | Dataset", out: Path, split: str = "train", count: int = 12) -> None:
    """Writes a PNG of `count` samples spread evenly over a split; ignored pixels are hatched, objects of instance maps outlined.

    Raises:
      InputError: no such split, a count below 1, a file name that is not .png, no folder to write into.
    """
    out = Path(out)
    if split not in data.splits:
        raise InputError(f"show: {data.info.name} has no split {split}; there are {', '.join(data.splits)}: give one of them")
    if count < 1:
        raise InputError(f"show: count is {count}; at least 1 is required")
    if out.suffix.lower() != ".png" or not out.parent.is_dir():
        raise InputError(f"show: cannot write {out}; a .png file in a folder that exists is required: give another --out")
    records = _spread(data, split, count)
    panels = [_panels(record, data.info) for record in records]
    columns = 2 if len(records) > 2 else 1
    rows = [max(panel.height for panel, *_ in panels[first : first + columns]) + LINE + GAP for first in range(0, len(records), columns)]
    block_width = 3 * (CELL + GAP) + GAP
    width, head = columns * block_width + GAP, LINE + GAP
    font = ImageFont.load_default(13)
    legend = _legend(data.info, width, font)
    sheet = Image.new("RGB", (width, head + sum(rows) + legend.height), "white")
    draw = ImageDraw.Draw(sheet)
    total = len(data.splits[split]) if isinstance(data, Listing) else data.splits[split]
    title = f"{data.info.name}, {split}: {len(records)} of {total} samples; image, label, overlay"
    draw.text((GAP, GAP), title, fill="black", font=font)
    for number, record in enumerate(records):
        row, column = divmod(number, columns)
        left, top = GAP + column * block_width, head + sum(rows[:row])
        height, length = record["label"].shape
        kind = f"{length} x {height}, {record['image'].shape[-1]} x {record['image'].dtype}"
        draw.text((left, top), _cut(f"{record['name']}  ({kind})", 3 * CELL, font), fill="black", font=font)
        for place, panel in enumerate(panels[number]):
            sheet.paste(panel, (left + place * (CELL + GAP), top + LINE))
    sheet.paste(legend, (0, head + sum(rows)))
    sheet.save(out)


def _panels(record: Record, info: DataInfo) -> list[Image.Image]:
    """Image, label and overlay, each at most CELL wide and high. Resized first, so that the hatch and the outlines stay visible."""
    height, width = record["label"].shape
    scale = CELL / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = Image.fromarray(to_rgb(np.asarray(record["image"]))).resize(
        size, Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST
    )
    rows = ((np.arange(size[1]) + 0.5) * height / size[1]).astype(int)
    columns = ((np.arange(size[0]) + 0.5) * width / size[0]).astype(int)
    label = np.asarray(record["label"])[rows[:, None], columns]
    colours = colourise(label, info.colours, ignore_index=info.ignore_index)
    mixed = (0.55 * np.asarray(picture) + 0.45 * colours).astype(np.uint8)
    if "instances" in record:
        edge = _edges(np.asarray(record["instances"])[rows[:, None], columns])
        colours[edge] = mixed[edge] = 255
    return [picture, Image.fromarray(colours), Image.fromarray(mixed)]


def _edges(instances: np.ndarray) -> np.ndarray:
    """[H,W] bool: pixels of an object whose right or lower neighbour is of another number."""
    edge = np.zeros(instances.shape, bool)
    edge[:, :-1] |= instances[:, :-1] != instances[:, 1:]
    edge[:-1] |= instances[:-1] != instances[1:]
    return edge


def _spread(data: "Listing | Dataset", split: str, count: int) -> list[Record]:
    if isinstance(data, Listing):
        items = data.splits[split]
        return [data.read(items[place]) for place in _places(len(items), count)]
    records = data.split(split)
    return [records[place] for place in _places(len(records), count)]


def _places(length: int, count: int) -> list[int]:
    """At most `count` numbers spread evenly over 0..length - 1."""
    return np.unique(np.linspace(0, length - 1, count).round().astype(int)).tolist()


def _legend(info: DataInfo, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> Image.Image:
    entries = [(f"{number} {name}", colour) for number, (name, colour) in enumerate(zip(info.class_names, info.colours, strict=True))]
    entries.append((f"{info.ignore_index} ignored", IGNORED))
    places, left, top = [], GAP, GAP
    for text, _ in entries:
        length = LINE + font.getlength(text) + 2 * GAP
        if left + length > width and left > GAP:
            left, top = GAP, top + LINE + 4
        places.append((left, top))
        left += length
    legend = Image.new("RGB", (width, int(top) + LINE + GAP), "white")
    draw = ImageDraw.Draw(legend)
    for (text, colour), (left, top) in zip(entries, places, strict=True):
        draw.rectangle((left, top, left + 14, top + 14), fill=colour, outline="black")
        if colour == IGNORED:
            for shift in (4, 12, 20):
                draw.line(
                    (left + max(0, shift - 14), top + min(14, shift), left + min(14, shift), top + max(0, shift - 14)), fill=(90, 90, 90)
                )
        draw.text((left + LINE, top), text, fill="black", font=font)
    return legend


def _cut(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    while font.getlength(text) > width:
        text = text[:-4] + "…"
    return text
