"""`jaxseg segment`: what it writes, its words, and what becomes of inputs that are bad or odd."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from jaxseg.cli import main
from jaxseg.segment import BOUNDARY_COLOUR, mean_colours, outline
from jaxseg.unsupervised import METHODS, SCALES

SIDE = 12


def halves(dtype=np.uint8, channels=3):
    """Dark left, bright right, under a little noise: one size for all, so that each method compiles once."""
    image = np.random.default_rng(0).uniform(0.1, 0.2, (SIDE, SIDE, channels))
    image[:, SIDE // 2 :] += 0.7
    return image.astype(np.float32) if dtype == np.float32 else (image * np.iinfo(dtype).max).astype(dtype)


def run(image, folder, *options, method="kmeans"):
    """The exit code, and the label map where one was written."""
    file = folder / "picture.tif"
    planes = "contig" if image.shape[-1] > 1 else None
    tifffile.imwrite(file, image, photometric="rgb" if image.shape[-1] == 3 else "minisblack", planarconfig=planes)
    code = main(["segment", method, str(file), "--out", str(folder / "out"), *options])
    written = folder / "out/picture.png"
    return code, np.asarray(Image.open(written)) if written.exists() else None


CLUSTERS = ("--clusters", "2", "--position", "0", "--texture", "0")


def test_writes_numbers_mean_colours_and_boundaries(tmp_path, capsys):
    image = halves()
    code, label = run(image, tmp_path, *CLUSTERS)
    assert code == 0
    assert "1 images" in capsys.readouterr().out
    assert (label == label[:1]).all()
    assert [len(np.unique(label[:, half])) for half in (slice(0, 6), slice(6, 12), slice(None))] == [1, 1, 2]
    mean = np.asarray(Image.open(tmp_path / "out/picture_mean.png"))
    np.testing.assert_array_equal(mean[0, 0], np.round(image[:, :6].mean((0, 1))))
    np.testing.assert_array_equal(mean[0, -1], np.round(image[:, 6:].mean((0, 1))))
    outlined = np.asarray(Image.open(tmp_path / "out/picture_boundaries.png"))
    np.testing.assert_array_equal(outlined[:, 5], [BOUNDARY_COLOUR] * SIDE)
    np.testing.assert_array_equal(np.delete(outlined, 5, 1), np.delete(image, 5, 1))


@pytest.mark.parametrize("image", [halves(np.uint16), halves(np.float32), halves(channels=1)], ids=["16 bits", "float", "grey"])
def test_depth_and_grey_change_nothing(image, tmp_path):
    code, label = run(image, tmp_path, *CLUSTERS)
    assert code == 0
    assert len(np.unique(label)) == 2
    assert len(np.unique(label[:, :6])) == len(np.unique(label[:, 6:])) == 1


@pytest.mark.parametrize("alpha", [255, 128])
def test_alpha_is_dropped_where_it_hides_nothing(alpha, tmp_path, capsys):
    file = tmp_path / "picture.png"
    Image.fromarray(np.concatenate([halves(), np.full((SIDE, SIDE, 1), alpha, np.uint8)], -1)).save(file)
    code = main(["segment", "kmeans", str(file), "--out", str(tmp_path / "out"), *CLUSTERS])
    assert code == (0 if alpha == 255 else 2)
    assert ("not opaque everywhere" in capsys.readouterr().err) == (alpha != 255)


def spoilt(value):
    image = halves(np.float32)
    image[3, 4, 1] = value
    return image


REFUSED = {
    "nan": (spoilt(np.nan), "nan or infinite"),
    "infinite": (spoilt(np.inf), "nan or infinite"),
    "above 1": (spoilt(255.0), "0..1"),
    "below 0": (spoilt(-0.1), "0..1"),
    "two channels": (halves(channels=2), "[H, W, 3] RGB"),
    "five channels": (halves(channels=5), "[H, W, 3] RGB"),
    "64 bits": (halves(np.float32).astype(np.float64), "float64"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_segmented_is_refused_naming_the_file(name, tmp_path, capsys):
    image, message = REFUSED[name]
    code, label = run(image, tmp_path)
    error = capsys.readouterr().err
    assert (code, label) == (2, None)
    assert message in error
    assert "picture.tif" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("method", ["felzenszwalb", *(pytest.param(m, marks=pytest.mark.slow) for m in METHODS if m != "felzenszwalb")])
def test_one_pixel_is_one_segment(method, tmp_path):
    """With the options' defaults: more clusters than pixels."""
    code, label = run(halves()[:1, :1], tmp_path, method=method)
    assert (code, label.tolist()) == (0, [[0]])


@pytest.mark.parametrize("method", ["slic", "felzenszwalb"])
def test_a_constant_image_is_segmented(method, tmp_path):
    code, label = run(np.full((SIDE, SIDE, 3), 77, np.uint8), tmp_path, method=method)
    assert code == 0
    assert np.unique(label).tolist() == list(range(label.max() + 1))
    assert (np.asarray(Image.open(tmp_path / "out/picture_mean.png")) == 77).all()


def test_more_clusters_than_pixels(tmp_path):
    code, label = run(halves(), tmp_path, "--clusters", str(2 * SIDE**2))
    assert code == 0
    assert label.max() < SIDE**2
    assert np.unique(label).tolist() == list(range(label.max() + 1))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["k-means", "x.png", "--out", "o"], "no such method: 'k-means'"),
        (["kmeans", "--out", "o"], "no input"),
        (["kmeans", "missing.png", "--out", "o"], "no such file"),
        (["kmeans", "a.png", "--out", "a.png"], "is a file"),
        (["kmeans", "a.png", "--out", "."], "is the folder of a.png"),
        (["kmeans", "a.png", "b/a.tif", "--out", "o"], "both would write"),
        (["kmeans", "a.png", "--out", "o", "--clusters", "0"], "clusters 0"),
        (["kmeans", "broken.png", "--out", "o"], "damaged"),
    ],
)
def test_words_that_cannot_be_meant(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b").mkdir()
    Image.fromarray(halves()).save("a.png")
    tifffile.imwrite("b/a.tif", halves())
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    assert main(["segment", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o/a.png").exists()


def test_goes_on_after_an_image_that_cannot_be_read(tmp_path, capsys):
    Image.fromarray(halves()).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    assert main(["segment", "kmeans", str(tmp_path), "--out", str(tmp_path / "out"), *CLUSTERS]) == 2
    assert "1 of 2 images were not segmented" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good.png", "good_boundaries.png", "good_mean.png"]


def test_help_names_every_method_and_its_scale(capsys):
    assert main(["segment", "--help"]) == 0
    text = capsys.readouterr().out
    for name in METHODS:
        assert f"\n  {name} " in text
        assert f"[--{SCALES[name][0].replace('_', '-')}]" in text


@pytest.mark.parametrize("method", METHODS)
def test_help_of_a_method_explains_its_options(method, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["segment", method, "--help"])
    text = capsys.readouterr().out
    assert f"--{SCALES[method][0].replace('_', '-')} " in text
    assert "scale parameter" in text
    assert "NAME_mean.png" in text


def test_many_segments_have_their_means_and_boundaries():
    rng = np.random.default_rng(0)
    rgb, label = rng.integers(0, 256, (9, 11, 3), np.uint8), rng.integers(0, 400, (9, 11), np.int32)
    mean = mean_colours(rgb, label)
    for number in np.unique(label):
        np.testing.assert_array_equal(
            mean[label == number], np.round(rgb[label == number].mean(0))[None].repeat((label == number).sum(), 0)
        )
    np.testing.assert_array_equal(outline(rgb, np.zeros_like(label)), rgb)
