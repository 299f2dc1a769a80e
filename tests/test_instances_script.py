"""train, evaluate and predict of objects from end to end, on a few drawn nuclei; run.json of such a run."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tifffile
from PIL import Image

from jaxseg.cli import main
from jaxseg.data import cells, make_listing, open_dataset, prepare
from jaxseg.embed import load
from jaxseg.errors import InputError
from jaxseg.evaluate import true_objects
from jaxseg.export import from_safetensors
from jaxseg.inference import region_prediction
from jaxseg.instances import routes
from jaxseg.pictures import outline
from jaxseg.run_folder import load_run, read_metrics

CONFIG = '''"""A tiny U-Net that separates nuclei."""

import functools

import optax

from jaxseg.config import Config
from jaxseg.data import augment
from jaxseg.models import UNet


def get_config(route: str | None = "border", data: str = "dsb2018", learning_rate: float = 2e-2) -> Config:
    return Config(
        data=data,
        model=functools.partial(UNet, features=(8, 16), padding="same", norm="batch", dropout=0.0),
        optimizer=optax.adam(learning_rate),
        instances=route,
        steps=60,
        batch_size=4,
        size=(48, 48),
        augment=(augment.flip, augment.rot90),
        test_split="val",
        eval_every=60,
        save_every=60,
    )
'''


@pytest.fixture(scope="module")
def nuclei(tmp_path_factory):
    """source/ and data/ of 9 small pictures of generated cells in the form of dsb2018, config.py, and run/, trained."""
    root = tmp_path_factory.mktemp("nuclei")
    names = {"train": list("abcdef"), "val": list("ghi")}
    for kind in ("images", "labels"):
        (root / "source" / kind).mkdir(parents=True)
    for seed, name in enumerate([*names["train"], *names["val"]]):
        image, instances = cells.generate(np.random.default_rng(seed), 64)
        if name == "h":
            instances[:] = 0  # an image without an object
        Image.fromarray(image).save(root / "source" / "images" / f"{name}.png")
        Image.fromarray(np.where(instances > 0, 3 * instances + 250, 0).astype(np.uint16)).save(root / "source" / "labels" / f"{name}.png")
    for split, listed in names.items():
        (root / "source" / f"fluo_{split}.txt").write_text("\n".join(listed))
    (root / "config.py").write_text(CONFIG)
    prepare(make_listing("dsb2018", root / "source"), root / "data", progress=False)
    assert main(train(root, root / "run")) == 0
    return root


def train(nuclei, run, *options):
    return ["train", str(nuclei / "config.py"), *options, "--data-dir", str(nuclei / "data"), "--workdir", str(run)]


def test_training_learns_objects_and_reports_them(nuclei):
    lines = read_metrics(nuclei / "run")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    (evaluated,) = [line for line in lines if "val_ap50" in line]
    assert 0.1 < evaluated["val_ap50"] <= 1
    page = (nuclei / "run" / "report.html").read_text()
    for said in ("border", "panoptic quality", "validation AP above IoU 0.5", "predicted objects of g", "IoU above", "found"):
        assert said in page
    assert page.count("<figure>") == 3 * 4  # h too: what is predicted in it is extra
    run = load_run(nuclei / "run")
    assert run.route is routes.ROUTES["border"]
    assert run.step == 60


def test_evaluate_prints_the_scores(nuclei, capsys):
    assert main(["evaluate", str(nuclei / "run")]) == 0
    said = capsys.readouterr().out
    line = json.loads(said.splitlines()[-1])
    (evaluated,) = [line for line in read_metrics(nuclei / "run") if "val_ap50" in line]
    assert line["ap50"] == pytest.approx(evaluated["val_ap50"])
    assert (line["split"], line["images"], line["thresholds"]) == ("val", 3, [0.5, 0.6, 0.7, 0.8, 0.9])
    truth = [record["instances"] for record in open_dataset("dsb2018", nuclei / "data").split("val")]
    assert line["objects"] == sum(len(np.unique(t)) - 1 for t in truth)
    assert f"{line['pq']:.4f}" in said


def test_run_json_is_checked(nuclei, tmp_path):
    description = json.loads((nuclei / "run" / "run.json").read_text())
    assert description["instances"] == "border"
    for wrong in ("nothing", 3, ["border"], None):
        changed = description | {"instances": wrong}
        if wrong is None:
            changed["data"] = changed["data"] | {"class_names": ["a", "b"], "colours": [[0, 0, 0], [1, 1, 1]]}
        (tmp_path / "run.json").write_text(json.dumps(changed))
        with pytest.raises(InputError, match=r"run.json: does not describe a model" if wrong is None else r"instances"):
            load_run(tmp_path)


def test_going_on_without_the_route_is_refused(nuclei, capsys):
    assert main(train(nuclei, nuclei / "run", "--route", "None")) == 2
    assert "route" in capsys.readouterr().err


def test_what_cannot_be_trained_is_said(nuclei, discs, capsys, tmp_path):
    assert main(train(nuclei, tmp_path / "a", "--route", "bordre")) == 2
    assert "there are border" in capsys.readouterr().err
    assert main([*train(nuclei, tmp_path / "b", "--data", "folder")[:-3], str(discs / "data"), "--workdir", str(tmp_path / "b")]) == 2
    assert "folder has no images in a split" in (said := capsys.readouterr().err) or "no instance maps" in said


def test_another_data_set_needs_instances(nuclei, discs, capsys):
    assert main(["evaluate", str(nuclei / "run"), "--data", "folder", "--data-dir", str(discs / "data"), "--split", "test"]) == 2
    assert "no instance maps" in capsys.readouterr().err


def test_ignored_labels_are_ignored_objects():
    record = {"name": "a", "label": np.array([[0, 1, 255]], np.int32), "instances": np.array([[0, 255, 9]], np.int32)}
    assert true_objects(record).tolist() == [[0, 255, -1]]


def test_predict_writes_label_maps_and_outlines(nuclei, tmp_path):
    source = nuclei / "source" / "images"
    assert main(["predict", str(nuclei / "run"), str(source / "g.png"), "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["g.png", "g_overlay.png"]
    label = Image.open(tmp_path / "out" / "g.png")
    assert label.mode == "I;16"
    label = np.asarray(label)
    assert label.shape == (64, 64)
    assert sorted(np.unique(label)) == list(range(label.max() + 1))
    assert label.max() > 1
    image = np.asarray(Image.open(source / "g.png"))
    drawn = np.asarray(Image.open(tmp_path / "out" / "g_overlay.png"))
    coloured = drawn.max(-1) != drawn.min(-1)
    assert coloured[label == 0].sum() == 0
    assert coloured.sum() > 20
    assert image.shape == drawn.shape[:2]
    apply, variables, meta = load(nuclei / "run")
    logits = jax.jit(apply)(variables, np.float32(image[None, ..., None]) / 255)
    np.testing.assert_array_equal(routes.find_route(meta.instances).decode(np.asarray(logits[0])), label)


@pytest.fixture
def stack(nuclei):
    """Three images of 150 x 192 pixels."""
    g, h, i = (np.asarray(Image.open(nuclei / "source" / "images" / f"{name}.png")) for name in "ghi")
    return np.stack([np.tile(np.concatenate(row, 1), (3, 1))[:150] for row in ((g, h, i), (i, g, g), (h, g, i))])


def whole_objects(nuclei, stack):
    run = load_run(nuclei / "run")
    logits = jax.jit(run.predict)(run.variables, np.float32(stack[..., None]) / 255)
    return np.stack([run.route.decode(image) for image in np.asarray(logits)])


def predict_stack(nuclei, folder, stack, ends=0):
    if not (folder / "a.npy").exists():
        np.save(folder / "a.npy", stack)
    assert main(["predict", str(nuclei / "run"), str(folder / "a.npy"), "--out", str(folder / "out"), "--tile", "64"]) == ends
    if ends:
        return None
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["a.tif", "a_overview.png"]
    return tifffile.imread(folder / "out" / "a.tif")


def test_objects_of_files_read_by_regions_are_the_whole_images_objects(nuclei, stack, tmp_path):
    label = predict_stack(nuclei, tmp_path, stack)
    assert label.dtype == np.uint32
    assert label[0].max() > 20
    np.testing.assert_array_equal(label, whole_objects(nuclei, stack))
    drawn = np.asarray(Image.open(tmp_path / "out" / "a_overview.png"))
    assert ((drawn.max(-1) != drawn.min(-1)) == outline(label[1])).all()  # the middle image


def test_objects_across_windows_come_out_once_and_whole(nuclei, stack, tmp_path, monkeypatch):
    monkeypatch.setattr(region_prediction, "WINDOW", 110)
    monkeypatch.setattr(region_prediction, "OVERLAP", 64)
    label = predict_stack(nuclei, tmp_path, stack)
    for mine, whole in zip(label, whole_objects(nuclei, stack), strict=True):
        pairs = {(a, b) for a, b in zip(mine.ravel().tolist(), whole.ravel().tolist(), strict=True)}
        assert len(pairs) == whole.max() + 1 == mine.max() + 1  # the same objects, otherwise numbered
    for border in (78, 32):  # where the windows' inner parts meet, objects cross
        assert ((label[:, border] > 0) & (label[:, border] == label[:, border - 1])).any()


@pytest.mark.parametrize("lost", [False, True], ids=["", "logits lost"])
@pytest.mark.parametrize("killed", [0, 2])
def test_objects_of_finished_images_are_not_decoded_again(killed, lost, nuclei, stack, tmp_path, monkeypatch):
    stitch, calls = region_prediction.stitch_into, []

    def broken(*arguments, **options):
        if len(calls) == killed:
            raise KeyboardInterrupt
        calls.append(stitch(*arguments, **options))

    monkeypatch.setattr(region_prediction, "stitch_into", broken)
    monkeypatch.setattr(region_prediction, "EVERY", 5)  # of 9 regions an image
    predict_stack(nuclei, tmp_path, stack, ends=130)
    if lost:
        (tmp_path / "out" / "a.tif.logits").write_bytes(b"cut short")
    monkeypatch.setattr(region_prediction, "stitch_into", lambda *a, **k: calls.append(stitch(*a, **k)))
    np.testing.assert_array_equal(predict_stack(nuclei, tmp_path, stack), whole_objects(nuclei, stack))
    assert len(calls) == 3


def test_what_another_run_has_begun_stays(nuclei, stack, tmp_path, monkeypatch, capsys):
    predict_stack(nuclei, tmp_path, stack)
    command = ["predict", str(nuclei / "run"), str(tmp_path / "a.npy"), "--out", str(tmp_path / "out"), "--tile"]
    with monkeypatch.context() as patch:
        patch.setattr(region_prediction, "stitch_into", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main([*command, "80"])
    begun = {path.name for path in (tmp_path / "out").iterdir()}
    assert begun >= {"a.tif.part", "a.tif.journal", "a.tif.logits"}
    (tmp_path / "out" / "a_overview.png").unlink()
    assert main([*command, "64"]) == 0  # is there, but for its picture
    assert {path.name for path in (tmp_path / "out").iterdir()} == begun
    (tmp_path / "out" / "a.tif.journal").write_text("")
    assert main([*command, "80"]) == 2
    assert "a.tif.journal: is damaged" in capsys.readouterr().err
    (tmp_path / "out" / "a.tif.part").unlink()
    assert main([*command, "80"]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.tif", "a_overview.png"}


def test_predict_says_what_does_not_go_with_objects(nuclei, tmp_path, capsys):
    image = str(Path(nuclei) / "source" / "images" / "g.png")
    for option in ("--probabilities", "--tta"):
        assert main(["predict", str(nuclei / "run"), image, "--out", str(tmp_path / "out"), option]) == 2
        assert option in capsys.readouterr().err


def test_an_export_of_objects_loads_and_has_no_labels(nuclei, tmp_path, capsys):
    shutil.copytree(nuclei / "run", run := tmp_path / "run")
    description = json.loads((run / "run.json").read_text())  # of two classes, and the route's three outputs
    description["data"] |= {"class_names": ["background", "nucleus"], "colours": [[0, 0, 0], [1, 1, 1]]}
    (run / "run.json").write_text(json.dumps(description))
    file = tmp_path / "net.safetensors"
    assert main(["export", str(run), "--format", "safetensors", "--out", str(file)]) == 0
    image = np.random.default_rng(0).random((1, 16, 24, 1), np.float32)
    (want, variables, meta), again = load(run), from_safetensors(file)
    assert again.meta == meta
    np.testing.assert_array_equal(jax.jit(again.apply)(again.variables, image), jax.jit(want)(variables, image))
    assert main(["export", str(run), "--format", "stablehlo", "--labels", "--out", str(tmp_path / "net")]) == 2
    assert "--labels" in capsys.readouterr().err


def test_going_on_with_other_percentiles_is_refused(nuclei, tmp_path, capsys):
    """They stand in the config file, and are no option: the file was edited."""
    shutil.copytree(nuclei / "run", tmp_path / "run")
    (tmp_path / "config.py").write_text(CONFIG.replace("steps=60,", "steps=61,\n        percentiles=(1, 99),"))
    data = ["--data-dir", str(nuclei / "data"), "--workdir", str(tmp_path / "run")]
    assert main(["train", str(tmp_path / "config.py"), *data]) == 2
    assert "percentiles" in capsys.readouterr().err
