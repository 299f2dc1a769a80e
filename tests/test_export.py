"""`jaxseg export`: the program equals the model wherever and however it is made, and a file comes back as it was, or not at all."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import random_variables
from safetensors.numpy import load_file, save_file

from jaxseg import models, run_folder
from jaxseg.cli import main
from jaxseg.data.listing import DataInfo
from jaxseg.embed import Loaded, load, loaded
from jaxseg.errors import InputError
from jaxseg.export import KEY, OPEN, from_safetensors, signature, to_stablehlo
from jaxseg.export_onnx import steady_images
from jaxseg.model_json import info_to_json, model_to_json
from jaxseg.run_folder import Run, write_description
from jaxseg.train_state import TrainState
from jaxseg.upsample import MaxUnpool

NARROW = runpy.run_path(str(Path(__file__).parent.parent / "configs" / "cells_models.py"))["NARROW"]
INFO = DataInfo("cells", ("ground", "cell", "edge"), 2, ((0, 0, 0), (255, 128, 0), (0, 0, 255)))
NNUNET = models.NNUNet(3, features=(4, 8))
PREPROCESS = {"mean": [0.4, 0.6], "std": [0.2, 0.3], "resize": 1.0}


def some_run(model, resize=1.0, side=20) -> Run:
    """Of random variables, also in the batch statistics."""
    variables = random_variables(model, jnp.zeros((1, side, side, 2)))
    return Run(model, variables, INFO, 70_000, {"preprocess": {**PREPROCESS, "resize": resize}, "example_size": [side, side]})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder whose program needs no sizes."""
    made, folder = some_run(NNUNET), tmp_path_factory.mktemp("runs") / "nnunet"
    folder.mkdir()
    params, batch_stats = made.variables["params"], made.variables.get("batch_stats", {})
    begun = TrainState(jnp.asarray(made.step), params, batch_stats, (), None, jax.random.key_data(jax.random.key(0)))
    with_arrays = run_folder.checkpoints(folder)
    with_arrays.save(begun)
    with_arrays.close()
    rest = {"options": {}, "data_dir": "", "splits": {"eval": None, "test": "test"}, "image_dtype": "uint8"}
    described = {"model": model_to_json(made.model), "data": info_to_json(made.info), **made.description}
    write_description(folder, {**rest, **described})
    return folder


def some_image(*shape):
    return np.random.default_rng(sum(shape)).random((*shape, 2), np.float32)


def assert_same(model: Loaded, exported, shapes, steady=False):
    """Equal on random images; on steady ones where max unpooling jumps between values that are all but equal."""
    for n, *size in shapes:
        image = steady_images(model, tuple(size), n, 1e-5) if steady else some_image(n, *size)
        want = np.asarray(jax.jit(model.apply)(model.variables, image))
        np.testing.assert_allclose(exported.call(image), want, rtol=0, atol=1e-5 * np.abs(want).max(), err_msg=str((n, *size)))


# StableHLO.


@pytest.mark.parametrize(
    "model",
    [
        NNUNET,
        models.ConvOnly(3, features=(4, 6), norm="batch"),
        models.UNet(3, features=(2, 3, 4)),  # unpadded: some of these images are smaller than their border by reflection
    ],
)
def test_the_program_equals_the_model_at_five_shapes(model):
    made = loaded(some_run(model, side=60))
    exported = to_stablehlo(made)
    assert signature(exported) == "image float32 [b, h, w, 2] in 0..1 -> logits float32 [b, h, w, 3]"
    assert_same(made, exported, [(1, 16, 16), (2, 17, 31), (3, 8, 40), (1, 23, 9), (5, 12, 12)])


def five_shapes(step, least):
    return [(n, least + h * step, least + w * step) for n, h, w in ((1, 0, 0), (2, 1, 2), (3, 2, 0), (1, 0, 3), (5, 1, 1))]


@pytest.mark.parametrize(
    ("model", "side"),
    [  # the image's height; its width is of the same form
        (models.UNet(3, features=(2, 3, 4), padding="same", upsample=MaxUnpool), "4*h"),
        (models.BasicUNet(3, features=(2, 2, 3, 2), upsample="nontrainable"), "4*h"),
        pytest.param(models.SegNetBasic(3, features=2, decoder="bilinear"), "16*h", marks=pytest.mark.slow),
    ],
)
def test_the_program_of_models_that_pool_equals_them_at_five_shapes(model, side):
    made = loaded(some_run(model))
    exported = to_stablehlo(made)
    size = f"{side}, {side.replace('h', 'w')}"
    assert signature(exported) == f"image float32 [b, {size}, 2] in 0..1 -> logits float32 [b, {size}, 3]"
    step = int(side.removesuffix("*h"))
    assert_same(made, exported, five_shapes(step, step))


@pytest.mark.slow
@pytest.mark.parametrize("name", models.MODELS)
def test_the_program_of_every_model_equals_it_at_five_shapes(name):
    made = loaded(some_run(NARROW[name](num_classes=3), side=224 if name == "deconvnet" else 64))
    exported = to_stablehlo(made)
    side = str(exported.in_avals[-1].shape[1])
    step, least = next((s, n) for s, n in OPEN if str(jax.export.symbolic_shape(f"{s}*h + {n - s}")[0]) == side)
    assert (least == 224) == (name == "deconvnet")
    assert_same(made, exported, five_shapes(step, max(least, 16)), steady=name == "deconvnet")


@pytest.mark.parametrize(
    ("model", "resize"),
    [
        (models.UNet(3, features=(4, 8), padding="valid"), 1.0),
        (models.UNet(3, features=(64, 64), padding="same", norm="batch"), 1.0),  # the model takes Winograd's form, the program does not
        (models.SegNetBasic(3, features=4), 0.5),
    ],
)
def test_the_program_of_one_size_equals_the_model_at_any_batch(model, resize):
    made = loaded(some_run(model, resize))
    exported = to_stablehlo(made, size=(20, 16))
    assert signature(exported) == "image float32 [b, 20, 16, 2] in 0..1 -> logits float32 [b, 20, 16, 3]"
    assert_same(made, exported, [(1, 20, 16), (3, 20, 16)])


def test_the_program_is_the_same_wherever_it_is_made(monkeypatch):
    made = loaded(some_run(models.UNet(3, features=(64, 64), padding="same")))
    programs = []
    for backend in ("cpu", "gpu", "tpu"):
        jax.clear_caches()
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        exported = to_stablehlo(made, size=(32, 32), inside=False)
        assert exported.platforms == ("cpu", "cuda", "tpu")
        programs.append(exported.mlir_module())
    assert programs[0] == programs[1] == programs[2]


def test_a_model_whose_program_needs_sizes_says_so():
    made = loaded(some_run(models.SegNetBasic(3, features=2), resize=0.3))
    with pytest.raises(InputError, match="SegNetBasic: its program needs a height and a width; required is --size H W"):
        to_stablehlo(made)


ALONE = """
import sys
sys.modules.update(jaxseg=None, flax=None)
import jax, numpy as np
exported = jax.export.deserialize(bytearray(open("net", "rb").read()))
weights = []
if "apart" in sys.argv:
    from safetensors.numpy import load_file
    weights = [load_file("net.safetensors")]
for i in range(5):
    np.save(f"got{i}.npy", exported.call(*weights, np.load(f"image{i}.npy")))
"""


@pytest.mark.parametrize(("apart", "labels"), [(False, False), (True, True)])
def test_a_fresh_process_runs_the_file_with_jax_alone(run, tmp_path, capsys, apart, labels):
    options = ["--weights", "apart"] * apart + ["--labels"] * labels
    assert main(["export", str(run), "--format", "stablehlo", "--out", str(tmp_path / "net"), *options]) == 0
    assert ("labels int32 [b, h, w]" if labels else "logits float32 [b, h, w, 3]") in capsys.readouterr().out
    assert {p.name for p in tmp_path.iterdir()} == {"net", *["net.safetensors"] * apart}
    images = [some_image(*shape) for shape in [(1, 16, 16), (2, 17, 31), (3, 8, 40), (1, 23, 9), (5, 12, 12)]]
    for i, image in enumerate(images):
        np.save(tmp_path / f"image{i}.npy", image)
    env = {"JAX_PLATFORMS": "cpu", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *["apart"] * apart], cwd=tmp_path, capture_output=True, text=True, env=env, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    apply, variables, _ = load(run)
    for i, image in enumerate(images):
        want, got = np.asarray(jax.jit(apply)(variables, image)), np.load(tmp_path / f"got{i}.npy")
        if labels:
            assert got.dtype == np.int32
            np.testing.assert_array_equal(got, want.argmax(-1))
        else:
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


# safetensors.


def test_a_run_comes_back_from_safetensors_bit_by_bit(run, tmp_path):
    assert main(["export", str(run), "--format", "safetensors", "--out", str(tmp_path / "net.safetensors")]) == 0
    was, again = load(run), from_safetensors(tmp_path / "net.safetensors")
    assert again.meta == was.meta
    assert again.meta == (INFO.class_names, INFO.colours, 2, PREPROCESS, 70_000, NNUNET, None)
    assert jax.tree.structure(again.variables) == jax.tree.structure(was.variables)
    for a, b in zip(jax.tree.leaves(again.variables), jax.tree.leaves(was.variables), strict=True):
        assert (a.dtype, np.asarray(a).tobytes()) == (b.dtype, np.asarray(b).tobytes())
    image = some_image(1, 12, 20)
    np.testing.assert_array_equal(jax.jit(again.apply)(again.variables, image), jax.jit(was.apply)(was.variables, image))


@pytest.fixture(scope="module")
def good(run, tmp_path_factory):
    file = tmp_path_factory.mktemp("files") / "net.safetensors"
    assert main(["export", str(run), "--format", "safetensors", "--out", str(file)]) == 0
    return file


def header_of(content: bytes) -> tuple[dict, bytes]:
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def described(content: bytes, change) -> bytes:
    """The file with its description changed."""
    header, arrays = header_of(content)
    description = json.loads(header["__metadata__"][KEY])
    change(description)
    header["__metadata__"][KEY] = json.dumps(description)
    return with_header(header, arrays)


def with_header(header: dict, arrays: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + arrays


def without_metadata(content: bytes) -> bytes:
    header, arrays = header_of(content)
    return with_header({k: v for k, v in header.items() if k != "__metadata__"}, arrays)


def text_for(text: str):
    def change(content: bytes) -> bytes:
        header, arrays = header_of(content)
        header["__metadata__"][KEY] = text
        return with_header(header, arrays)

    return change


BAD = {
    "empty": (lambda c: b"", "no safetensors file"),
    "cut off": (lambda c: c[: len(c) // 2], "no safetensors file"),
    "a pickle": (lambda c: b"\x80\x04cos\nsystem\n(S'touch spy'\ntR.", "with a header of"),
    "header cut off": (lambda c: c[:40], "no safetensors file"),
    "header no JSON": (lambda c: c[:8] + b"[" + c[9:], "no safetensors file"),
    "header of an exabyte": (lambda c: (1 << 60).to_bytes(8, "little") + c[8:], "with a header of"),
    "header too large": (lambda c: (1 << 23).to_bytes(8, "little") + b" " * (1 << 23), "with a header of"),
    "no description": (without_metadata, "no description"),
    "description no JSON": (text_for("eval('1')"), "no safetensors file that can be read"),
    "description deep": (text_for("[" * 100_000), "no safetensors file that can be read"),
    "description a list": (text_for("[]"), "no description"),
    "part missing": (lambda c: described(c, lambda d: d.pop("preprocess")), "no description"),
    "unknown class": (lambda c: described(c, lambda d: d["model"].update(name="os.system")), "unknown 'os.system'"),
    "absurd model": (lambda c: described(c, lambda d: d["model"]["fields"].update(features=[10**9, 8])), "got '1000000000'"),
    "std of zero": (lambda c: described(c, lambda d: d["preprocess"].update(std=[0.0, 1.0])), "preprocess"),
    "step no number": (lambda c: described(c, lambda d: d.update(step=True)), "step"),
    "nan": (lambda c: described(c, lambda d: d["preprocess"].update(mean=[float("nan")] * 2)), "NaN is no JSON number"),
    "other classes": (lambda c: described(c, lambda d: d["model"]["fields"].update(num_classes=2)), "2 classes, its data 3"),
    "another model": (lambda c: described(c, lambda d: d["model"]["fields"].update(features=[4, 6])), "of another model"),
    "other channels": (lambda c: described(c, lambda d: d["model"]["fields"].update(features=[4, 8, 8])), "missing"),
    "a bit of an array": (lambda c: c[:-1] + bytes([c[-1] ^ 1]), "digest"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_damaged_or_hostile_file_is_one_clear_error(good, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    change, words = BAD[case]
    (tmp_path / "bad.safetensors").write_bytes(change(good.read_bytes()))
    with pytest.raises(InputError, match=words) as error:
        from_safetensors(tmp_path / "bad.safetensors")
    assert len(str(error.value)) < 800
    assert [p.name for p in tmp_path.iterdir()] == ["bad.safetensors"]


def test_no_file_and_weights_of_others_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        from_safetensors(tmp_path / "missing.safetensors")
    save_file({"conv.weight": np.ones(3, np.float32)}, tmp_path / "torch.safetensors")
    with pytest.raises(InputError, match="no description of a jaxseg model"):
        from_safetensors(tmp_path / "torch.safetensors")


# The command.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["RUNS/none", "--format", "stablehlo", "--out", "net"], "no run folder"),
        (["RUN", "--format", "tflite", "--out", "net"], "--format: got 'tflite'; required one of"),
        (["RUN", "--format", "onnx", "--out", "net"], "--format onnx: got no size; required is --size H W"),
        (["RUN", "--format", "onnx", "--size", "8", "8", "--weights", "apart", "--out", "net"], "of --format stablehlo alone"),
        (["RUN", "--format", "stablehlo", "--out", "there"], "there exists"),
        (["RUN", "--format", "safetensors", "--out", "there"], "there exists"),
        (["RUN", "--format", "stablehlo", "--weights", "apart", "--out", "half"], "half.safetensors exists"),
        (["RUN", "--format", "stablehlo", "--out", "no/folder/net"], "there is no folder"),
        (["RUN", "--format", "stablehlo", "--weights", "beside", "--out", "net"], "--weights: got 'beside'"),
        (["RUN", "--format", "stablehlo", "--size", "0", "9", "--out", "net"], "--size: got 0 9"),
        (["RUN", "--format", "safetensors", "--labels", "--out", "net"], "not of --format safetensors"),
        (["RUN", "--format", "safetensors", "--weights", "apart", "--out", "net"], "of --format stablehlo alone"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(run, tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").write_text("mine")
    (tmp_path / "half.safetensors").write_text("mine")
    assert main(["export", *(o.replace("RUNS", str(run.parent)).replace("RUN", str(run)) for o in options)]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert words in captured.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["half.safetensors", "there"]
    assert {p.read_text() for p in tmp_path.iterdir()} == {"mine"}


def test_an_export_that_fails_half_way_leaves_nothing_behind(run, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        (tmp_path / "net.safetensors.part").write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr("jaxseg.export.save_file", fail)
    assert main(["export", str(run), "--format", "stablehlo", "--weights", "apart", "--out", str(tmp_path / "net")]) == 2
    assert not list(tmp_path.iterdir())


def test_weights_apart_are_all_of_them(run, tmp_path):
    assert main(["export", str(run), "--format", "stablehlo", "--weights", "apart", "--out", str(tmp_path / "net")]) == 0
    assert len(load_file(tmp_path / "net.safetensors")) == len(jax.tree.leaves(load(run).variables))
    inside = to_stablehlo(load(run)).serialize()
    assert (tmp_path / "net").stat().st_size < len(inside)
