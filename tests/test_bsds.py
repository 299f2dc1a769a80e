"""benchmarks/bsds.py: chooses on val, scores test, and goes on where it was interrupted."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from skimage.segmentation import felzenszwalb

from jaxseg.data.images import read_image
from jaxseg.errors import InputError
from jaxseg.region_metrics import region_scores

spec = importlib.util.spec_from_file_location("bsds", Path(__file__).parents[1] / "benchmarks/bsds.py")
assert spec is not None
assert spec.loader is not None
bsds = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bsds)
NAME = "skimage Felzenszwalb"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Two pictures a split of a bright square, and what two people say of each."""
    folder, rng = tmp_path_factory.mktemp("bsds"), np.random.default_rng(0)
    for split in ("val", "test"):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "groundTruth" / split).mkdir(parents=True)
        for number in range(2):
            truth = np.ones((30, 40), np.uint16)
            truth[5:20, 8 : 20 + 10 * number] = 2
            pixels = 60 + 100 * (truth == 2)[..., None] + rng.normal(0, 8, (30, 40, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / split / f"{number}.jpg", quality=95)
            people = np.empty((1, 2), object)
            people[0] = [{"Segmentation": truth}, {"Segmentation": np.where(truth == 2, 2, 1 + 2 * (np.arange(40) > 30)).astype(np.uint16)}]
            savemat(folder / "groundTruth" / split / f"{number}.mat", {"groundTruth": people})
    return folder


def run(source, out, count=2):
    bsds.main(source, out, methods=(NAME,), val_images=count, test_images=count)


def test_scores_are_those_of_the_chosen_variant(source, tmp_path, capsys):
    run(source, tmp_path)
    table = capsys.readouterr().out
    chosen = bsds.best_on_val(tmp_path, NAME)
    variants = [bsds.summarise(bsds.kept_scores(bsds.store(tmp_path, NAME, "val", v))).covering.ods for v in bsds.VARIANTS[NAME]]
    assert chosen.options == bsds.VARIANTS[NAME][int(np.argmax(variants))]
    assert f"| {NAME} |" in table
    assert table.count("2, 2 |") == 1
    assert [row["image"] for row in bsds.rows(bsds.store(tmp_path, NAME, "test", chosen.options))] == ["0", "1"]
    image = read_image(source / "images/test/1.jpg").astype(np.float32) / 255
    label = felzenszwalb(image, scale=chosen.values[2], **chosen.options)
    kept = bsds.kept_scores(bsds.store(tmp_path, NAME, "test", chosen.options), {"1"})[0][2]
    direct = region_scores(label, bsds.people(source, "test", "1"))
    assert kept.covering == pytest.approx(direct.covering, abs=1e-6)
    assert kept[2:] == pytest.approx(direct[2:])


def test_goes_on_where_it_was_interrupted(source, tmp_path):
    """Also after a line that was cut short."""
    run(source, tmp_path, 1)
    before = {file.name: file.read_text() for file in tmp_path.iterdir()}
    cut = tmp_path / next(iter(before))
    cut.write_text(before[cut.name] + before[cut.name][:50])
    run(source, tmp_path)
    for name, text in before.items():
        lines = (tmp_path / name).read_text()
        assert lines.startswith(text)
        assert {row["image"] for row in bsds.rows(tmp_path / name)} == {"0", "1"}


def test_results_of_other_values_are_not_mixed(source, tmp_path):
    run(source, tmp_path, 1)
    file = next(tmp_path.iterdir())
    file.write_text(json.dumps(json.loads(file.read_text()) | {"values": [1, 2]}) + "\n")
    with pytest.raises(InputError, match="other values of scale"):
        run(source, tmp_path)


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(InputError, match="asked for 2 images of val, has 0"):
        run(tmp_path, tmp_path / "out")
