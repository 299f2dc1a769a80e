"""`jaxseg benchmark upsampling` from its command line to its tables: what is stored, how a run goes on, what is refused."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from op_laws import needs_torch
from PIL import Image

from jaxseg.benchmark import models, pictures, upsampling
from jaxseg.benchmark.operators import CASES
from jaxseg.benchmark.peers import torch_peer
from jaxseg.benchmark.report import write_report
from jaxseg.benchmark.results import Results, make_header, read_results
from jaxseg.errors import InputError
from jaxseg.upsample import UPSAMPLERS

TINY = ["--size", "8", "--batch", "2", "--features", "2", "3", "--seconds", "0.01"]


def run(out, *options):
    return upsampling.main(["upsampling", "--out", str(out), *TINY, *options])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A run of the U-Net with transposed convolution, beside the stock one; not to be changed."""
    out = tmp_path_factory.mktemp("tiny")
    assert run(out, "--only", "models", "--models", "unet", "--methods", "transposed") == 0
    return out


def shown(picture):
    """The share of a transparent picture's pixels that show something."""
    with Image.open(picture) as image:
        return (np.asarray(image.convert("RGBA"))[..., 3] > 0).mean()


def fake_record(phases=("inference", "training"), ms=2.0, ratio=3.0, errors=None):
    """As a contest writes it: stock and torch take `ratio` times our time."""
    one = {"spread_ms": 0.1, "steps": 5, "compile_s": 1.5}
    ours = {
        **one,
        "step_ms": ms,
        "images_per_s": 2e3 / ms,
        "flops": 1e9,
        "bytes": 1e8,
        "peak_bytes": 2**21,
        "matmul_share": 0.5,
        "copy_share": 0.25,
    }
    found = {"ours": {**ours, "ratio": 1.0}}
    for who in ("stock", "torch eager", "torch compiled"):
        found[who] = {**one, "step_ms": ms * ratio, "images_per_s": 2e3 / ms / ratio, "ratio": ratio}
    rates = {"matmul_gflops": 50.0, "conv_gflops": 40.0, "copy_gbs": 10.0}
    return {"rates": rates, "errors": errors or {}, "phases": {phase: copy.deepcopy(found) for phase in phases}, "notes": []}


@pytest.fixture
def faked(monkeypatch):
    """Measuring costs nothing: the keys of what was measured, in order."""
    measured = []

    def run_model(name, method, *rest, **options):
        measured.append(f"models/{name}/{method}")
        return fake_record()

    def run_case(case, **options):
        measured.append(f"operators/{case.name}")
        return fake_record(case.phases)

    monkeypatch.setattr(models, "run_model", run_model)
    monkeypatch.setattr(upsampling, "run_case", run_case)
    return measured


def test_a_run_measures_and_checks_the_network(tiny):
    stored = json.loads((tiny / "results.json").read_text())
    assert {"device", "cpu", "cores", "versions", "torch", "dtype", "date", "size", "batch", "features", "parallel"} <= stored[
        "header"
    ].keys()
    assert stored["header"]["versions"].keys() >= {"jax", "jaxlib", "flax", "python"}
    (key, record), *rest = stored["cases"].items()
    assert (key, rest) == ("models/unet/transposed", [])
    assert record["errors"]["stock"].keys() == {"logits", "losses"}
    assert max(record["errors"]["stock"].values()) < 1e-4
    for phase in ("inference", "training"):
        for who in ("ours", "stock"):
            m = record["phases"][phase][who]
            assert m["images_per_s"] == pytest.approx(2 / (m["step_ms"] / 1e3))
            assert m["compile_s"] > m["step_ms"] / 1e3
            assert m["flops"] > 0
            assert m["peak_bytes"] > 0
    training, inference = (record["phases"][phase]["ours"]["flops"] for phase in ("training", "inference"))
    # Forward, both gradients of every convolution, normalisation; on CPUs weight gradients of so narrow layers have zeros beside them.
    assert 2 < training / inference < (20 if jax.default_backend() == "cpu" else 5)


def test_the_table_shows_what_was_stored(tiny):
    text = (tiny / "results.md").read_text()
    header, record = (json.loads((tiny / "results.json").read_text())[k] for k in ("header", "cases"))
    for part in (header["versions"]["jax"], header["cpu"], header["date"], "float32", "[2, 3]"):
        assert part in text
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| unet, transposed")]
    assert [row[1] for row in rows] == ["ours", "stock"]
    for row, who in zip(rows, ("ours", "stock"), strict=True):
        phases = record["models/unet/transposed"]["phases"]
        assert row[2] == pictures.number(phases["inference"][who]["images_per_s"])
        assert row[5] == pictures.number(phases["training"][who]["images_per_s"])
        assert float(row[3].split(" ± ")[0]) == pytest.approx(phases["inference"][who]["step_ms"], rel=0.01)
    assert shown(tiny / "throughput.png") > 0.02


def test_going_on_measures_only_what_is_missing(tmp_path, faked, capsys):
    """A run killed in its third case; the same command; then one more method in the same folder."""
    names = ["transposed", "nearest", "bilinear"]
    stop, real = iter([False, False, True]), models.run_model

    def killed(*args, **options):
        if next(stop):
            raise KeyboardInterrupt
        return real(*args, **options)

    models.run_model = killed
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "--only", "models", "--methods", ",".join(names))
    models.run_model = real
    assert list(read_results(tmp_path).cases) == [f"models/unet/{m}" for m in names[:2]]
    assert "unet, nearest" in (tmp_path / "results.md").read_text()
    assert not list(tmp_path.glob("*.part"))
    for methods, left in ((names, names[2:]), (names, []), ([*names, "pixel_shuffle"], ["pixel_shuffle"])):
        faked.clear()
        assert run(tmp_path, "--only", "models", "--methods", ",".join(methods)) == 0
        assert faked == [f"models/unet/{m}" for m in left]
        assert f"{len(methods)} cases, {len(left)} to be measured" in capsys.readouterr().out
    assert len(read_results(tmp_path).cases) == 4


def test_another_setting_in_the_same_folder_is_refused(tmp_path, faked):
    assert run(tmp_path, "--only", "models", "--methods", "nearest") == 0
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(
        InputError,
        match=rf"--out {tmp_path}: .*batch \(was 2, now 4\).*dtype \(was 'float32', now 'bfloat16'\)|dtype.*batch.*another --out",
    ):
        run(tmp_path, "--batch", "4", "--dtype", "bfloat16")
    assert (tmp_path / "results.json").read_bytes() == before


def test_all_is_every_operator_model_and_method(tmp_path, faked):
    assert run(tmp_path) == 0
    assert faked == [f"operators/{case.name}" for case in CASES] + [f"models/unet/{method}" for method in UPSAMPLERS]
    text = (tmp_path / "results.md").read_text()
    for name in (case.name for case in CASES):
        assert text.count(f"| {name} |") == 1 + len(read_results(tmp_path).cases[f"operators/{name}"]["phases"])
    for picture in ("throughput.png", "speedup.png"):
        assert shown(tmp_path / picture) > 0.02
    row = next(line for line in text.splitlines() if line.startswith("| conv_transpose 2x2/2, 64 to 32, 4x32x32 | forward |"))
    assert row.split(" | ")[2:7] == ["2.00 ± 0.100", "6.00 ± 0.100", "6.00 ± 0.100", "6.00 ± 0.100", "3.00"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "unet,resnet"], r"--models: got 'unet,resnet'; there are unet.*commas"),
        (["--methods", "lanczos"], r"--methods: got 'lanczos'; there are transposed, "),
        (["--methods", ","], "--methods: got ','"),
        (["--batch", "3", "--devices", "2"], r"--batch: got 3 for 2 devices; required a multiple of 2. Give --batch 4"),
        (["--devices", "0"], "--devices 0: required is at least 1"),
        (["--size", "0"], "--size 0"),
        (["--seconds", "-1"], "--seconds: got -1"),
        (["--seconds", "nan"], "--seconds: got nan"),
        (["--features", "0", "3"], "--features: got 0 3; required two levels"),
        (["--features"], "--features: got nothing"),
        (["--batch", "64", "--devices", "64"], r"--devices: got 64; there are \d+\. .*new process"),
        (["--torch-python", "/no/such/python"], "--torch-python /no/such/python: cannot be run"),
    ],
)
def test_bad_options_are_refused(tmp_path, options, message, faked):
    with pytest.raises(InputError, match=message):
        run(tmp_path / "out", *options)
    assert not faked


def test_bad_folders_and_files_are_refused(tmp_path, faked):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: is a file"):
        run(tmp_path / "file")
    for text, message in (("{", "not JSON"), ("[]", "has no header"), ('{"header": {}}', "has no header")):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(InputError, match=message):
            run(tmp_path)
    with pytest.raises(InputError, match=r"elsewhere.*cannot be read"):
        read_results(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="no such benchmark"):
        upsampling.main(["downsampling"])


def test_results_round_trip(tmp_path):
    results = Results(tmp_path / "results.json", {"size": 8}, {})
    results.store("models/unet/nearest", fake_record())
    back = read_results(tmp_path)
    assert (back.header, back.cases) == (results.header, {"models/unet/nearest": fake_record()})
    assert "models/unet/nearest" in back


# ---- Networks ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_torch
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_unet_of_torch_is_ours(dtype):
    """Three poolings, odd numbers of channels; logits, and the losses of three steps of Adam."""
    setting = models.Setting(size=16, batch=2, features=(3, 5, 8, 9), dtype=dtype)
    with torch_peer(Path(sys.executable)) as peer:
        assert peer is not None
        peer.info["compile"] &= dtype == "float32"  # a minute and a half
        record = models.run_model("unet", "transposed", setting, jax.devices()[:1], peer=peer, budget_s=0.01)
    assert set(record["errors"]) == {"stock", "torch"}
    assert list(record["phases"]["training"]) == ["ours", "stock", *(f"torch {mode}" for mode in peer.modes)]
    assert record["notes"] == []


@pytest.mark.slow
@pytest.mark.parametrize("how", ["jit", "pmap"])
def test_eight_simulated_devices_give_the_same_table(how, tmp_path):
    command = ["upsampling", "--out", str(tmp_path), *TINY, "--batch", "8", "--devices", "8", "--parallel", how, "--methods", "nearest"]
    code = f"import sys; from jaxseg.benchmark.upsampling import main; sys.exit(main({command!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = read_results(tmp_path)
    assert results.header["device"].startswith("8 x ")
    assert list(results.cases) == ["models/unet/nearest"]
    assert list(results.cases["models/unet/nearest"]["phases"]["training"]) == ["ours"]
    assert f"by {how}" in (tmp_path / "results.md").read_text()
    assert write_report(results) == tmp_path / "results.md"


def test_the_header_names_what_the_environment_sets(monkeypatch, tmp_path):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    options = {"parallel": "jit", "dtype": "float32", "batch": 4, "size": 128, "features": [2, 3], "environment": upsampling.environment()}
    header = make_header(jax.devices(), options, None)
    text = write_report(Results(tmp_path / "results.json", header, {})).read_text()
    assert "* environment: GLIBC_TUNABLES=glibc.malloc.hugetlb=1\n" in text
