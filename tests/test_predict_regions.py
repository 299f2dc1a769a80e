"""`jaxseg predict` by tiles and of files larger than memory: the labels of the whole image; a killed run goes on; the rest is refused."""

import itertools
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from jaxseg.cli import main
from jaxseg.data import to_float
from jaxseg.inference import region_prediction, tiles
from jaxseg.inference.label_files import open_label_file
from jaxseg.inference.region_files import RegionFile
from jaxseg.inference.region_prediction import sampled
from jaxseg.inference.tiles import tiled_regions, weights
from jaxseg.run_folder import load_run


@pytest.fixture(scope="module")
def stack(discs):
    """Three images of 90 x 130 pixels, of discs."""
    pictures = [np.asarray(Image.open(discs / "source" / "images" / f"disc{i:02}.png")) for i in range(12)]
    return np.stack([np.tile(np.concatenate(pictures[4 * k : 4 * k + 4], 1), (3, 2))[:90, :130] for k in range(3)])


@pytest.fixture(scope="module")
def whole(trained, stack):
    """The labels of the three images, each predicted whole."""
    run = load_run(trained)
    predict = jax.jit(run.predict)
    return np.stack([np.asarray(predict(run.variables, to_float(image)[None, ..., None]))[0].argmax(-1) for image in stack])


def _predict(trained, out, *inputs, options=("--tile", "64")):
    return main(["predict", str(trained), *map(str, inputs), "--out", str(out), *options])


def test_files_of_all_kinds_give_the_whole_image_s_labels(trained, stack, whole, tmp_path, capsys):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    tifffile.imwrite(source / "pages.tif", stack, tile=(32, 48), compression="zlib", photometric="minisblack")
    np.save(source / "one.npy", stack[1])
    array = zarr.create_array(str(source / "z.ome.zarr"), shape=stack.shape, dtype=stack.dtype, chunks=(1, 40, 40))
    array[...] = stack
    assert _predict(trained, out, source) == 0
    assert "3 images" in capsys.readouterr().out
    np.testing.assert_array_equal(tifffile.imread(out / "pages.tif"), whole)
    np.testing.assert_array_equal(tifffile.imread(out / "one.tif"), whole[1])
    np.testing.assert_array_equal(zarr.open_array(str(out / "z.zarr"), mode="r")[...], whole)
    with tifffile.TiffFile(out / "pages.tif") as file:
        assert (file.is_bigtiff, file.pages.first.is_tiled, len(file.pages)) == (True, True, 3)
        assert (file.pages.first.colormap[:, 1] // 257).tolist() == list(load_run(trained).info.colours[1])
    with Image.open(out / "pages_overview.png") as overview:
        assert overview.size == (130, 90)
    assert len(list(out.iterdir())) == 6
    assert len(set(whole.ravel())) == 2  # the equalities above could fail

    finished = {path: path.stat().st_mtime_ns for path in out.glob("*.tif")}
    assert _predict(trained, out, source) == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.tif")} == finished  # nothing is computed again
    assert _predict(trained, out, source / "one.npy", options=("--blend", "linear", "--tile", "64")) == 0
    assert (out / "one.tif").stat().st_mtime_ns > finished[out / "one.tif"]  # but with other options


def test_tiles_of_a_picture_give_the_same_files(trained, stack, tmp_path):
    Image.fromarray(stack[0]).save(tmp_path / "a.png")
    for out, options in (("whole", ()), ("tiles", ("--tile", "64"))):
        assert _predict(trained, tmp_path / out, tmp_path / "a.png", options=options) == 0
    for name in ("a.png", "a_overlay.png"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "tiles" / name).read_bytes()


def test_the_average_over_symmetries_is_symmetric(trained, stack, tmp_path):
    for name, image in (("a", stack[0]), ("b", np.rot90(stack[0]))):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    inputs = (tmp_path / "a.png", tmp_path / "b.png")
    assert _predict(trained, tmp_path / "out", *inputs, options=("--tta", "--probabilities")) == 0
    a, b = (np.load(tmp_path / "out" / f"{name}_probabilities.npy") for name in "ab")
    np.testing.assert_allclose(np.rot90(a), b, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--tta", "--tile", "64"), "not with --tta or --dense, which turn or shift each tile. Add --blend"),
        (("--tile", "16"), "exact tiles: .*--blend gaussian"),
        (("--tile", "0"), "got tile=0"),
        (("--dense", "a_trous"), "UNet has no coarse map"),
        (("--probabilities",), "--probabilities is not for files that are read by regions"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, tuple) else "",
)
def test_what_cannot_be_is_said(options, said, trained, stack, tmp_path, capsys):
    np.save(tmp_path / "a.npy", stack[0])
    assert _predict(trained, tmp_path / "out", tmp_path / "a.npy", options=options) == 2
    assert re.search(said, capsys.readouterr().err)


@pytest.mark.parametrize("place", ["a_overview.png", "a.tif.logits", "a.tif.journal", "a.tif.part", "a.tif"])
def test_a_folder_where_a_file_would_go_is_named(place, trained, stack, tmp_path, capsys):
    np.save(tmp_path / "a.npy", stack[0])
    (tmp_path / "out" / place).mkdir(parents=True)
    assert _predict(trained, tmp_path / "out", tmp_path / "a.npy", options=("--tile", "64")) == 2
    error = capsys.readouterr().err
    assert f"{place}: is a folder" in error
    assert "Move it away, or choose another --out" in error


def test_what_is_taken_is_said_of_an_empty_folder(trained, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert _predict(trained, tmp_path / "out", tmp_path / "empty") == 2
    assert "PNG, JPEG, TIFF or .npy files or Zarr folders" in capsys.readouterr().err


def test_other_types_and_channels_are_refused(trained, stack, tmp_path, capsys):
    np.save(tmp_path / "deep.npy", stack[0].astype(np.uint16))
    np.save(tmp_path / "five.npy", np.zeros((2, 20, 20, 5), np.uint8))
    assert _predict(trained, tmp_path / "out", tmp_path / "deep.npy", tmp_path / "five.npy") == 2
    error = capsys.readouterr().err
    assert "has uint16 pixels; the model was trained on uint8" in error
    assert "has the shape (2, 20, 20, 5)" in error


@pytest.mark.parametrize("suffix", [".npy", pytest.param(".zarr", marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_and_gives_what_an_uninterrupted_one_gives(suffix, trained, stack, tmp_path, capsys):
    image = np.tile(stack[0], (6, 4))
    file, out = tmp_path / f"a{suffix}", tmp_path / "out"
    if suffix == ".npy":
        np.save(file, image)
    else:
        zarr.create_array(str(file), shape=image.shape, dtype=image.dtype, chunks=(100, 100))[...] = image
    assert _predict(trained, tmp_path / "uninterrupted", file) == 0
    labels = ".zarr" if suffix == ".zarr" else ".tif"
    journal, part = out / f"a{labels}.journal", out / f"a{labels}.part"

    argv = [sys.executable, "-m", "jaxseg.cli", "predict", str(trained), str(file), "--out", str(out), "--tile", "64"]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as process:
        while not journal.exists() or int(journal.read_text().split()[0]) < 32:
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    done = int(journal.read_text().split()[0])
    assert done >= 32
    assert not (out / f"a{labels}").exists()

    assert _predict(trained, out, file, options=("--tile", "60")) == 2
    assert "was begun with another image, model or options" in capsys.readouterr().err
    open_label_file(part, (1, *image.shape)).write(0, slice(0, 1), slice(0, 1), np.array([[77]]))
    assert _predict(trained, out, file) == 0
    read = (lambda path: zarr.open_array(str(path), mode="r")[...]) if labels == ".zarr" else tifffile.imread
    resumed, expected = (read(folder / f"a{labels}") for folder in (out, tmp_path / "uninterrupted"))
    assert resumed[0, 0] == 77  # what the first one had finished was not computed again
    resumed[0, 0] = expected[0, 0]
    np.testing.assert_array_equal(resumed, expected)
    assert sorted(path.name for path in out.iterdir()) == sorted([f"a{labels}", "a_overview.png"])


@pytest.mark.parametrize("shown", [1000, 50, 7])
def test_an_overview_is_the_same_whatever_was_read_before(shown, monkeypatch):
    monkeypatch.setattr(region_prediction, "SHOWN", shown)
    pixels = np.random.default_rng(0).integers(0, 255, (3, 90, 130, 2), np.uint8)
    reads = []

    def read(n, rows, columns):
        reads.append(n)
        return pixels[n, rows, columns]

    file = RegionFile("a", pixels.shape, pixels.dtype, (3,), read)
    step = -(-130 // shown)
    for parts in ([], [(40, 90, 0, 130)], [(0, 31, 0, 130), (31, 90, 0, 77), (29, 90, 70, 130)]):
        image, sample = sampled(file)
        for top, bottom, left, right in parts:
            for n in range(3):
                part = image.read(n, slice(top, bottom), slice(left, right))
                np.testing.assert_array_equal(part, pixels[n, top:bottom, left:right])
        reads.clear()
        np.testing.assert_array_equal(sample(), pixels[1, ::step, ::step])
        assert set(reads) <= {1}
    assert not reads  # all of it had been seen


@pytest.mark.parametrize(("every", "pixels", "noted"), [(16, 200, 4), (3, 10**9, 3), (16, 10**9, 0)])
def test_what_is_done_again_is_bounded_in_regions_and_pixels(every, pixels, noted, tmp_path, monkeypatch):
    """Of a run that ends in its sixth region of 100 pixels."""
    monkeypatch.setattr(region_prediction, "EVERY", every)
    monkeypatch.setattr(region_prediction, "PIXELS", pixels)
    image = RegionFile("a", (1, 50, 20, 1), np.dtype(np.uint8), (), lambda n, rows, columns: np.zeros((50, 20, 1), np.uint8)[rows, columns])

    def regions(variables, image, skip=0):
        for k in range(skip, 5):
            yield (0, slice(5 * k, 5 * k + 5), slice(0, 20)), np.ones((5, 20), np.uint16)
        raise RuntimeError("power failure")

    given = {"colours": [(0, 0, 0), (255, 0, 0)], "identity": "it"}
    with pytest.raises(RuntimeError, match="power"):
        region_prediction.predict_regions(regions, {}, image, tmp_path / "a.tif", tmp_path / "a.png", **given)
    assert int((tmp_path / "a.tif.journal").read_text().split()[0]) == noted


@pytest.mark.parametrize("blend", [None, "gaussian"])
def test_regions_left_out_are_the_first_ones(blend, monkeypatch):
    """Also where the wide image is blended in several panels."""
    monkeypatch.setattr(tiles, "PANEL", 3)
    image = np.random.default_rng(0).normal(size=(2, 50, 170, 1)).astype(np.float32)
    regions = tiled_regions(lambda _, x: 2 * x, tile=16, blend=blend, overlap=0.5)
    everything = list(regions((), image))
    assert len({str(where) for where, _ in everything}) == len(everything) > 12
    for skip in (0, 1, 5, 8, len(everything) - 1, len(everything)):
        left = list(regions((), image, skip))
        assert len(left) == len(everything) - skip
        for (where, values), (other, expected) in zip(left, everything[skip:], strict=True):
            assert where == other
            np.testing.assert_array_equal(values, expected)


def test_panels_blend_as_all_tiles_at_once(monkeypatch):
    """A reference that holds the whole: the weighted mean of all tiles, of a function that depends on where a pixel lies in its tile."""
    image = np.random.default_rng(0).normal(size=(40, 170, 1)).astype(np.float32)

    def apply(_, x):
        return x * np.linspace(1, 2, x.shape[2], dtype=np.float32)[:, None] + np.linspace(0, 1, x.shape[1], dtype=np.float32)[:, None, None]

    monkeypatch.setattr(tiles, "PANEL", 3)
    blended = tiles.tiled(apply, tile=16, blend="linear", overlap=0.5)((), image)
    rows, columns = (tiles.blended_tiling(n, 16, 0.5) for n in image.shape[:2])
    total, norm = np.zeros_like(image), np.zeros_like(image)
    weight = np.outer(weights(rows.side, "linear"), weights(columns.side, "linear"))[..., None]
    for y, x in itertools.product(rows.offsets, columns.offsets):
        part = np.s_[y : y + rows.side, x : x + columns.side]
        total[part] += weight * apply((), image[part][None])[0]
        norm[part] += weight
    np.testing.assert_allclose(blended, total / norm, rtol=1e-5, atol=1e-6)
