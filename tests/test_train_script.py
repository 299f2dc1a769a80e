"""`jaxseg train`, `evaluate` and `predict` from end to end, and what a run survives."""

import functools
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from jaxseg import run_folder
from jaxseg.cli import main
from jaxseg.train_state import init_state


def command(discs, workdir, *options: str) -> list[str]:
    return ["train", str(discs / "tiny.py"), "--data-dir", str(discs / "data"), "--workdir", str(workdir), *options]


def start(argv: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "jaxseg.cli", *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def final_state(discs, workdir, **options):
    """(step, state) of the newest checkpoint, checked against its digest."""
    spec = importlib.util.spec_from_file_location("tiny", discs / "tiny.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(**options)
    model = config.model(num_classes=2)
    like = jax.eval_shape(functools.partial(init_state, model, config.optimizer, (4, 16, 16, 1), ema=True))
    stored = run_folder.checkpoints(workdir, read_only=True)
    step = stored.steps()[-1]
    state = stored.restore(step, like)
    stored.close()
    return step, state


def assert_bitwise(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def steps_logged(workdir) -> list[int]:
    return [line["step"] for line in run_folder.read_metrics(workdir) if "loss" in line]


def wait_for_steps(process, workdir, number: int) -> None:
    end = time.monotonic() + 300
    while len(steps_logged(workdir)) < number:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


# ---- From data to predictions -------------------------------------------------------------------------------------------


def test_a_run_folder_holds_the_whole_run(trained, discs):
    assert {"run.json", "metrics.jsonl", "report.html", "checkpoints"} <= {path.name for path in trained.iterdir()}
    description = json.loads((trained / "run.json").read_text())
    assert description["options"]["config"] == "tiny.py"
    assert description["options"]["steps"] == 8
    assert description["model"]["fields"]["upsample"]["name"] == "transposed"
    assert description["data"]["class_names"] == ["class 0", "class 1"]
    assert "--workdir" in description["command"]
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 9))
    assert [line["step"] for line in lines if "val_miou" in line] == [4, 8]
    assert all(np.isfinite([line["loss"], line["grad_norm"]]).all() for line in lines if "loss" in line)
    assert "<svg" in (trained / "report.html").read_text() or "<img" in (trained / "report.html").read_text()
    step, state = final_state(discs, trained)
    assert (step, int(state.step)) == (8, 8)


def test_evaluate_ends_with_one_json_object(trained, capsys):
    assert main(["evaluate", str(trained), "--split", "val"]) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"miou", "iou", "mean_dice", "dice", "pixel_accuracy", "class_accuracy", "class_names", "step", "split", "images"} <= set(scores)
    assert (scores["split"], scores["images"], len(scores["iou"])) == ("val", 2, 2)
    assert scores["miou"] == pytest.approx(np.mean(scores["iou"]))
    logged = {line["step"]: line["val_miou"] for line in run_folder.read_metrics(trained) if "val_miou" in line}
    assert scores["miou"] == pytest.approx(logged[scores["step"]], abs=1e-6)  # what training found for that checkpoint
    assert scores["miou"] == max(logged.values())
    assert main(["evaluate", str(trained)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["split"] == "test"


def test_predict_writes_labels_overlays_and_probabilities(trained, discs, tmp_path, capsys):
    picture = np.asarray(Image.open(discs / "source" / "images" / "disc03.png"))
    Image.fromarray(np.tile(picture, (2, 2))[:37, :50]).save(tmp_path / "other size.png")
    inputs = [str(discs / "source" / "images" / "disc00.png"), str(tmp_path / "other size.png")]
    assert main(["predict", str(trained), *inputs, "--out", str(tmp_path / "out"), "--probabilities"]) == 0
    assert "2 images" in capsys.readouterr().out
    for name, size in (("disc00", (32, 32)), ("other size", (50, 37))):
        label = Image.open(tmp_path / "out" / f"{name}.png")
        assert (label.size, label.mode) == (size, "P")
        with Image.open(tmp_path / "out" / f"{name}_overlay.png") as overlay:
            assert (overlay.size, overlay.mode) == (size, "RGB")
        probabilities = np.load(tmp_path / "out" / f"{name}_probabilities.npy")
        assert (probabilities.shape, probabilities.dtype) == ((*size[::-1], 2), np.float32)
        np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
        np.testing.assert_array_equal(probabilities.argmax(-1), np.asarray(label))
    assert len(list((tmp_path / "out").iterdir())) == 6


def test_a_grey_picture_saved_as_rgb_is_predicted_as_grey(trained, discs, tmp_path):
    grey = np.asarray(Image.open(discs / "source" / "images" / "disc00.png"))
    (tmp_path / "in").mkdir()
    Image.fromarray(np.stack([grey] * 3, -1)).save(tmp_path / "in" / "rgb.png")
    Image.fromarray(grey).save(tmp_path / "in" / "grey.png")
    assert main(["predict", str(trained), str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    rgb, grey = (np.asarray(Image.open(tmp_path / "out" / name)) for name in ("rgb.png", "grey.png"))
    np.testing.assert_array_equal(rgb, grey)


def test_other_images_in_the_same_workdir_are_refused(trained, discs, tmp_path, capsys):
    """Of the same names, classes and options: only the contents differ."""
    source, workdir = tmp_path / "source", tmp_path / "run"
    shutil.copytree(discs / "source", source)
    shutil.copytree(trained, workdir)
    for path in (source / "images").iterdir():
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    assert main(["data", "prepare", "folder", "--source", str(source), "--data-dir", str(tmp_path / "data")]) == 0
    argv = ["train", str(discs / "tiny.py"), "--data-dir", str(tmp_path / "data"), "--workdir", str(workdir)]
    assert main(argv) == 2
    assert "the images or labels" in capsys.readouterr().err


def test_two_trainings_do_not_share_a_workdir(discs, tmp_path, capsys):
    with run_folder.only_training(tmp_path / "run"):
        assert main(command(discs, tmp_path / "run")) == 2
    assert "another process trains there" in capsys.readouterr().err


def test_a_foreign_line_in_the_metrics_is_passed_over(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 2.0}\n[1]\n{"a": 1}\n\xff\n{"step": 2')
    assert run_folder.read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_predict_takes_a_folder(trained, discs, tmp_path):
    shutil.copytree(discs / "source" / "images", tmp_path / "images")
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    assert main(["predict", str(trained), str(tmp_path / "images"), "--out", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").iterdir())) == 24


# ---- The same command again ---------------------------------------------------------------------------------------------


def test_the_same_command_again_changes_nothing(trained, discs, tmp_path, capsys):
    workdir = tmp_path / "trained"
    shutil.copytree(trained, workdir)
    before = {p: p.read_bytes() for p in sorted((workdir / "checkpoints").rglob("*")) if p.is_file()}
    metrics = (workdir / "metrics.jsonl").read_text()
    assert main(command(discs, workdir)) == 0
    assert "step 8" in capsys.readouterr().out
    assert {p: p.read_bytes() for p in sorted((workdir / "checkpoints").rglob("*")) if p.is_file()} == before
    assert (workdir / "metrics.jsonl").read_text() == metrics


@pytest.mark.parametrize("options", [("--learning-rate", "0.5"), ("--batch-size", "2"), ("--upsample", "bilinear")])
def test_other_options_in_the_same_workdir_are_refused(trained, discs, options, capsys):
    before = (trained / "run.json").read_text()
    assert main(command(discs, trained, *options)) == 2
    error = capsys.readouterr().err
    assert options[0].strip("-").replace("-", "_") in error.replace("-", "_")
    assert options[1] in error
    assert "another --workdir" in error
    assert (trained / "run.json").read_text() == before


# ---- What a run survives ------------------------------------------------------------------------------------------------

LONG = ("--steps", "40")


@pytest.fixture(scope="module")
def uninterrupted(discs, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert main(command(discs, workdir, *LONG)) == 0
    return workdir


def assert_resumes(discs, workdir, uninterrupted) -> None:
    """The same command ends with the bits of the run that was never interrupted, and its log has every step once."""
    assert main(command(discs, workdir, *LONG)) == 0
    assert final_state(discs, workdir)[0] == 40
    assert_bitwise(final_state(discs, workdir), final_state(discs, uninterrupted))
    assert steps_logged(workdir) == list(range(1, 41))
    losses = [[line["loss"] for line in run_folder.read_metrics(w) if "loss" in line] for w in (workdir, uninterrupted)]
    assert losses[0] == losses[1]
    assert not list((workdir / "checkpoints").glob("*tmp*"))


def kill_and_resume(discs, workdir, uninterrupted, seed: int) -> None:
    rng = random.Random(seed)
    process = start(command(discs, workdir, *LONG))
    wait_for_steps(process, workdir, rng.randint(1, 20))
    time.sleep(rng.uniform(0, 0.2))
    process.kill()
    process.communicate()
    assert process.returncode in (0, -signal.SIGKILL)
    assert_resumes(discs, workdir, uninterrupted)


def test_a_killed_run_goes_on_as_if_nothing_had_happened(discs, uninterrupted, tmp_path):
    """Killed at a random moment: amid a step, a save, or the report."""
    kill_and_resume(discs, tmp_path / "run", uninterrupted, seed=time.time_ns() % 1000)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_runs_killed_at_five_moments_go_on(discs, uninterrupted, tmp_path, seed):
    kill_and_resume(discs, tmp_path / "run", uninterrupted, seed)


def test_sigterm_saves_and_exits_with_0(discs, uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    process = start(command(discs, workdir, *LONG))
    wait_for_steps(process, workdir, 3)
    process.terminate()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert "saved; the same command goes on" in out
    step = steps_logged(workdir)[-1]
    assert f"stopped at step {step}" in out
    assert final_state(discs, workdir)[0] == step
    assert_resumes(discs, workdir, uninterrupted)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(discs, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert main(command(discs, workdir, "--plain", "--blow-up-at", "4")) == 2
    error = capsys.readouterr().err
    assert "step 6: the loss is nan" in error
    assert "--learning-rate" in error
    stored = run_folder.checkpoints(workdir, read_only=True)
    assert 6 not in stored.steps()
    stored.close()
    _, state = final_state(discs, workdir, plain=True)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_a_gradient_that_is_not_finite_is_not_saved(discs, tmp_path, capsys):
    """The loss of that step is fine; the parameters after it are not, and a run could never go on from them."""
    assert main(command(discs, tmp_path / "run", "--plain", "--spoil", "--steps", "4")) == 2
    assert "step 1" in capsys.readouterr().err
    stored = run_folder.checkpoints(tmp_path / "run", read_only=True)
    assert stored.steps() == []
    stored.close()


def test_a_damaged_checkpoint_is_passed_over(trained, discs, tmp_path):
    """The run goes on from the one before, to the same result."""
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    file = max((workdir / "checkpoints" / "8" / "state").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    bad = bytearray(file.read_bytes())
    bad[len(bad) // 2] ^= 1
    file.write_bytes(bad)
    argv = [sys.executable, "-m", "jaxseg.cli", *command(discs, workdir)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=os.environ)
    assert "checkpoint 8" in done.stderr
    assert done.returncode == 0, done.stderr
    assert_bitwise(final_state(discs, workdir), final_state(discs, trained))
