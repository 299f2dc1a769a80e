"""`jaxseg heatmaps`, and its page in a browser: what it shows are the network's own numbers."""

import base64
import io
import json
import re
import shutil
import subprocess

import jax
import numpy as np
import pytest
from PIL import Image

from jaxseg.cli import main
from jaxseg.data import images, to_float
from jaxseg.errors import InputError
from jaxseg.heatmaps.page import Heat, Layer, Picture, write_page
from jaxseg.pictures import to_rgb
from jaxseg.receptive_field import fields
from jaxseg.run_folder import load_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LAYERS = ("down1_conv2", "up0_conv1")


@pytest.fixture(scope="module")
def made(trained, discs, tmp_path_factory):
    """Two images of 32 x 25 pixels, and what the command wrote of them."""
    folder = tmp_path_factory.mktemp("heatmaps")
    (folder / "images").mkdir()
    for name in ("disc00", "disc01"):
        Image.open(discs / f"source/images/{name}.png").crop((3, 0, 28, 32)).save(folder / "images" / f"{name}.png")
    assert main(["heatmaps", str(trained), str(folder / "images"), "--layer", *LAYERS, "--out", str(folder / "out")]) == 0
    return folder


def _data(page):
    return json.loads(re.search(r"<script type=application/json id=data>(.*?)</script>", page.read_text(), re.S)[1])


def _pixels(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))


def test_every_picture_is_written(made):
    files = {path.name for path in (made / "out").iterdir()}
    each = [
        f"{image}_{kind}.png"
        for image in ("disc00", "disc01")
        for kind in ("classes", *(f"{n}_{w}" for n in LAYERS for w in ("cam", "channels")))
    ]
    assert files == {*each, *(f"{name}_{what}.png" for name in LAYERS for what in ("patches", "effective_field")), "heatmaps.html"}
    for path in (made / "out").glob("*.png"):
        assert np.asarray(Image.open(path)).std() > 5


def test_the_page_holds_probabilities_and_fields_of_the_run(made, trained):
    run, data = load_run(trained), _data(made / "out/heatmaps.html")
    assert [image["name"] for image in data["images"]] == ["disc00", "disc01"]
    predict = jax.jit(run.predict)
    seen = fields(lambda x: run.predict(run.variables, x), (1, 32, 25, 1))
    for image in data["images"]:
        picture = images.read_image(made / "images" / f"{image['name']}.png")
        np.testing.assert_array_equal(_pixels(image["source"]), to_rgb(picture))
        expected = np.asarray(jax.nn.softmax(predict(run.variables, to_float(picture)[None])[0], -1))
        output = image["layers"][0]
        assert [heat["name"] for heat in output["maps"]] == list(run.info.class_names)
        for k, heat in enumerate(output["maps"]):
            np.testing.assert_allclose(_pixels(heat["source"]) / 255, expected[..., k], atol=0.51 / 255)
        assert [layer["name"] for layer in image["layers"]] == ["output", *LAYERS]
        np.testing.assert_array_equal(output["rows"], seen[0])
        np.testing.assert_array_equal(output["columns"], seen[1])


def test_the_page_asks_nothing_of_the_network(made):
    page = (made / "out/heatmaps.html").read_text()
    assert not re.search(r"(src|href)=[\"']?(?!data:)[a-z/.]|https?://|@import|url\(", page)
    assert "default-src 'none'; img-src data:" in page
    assert all(re.search(rf"<label>[A-Z][a-z]+ <select id={name}>", page) for name in ("image", "layer", "map"))


ACTIONS = """<script>
{  // names of its own
const heat = document.getElementById("heat"), said = [], note = () => said.push(document.getElementById("said").textContent);
function press(row, column) {
  heat.scrollIntoView();
  const box = heat.getBoundingClientRect(), canvas = document.getElementById("canvas");
  const at = {clientX: box.left + (column + .5) / canvas.width * box.width, clientY: box.top + (row + .5) / canvas.height * box.height};
  document.elementFromPoint(at.clientX, at.clientY).dispatchEvent(new MouseEvent("click", {...at, bubbles: true}));
}
const key = (name, shift) => heat.dispatchEvent(new KeyboardEvent("keydown", {key: name, shiftKey: shift, bubbles: true}));
const pick = (name, i) => { const s = document.getElementById(name); s.value = i; s.dispatchEvent(new Event("change")); };
const steps = [() => 0, () => press(20, 11), () => key("ArrowDown"), () => key("ArrowLeft", true), () => key("ArrowLeft", true),
  () => pick("map", 0), () => pick("layer", 1), () => { location.hash = "#image=0&layer=0&map=1&row=99&column=0&other=x"; }];
steps.forEach((step, i) => { setTimeout(step, 400 * i + 200); setTimeout(note, 400 * i + 500); });
setTimeout(() => {
  const pre = document.body.appendChild(document.createElement("pre"));
  pre.id = "log";
  pre.textContent = JSON.stringify([said, location.hash, document.querySelector("#seen .over").getAttribute("height")]);
}, 400 * steps.length + 400);
}
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_clicks_keys_and_addresses_show_what_a_pixel_sees(made, tmp_path):
    page = tmp_path / "page.html"
    page.write_text((made / "out/heatmaps.html").read_text().replace("</body>", ACTIONS + "</body>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--virtual-time-budget=8000"]
    done = subprocess.run(
        [BROWSER, *options, "--dump-dom", f"--user-data-dir={tmp_path}/profile", page.as_uri() + "#image=1&layer=0&map=1&row=3&column=5"],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    said, address, height = json.loads(re.search(r'<pre id="log">(.*?)</pre>', done.stdout, re.S)[1].replace("&amp;", "&"))

    data = _data(made / "out/heatmaps.html")["images"]

    def sentence(image, layer, heat, row, column):
        layer = data[image]["layers"][layer]
        heat = layer["maps"][heat]
        (top, bottom), (left, right) = ((a[0][i], a[1][i]) for a, i in ((layer["rows"], row), (layer["columns"], column)))
        value = heat["low"] + (heat["high"] - heat["low"]) * int(_pixels(heat["source"])[row, column]) / 255
        sees = f"rows {top} to {bottom} and columns {left} to {right} of the image, {bottom - top + 1} x {right - left + 1} pixels."
        return f"{layer['name']}, {heat['name']}: {value:.3f} at row {row}, column {column}; depends on {sees}"

    places = [(1, 0, 1, 3, 5), (1, 0, 1, 20, 11), (1, 0, 1, 21, 11), (1, 0, 1, 21, 3), (1, 0, 1, 21, 0), (1, 0, 0, 21, 0)]
    half = (1, 1, 0, 10, 0)  # of the coarser layer, at the same part of the image
    assert said == [sentence(*place) for place in (*places, half, (0, 0, 1, 31, 0))]
    assert address == "#image=0&layer=0&map=1&row=99&column=0&other=x"
    rows = data[0]["layers"][0]["rows"]
    assert int(height) == rows[1][31] - rows[0][31] + 1


def test_layers_are_listed(trained, capsys):
    assert main(["heatmaps", str(trained), "--layers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("layers of an image of 16 x 16 pixels")
    assert [line.split("  ")[0] for line in lines[1:3]] == ["down0_conv1", "down0_norm1"]
    assert lines[1].endswith("16 x 16 x 4  3 x 3 pixels, stride 1, offset -1")
    assert lines[-1].startswith("output ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{image}", "--layer", "down9", "--out", "{out}"], "got the layer 'down9'; there are down0_conv1 (32 x 32 x 4), "),
        (["{image}"], "--out: got none; required is a folder"),
        (["{image}", "--out", "{image}"], "required is a folder"),
        (["--out", "{out}"], "no input"),
        (["{out}", "--out", "{out}"], "no such file or folder"),
        (["{colours}", "--out", "{out}"], "has 3 channels; the model takes 1"),
        (["{deep}", "--out", "{out}"], "has uint16 pixels; the model was trained on uint8"),
        (["{same}", "--out", "{here}"], "is the folder of disc"),
        (["{image}", "{same}", "--out", "{out}"], "both would write"),
    ],
)
def test_bad_input_is_one_line(trained, discs, tmp_path, capsys, arguments, words):
    paths = {"image": discs / "source/images/disc00.png", "out": tmp_path / "out", "colours": tmp_path / "colours.png"}
    paths |= {"deep": tmp_path / "deep.png", "same": tmp_path / "disc00.png", "here": tmp_path}
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)).save(paths["colours"])
    Image.fromarray(np.full((32, 32), 1000, np.uint16)).save(paths["deep"])
    shutil.copy(paths["image"], paths["same"])
    assert main(["heatmaps", str(trained), *(a.format(**paths) for a in arguments)]) == 2
    error = capsys.readouterr().err.splitlines()
    assert words in error[-1]
    assert not paths["out"].exists()


def test_an_image_that_cannot_be_read_is_named_and_the_others_are_shown(trained, discs, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    (images / "a_broken.png").write_bytes(b"no picture")
    shutil.copy(discs / "source/images/disc00.png", images)
    assert main(["heatmaps", str(trained), str(images), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "1 of 2 images were not read" in error
    assert "a_broken.png" in error
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"disc00_classes.png", "heatmaps.html"}


def test_images_of_one_line_have_all_pictures(trained, tmp_path):
    Image.new("L", (1, 1), 90).save(tmp_path / "one.png")
    Image.new("L", (30, 1), 90).save(tmp_path / "strip.png")
    images = [str(tmp_path / f"{name}.png") for name in ("one", "strip")]
    assert main(["heatmaps", str(trained), *images, "--layer", LAYERS[0], "--out", str(tmp_path / "out")]) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "heatmaps.html" in names
    assert any("effective" in name for name in names)


def test_a_page_of_nothing_or_of_wrong_fields_is_an_error(tmp_path):
    line = np.arange(3), np.arange(3)
    layer = Layer("a", [Heat("b", np.ones((3, 4)), 0.0, 1.0)], (line, line), "")
    for pictures, words in (
        ([], "got no image"),
        ([Picture("c", np.zeros((3, 3, 3), np.uint8), [layer])], "maps of {(3, 4)} and fields of 3 x 3"),
    ):
        with pytest.raises(InputError) as error:
            write_page(tmp_path / "page.html", "title", pictures)
        assert words in str(error.value)


def test_a_name_cannot_end_the_script(tmp_path):
    line, name = (np.arange(3), np.arange(3)), "</script><script>alert(1)</script>"
    layer = Layer(name, [Heat(name, np.ones((3, 3)), 0.0, 1.0)], (line, line), "")
    write_page(tmp_path / "page.html", name, [Picture(name, np.zeros((3, 3, 3), np.uint8), [layer])])
    assert "alert(1)</script>" not in (tmp_path / "page.html").read_text()
    assert _data(tmp_path / "page.html")["images"][0]["layers"][0]["maps"][0]["name"] == name
