"""Laws of the pictures and of the report: exact indices, exact error pixels, everything escaped, nothing loaded from outside."""

import io
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from jaxseg import pictures
from jaxseg.errors import InputError
from jaxseg.report import Panel, write_report

RNG = np.random.default_rng(0)


def report(path, k=3, **changes):
    names = ["<b>sky</b>", 'a "quoted" & $x$ name', *(f"class {i}" for i in range(2, k))][:k]
    label = RNG.integers(0, k, (40, 500)).astype(np.int32)
    label[:4] = 255
    prediction = RNG.integers(0, k, (40, 500))
    image = RNG.uniform(size=(40, 500, 1)).astype(np.float32)
    iou = RNG.uniform(size=k)
    iou[-1] = math.nan
    arguments = {
        "title": "A <title>",
        "facts": {"model": "UNet<x>", "command": "jaxseg train --a=1"},
        "history": [{"step": i, "loss": 2.0 / (i + 1), "images_per_s": 3.0} for i in range(100)] + [{"step": 9, "val_miou": 0.5}],
        "scores": {"iou": iou.tolist(), "dice": RNG.uniform(size=k), "miou": float(np.nanmean(iou)), "mean_dice": 0.71234, "pixels": 18000},
        "confusion": RNG.integers(0, 1000, (k, k)),
        "class_names": names,
        "colours": pictures.default_colours(k),
        "panels": [Panel(f"<i>{i}", image, label, prediction, score) for i, score in enumerate((0.25, 0.75, math.nan))],
    } | changes
    write_report(path, **arguments)
    return path.read_text(encoding="utf-8"), arguments


class Page(HTMLParser):
    """Collects what a browser would load, and checks that tags are closed in order."""

    def __init__(self, page):
        super().__init__()
        self.loads, self.images, self.text, self.open = [], [], "", []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("k", [2, 11, 30])
def test_the_page_is_self_contained_and_complete(tmp_path, k):
    text, arguments = report(tmp_path / "report.html", k, baselines={"Otsu <1979>": 0.1234, "chance": math.nan})
    page = Page(text)
    assert page.loads
    assert all(value.startswith("data:image/") for value in page.loads)
    assert "url(" not in text
    assert "@import" not in text
    assert not {"script", "link", "iframe"} & set(re.findall(r"<(\w+)", text))
    assert all(image["alt"] for image in page.images)
    assert len(page.images) == 2 + 3 * 4
    numbers = [x for v in arguments["scores"].values() for x in np.atleast_1d(v).tolist()]
    for number in [*numbers, 0.1234, 0.25, 0.75]:
        assert ("absent" if math.isnan(number) else f"{number:,}" if isinstance(number, int) else f"{number:.4f}") in page.text
    for said in [*arguments["class_names"], *arguments["facts"].values(), "Otsu <1979>", "<i>0", "A <title>", "Best", "Worst"]:
        assert said in page.text
    assert len(text) < 2_000_000


def test_names_are_escaped(tmp_path):
    text, _ = report(tmp_path / "report.html")
    assert "<b>sky" not in text
    assert "&lt;b&gt;sky" in text
    assert "UNet<x>" not in text


@pytest.mark.parametrize("history", [[], [{"step": 1, "loss": math.nan}], [{"step": 3, "val_miou": 0.5}], [{"step": 1, "val_miou": None}]])
def test_short_histories_and_no_panels(tmp_path, history):
    text, _ = report(tmp_path / "report.html", 2, history=history, panels=[], facts={}, confusion=np.zeros((2, 2), int))
    assert len(Page(text).images) == 1 + any(row.get("loss") or row.get("val_miou") for row in history)


def test_long_names_and_foreign_scripts_do_not_stop_the_plots(tmp_path):
    text, _ = report(tmp_path / "report.html", class_names=["空", "x" * 200, "$\\frac{"])
    assert "空" in text


def test_wrong_sizes_are_input_errors(tmp_path):
    with pytest.raises(InputError, match="confusion"):
        report(tmp_path / "r.html", confusion=np.zeros((2, 2), int))
    with pytest.raises(InputError, match="colours"):
        report(tmp_path / "r.html", colours=[(0, 0, 0)])
    with pytest.raises(InputError, match="scores"):
        report(tmp_path / "r.html", scores={"iou": [0.5]})


@pytest.mark.parametrize("classes", [2, 3, 17, 256, 65536])
def test_index_png_round_trips(tmp_path, classes):
    label = RNG.integers(0, classes, (30, 41)).astype(np.int32)
    label[0, 0] = classes - 1
    colours = pictures.default_colours(min(classes, 40))
    pictures.write_index_png(tmp_path / "x.png", label, colours)
    with Image.open(tmp_path / "x.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), label)
        assert picture.mode == ("P" if classes <= 256 else "I;16")
        if classes <= 40:
            np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), pictures.colourise(label, colours))
    if classes <= 256:  # 8 bits a pixel in the file, whatever the number of classes
        assert (tmp_path / "x.png").read_bytes()[24] == 8


@pytest.mark.parametrize("label", [np.full((2, 2), -1), np.full((2, 2), 65536), np.zeros((2, 2)), np.zeros(4, int)])
def test_index_png_refuses_what_it_cannot_hold(tmp_path, label):
    with pytest.raises(InputError):
        pictures.write_index_png(tmp_path / "x.png", label, [(0, 0, 0)])


def test_error_map_marks_exactly_the_wrong_pixels():
    label, prediction = RNG.integers(0, 3, (20, 30)), RNG.integers(0, 3, (20, 30))
    label[5:9] = 255
    drawn = pictures.error_map(label, prediction, RNG.integers(0, 65535, (20, 30, 1)).astype(np.uint16)).astype(int)
    red = (drawn[..., 0] > drawn[..., 1] + 50) & (drawn[..., 0] > drawn[..., 2] + 50)
    np.testing.assert_array_equal(red, (label != prediction) & (label != 255))
    assert np.ptp(drawn[~red], axis=-1).max() == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_to_rgb_of_anything(dtype, channels):
    image = (RNG.uniform(size=(9, 7, channels)) * 200).astype(dtype)
    rgb = pictures.to_rgb(image)
    assert rgb.shape == (9, 7, 3)
    assert rgb.dtype == np.uint8
    assert np.ptp(rgb) > 150
    if dtype == np.uint8 and channels == 3:
        np.testing.assert_array_equal(rgb, image)


def test_to_rgb_of_constant_and_broken_images():
    assert pictures.to_rgb(np.full((4, 4, 1), 7.0, np.float32)).max() == 0
    assert pictures.to_rgb(np.full((4, 4, 1), np.nan, np.float32)).max() == 0
    image = np.zeros((20, 20, 1), np.float32)
    image[3, 3], image[4, 4] = 1, np.inf
    assert pictures.to_rgb(image)[3, 3, 0] == 255
    with pytest.raises(InputError, match="shape"):
        pictures.to_rgb(np.zeros(3))


def test_overlay_ends_are_image_and_colours():
    image = RNG.integers(0, 255, (6, 8, 3)).astype(np.uint8)
    label, colours = RNG.integers(0, 3, (6, 8)), pictures.default_colours(3)
    label[0] = 255
    np.testing.assert_array_equal(pictures.overlay(image, label, colours, 0.0), image)
    np.testing.assert_array_equal(pictures.overlay(image, label, colours, 1.0)[1:], pictures.colourise(label, colours)[1:])
    np.testing.assert_array_equal(pictures.overlay(image, label, colours, 1.0)[0], image[0])
    with pytest.raises(InputError, match="same size"):
        pictures.overlay(image, label[1:], colours)


def test_default_colours_are_distinct_and_stable():
    for k in (1, 2, 9, 30, 256):
        assert len(set(pictures.default_colours(k))) == k
        assert pictures.default_colours(k) == pictures.default_colours(300)[:k]


def test_png_bytes_are_lossless_and_shrink_keeps_small_pictures():
    rgb = RNG.integers(0, 255, (64, 100, 3)).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(pictures.png_bytes(rgb)))), rgb)
    assert pictures.shrink(rgb, 100) is rgb
    assert pictures.shrink(rgb, 50).shape == (32, 50, 3)
    assert pictures.shrink(rgb.repeat(20, 0), 50).shape[0] == 100
