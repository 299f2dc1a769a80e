"""`jaxseg benchmark models` from its command line to its table; torch's networks beside ours where torch and its packages are there."""

import json
import sys
from functools import partial
from pathlib import Path

import jax
import pytest
from op_laws import needs_torch
from test_benchmark_upsampling import fake_record, shown

from jaxseg.benchmark import model_family, upsampling
from jaxseg.benchmark.claims import claims
from jaxseg.benchmark.model_family import ALIKE, PACKAGES, run_case
from jaxseg.benchmark.models import Setting
from jaxseg.benchmark.peers import PeerError, TorchPeer, torch_peer
from jaxseg.benchmark.results import read_results
from jaxseg.cli import main
from jaxseg.model_table import variants
from jaxseg.models import EncoderUNet, FCNResNet
from jaxseg.models.deconvnet import SMALLEST

TINY = Setting(size=32, batch=2)


def run(out, *options):
    return main(["benchmark", "models", "--out", str(out), *options])


@pytest.fixture
def faked(monkeypatch):
    """Measuring costs nothing: what was measured, in order."""
    measured = []

    def run_network(key, model, setting, devices, **options):
        measured.append((key, model, setting))
        return fake_record()

    monkeypatch.setattr(model_family, "run_network", run_network)
    return measured


def test_a_network_is_measured_and_the_table_shows_it(tmp_path):
    assert run(tmp_path, "--models", "heatmap", "--size", "8", "--seconds", "0.01") == 0
    stored = json.loads((tmp_path / "results.json").read_text())
    ((key, record),) = stored["cases"].items()
    assert key == "networks/heatmap"
    assert {"device", "cpu", "cores", "versions", "torch", "dtype", "date", "size", "batch", "environment"} <= stored["header"].keys()
    inference, training = (record["phases"][phase]["ours"] for phase in ("inference", "training"))
    assert inference["images_per_s"] == pytest.approx(2 / (inference["step_ms"] / 1e3))
    assert 2 < training["flops"] / inference["flops"] < 5  # forward, and both gradients of every convolution but the first
    text = (tmp_path / "results.md").read_text()
    assert text.startswith("# Models: what they cost")
    assert "batch 2 of 8 x 8 pixels\n" in text
    assert "| heatmap | ours |" in text
    assert shown(tmp_path / "throughput.png") > 0.02


def test_all_are_the_models_of_the_table_but_those_that_cost_what_another_does(tmp_path, faked):
    assert run(tmp_path) == 0
    keys = [key for key, _, _ in faked]
    assert keys == [key for key in variants() if key not in ALIKE]
    assert {key.split("/")[0] for key in keys} == {name for name, _ in variants().values()}
    assert keys.count("deconvnet") == 1
    for key, model, setting in faked:
        assert setting.size == (SMALLEST if key == "deconvnet" else 128)
        if key not in ("unet", "deconvnet", "fcn_resnet/resnet50"):  # whose options or size are not the table's
            continue
        shape = (setting.batch, setting.size, setting.size, 3)
        logits = jax.eval_shape(partial(model.init_with_output, jax.random.key(0)), jax.ShapeDtypeStruct(shape, "float32"))[0]
        assert logits.shape == (*shape[:3], 21)


def test_going_on_measures_only_what_is_missing(tmp_path, faked, monkeypatch, capsys):
    real, stop = model_family.run_network, iter([False, True])

    def killed(*args, **options):
        if next(stop):
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(model_family, "run_network", killed)
    assert run(tmp_path, "--models", "unet,conv_only") == 130
    assert "| unet | ours |" in (tmp_path / "results.md").read_text()
    monkeypatch.setattr(model_family, "run_network", real)
    for models, left in (("conv_only, unet", ["conv_only"]), ("unet,conv_only", []), ("unet,conv_only,fcn/32s", ["fcn/32s"])):
        faked.clear()
        capsys.readouterr()
        assert run(tmp_path, "--models", models) == 0
        assert [key for key, _, _ in faked] == left
        assert f"cases, {len(left)} to be measured" in capsys.readouterr().out
    assert len(read_results(tmp_path).cases) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--models", "unet,lenet"], "models: got lenet; required some of unet, fcn"),
        (["--models", ","], "--models: got ','; required names"),
        (["--size", "0"], "--size 0 --batch 2: required is at least 1"),
        (["--seconds", "nan"], "--seconds: got nan; required above 0"),
        (["--torch-python", "/no/such/python"], "--torch-python /no/such/python: cannot be run"),
    ],
)
def test_bad_options_are_one_line(tmp_path, faked, capsys, options, words):
    assert run(tmp_path / "out", *options) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not faked
    assert not (tmp_path / "out").exists()


def test_the_results_of_upsampling_are_another_folders(tmp_path, faked, capsys):
    assert run(tmp_path, "--models", "unet") == 0
    assert main(["benchmark", "upsampling", "--out", str(tmp_path), "--only", "models", "--methods", "nearest"]) == 2
    assert "holds results of another setting: " in capsys.readouterr().err
    assert main(["benchmark", "downsampling"]) == 2
    assert "there are upsampling and models" in capsys.readouterr().err
    assert main(["benchmark", "--help"]) == 0
    assert capsys.readouterr().out == upsampling.USAGE + "\n"


def test_a_stored_network_without_its_training_is_refused(tmp_path, faked, monkeypatch, capsys):
    monkeypatch.setattr(model_family, "run_network", lambda *args, **options: fake_record(("inference",)))
    with pytest.raises(KeyError):  # the report needs it
        run(tmp_path, "--models", "conv_only")
    assert run(tmp_path, "--models", "unet") == 2
    assert "'networks/conv_only' has no number at 'phases/training/ours/step_ms'" in capsys.readouterr().err


@pytest.mark.parametrize(("ratio", "code"), [(0.81, 0), (0.79, 1)])
def test_a_network_slower_than_torchs_breaks_the_claim(tmp_path, faked, monkeypatch, capsys, ratio, code):
    monkeypatch.setattr(model_family, "run_network", lambda *args, **options: fake_record(ratio=ratio))
    assert run(tmp_path, "--models", "encoder_unet/resnet18") == 0
    assert claims(tmp_path) == code
    line = next(line for line in capsys.readouterr().out.splitlines() if "networks/encoder_unet/resnet18" in line)
    assert line.split(" | ")[2:] == ["0.8", f"{ratio}", "**no** |" if code else "yes |"]


# ---- torch ---------------------------------------------------------------------------------------------------------------


class Without(TorchPeer):
    """A process whose Python has none of the packages."""

    def __init__(self):
        self.asked = []

    def ask(self, do, **request):
        self.asked.append((do, request))
        raise PeerError("ModuleNotFoundError: No module named 'torchvision'")


def test_a_package_that_is_not_there_is_a_note(faked):
    peer = Without()
    key = "fcn_resnet/resnet50"
    record = run_case(key, "fcn_resnet", FCNResNet(21), TINY, jax.devices()[:1], peer=peer)
    assert peer.asked == [("import", {"package": "torchvision"})]
    assert record["notes"] == [
        "not beside torch: its Python cannot import torchvision (ModuleNotFoundError: No module named 'torchvision')"
    ]
    assert key in PACKAGES


@needs_torch
@pytest.mark.slow
def test_torchs_own_unet_is_ours_in_logits_and_losses():
    model = variants(["unet"])["unet"][1](num_classes=21, features=(3, 4, 6), norm="batch", dropout=0.0)
    with torch_peer(Path(sys.executable)) as peer:
        record = run_case("unet", "unet", model, TINY, jax.devices()[:1], peer=peer, budget_s=0.01)
    assert record["errors"]["torch"].keys() == {"logits", "losses"}
    for phase in ("inference", "training"):
        assert list(record["phases"][phase]) == ["ours", "torch eager"]


@needs_torch
@pytest.mark.slow
@pytest.mark.parametrize("key", PACKAGES)
def test_the_packages_networks_are_ours_in_logits_and_losses(key):
    name, make = variants([key])[key]
    with torch_peer(Path(sys.executable)) as peer:
        assert peer is not None
        record = run_case(key, name, make(num_classes=21, **model_family.OPTIONS.get(name, {})), TINY, jax.devices()[:1], peer=peer)
    if not record["errors"]:
        pytest.skip(record["notes"][0])
    assert record["errors"]["torch"].keys() == {"logits", "losses"}
    assert not record["notes"]


@needs_torch
@pytest.mark.slow
def test_other_weights_are_noticed(monkeypatch):
    """The comparison before the timing compares with these weights, not with any."""
    real = model_family._torch_weights

    def wrong(layout, variables):
        return {key: 1.01 * value for key, value in real(layout, variables).items()}

    monkeypatch.setattr(model_family, "_torch_weights", wrong)
    with torch_peer(Path(sys.executable)) as peer:
        assert peer is not None
        model = EncoderUNet(21, encoder="resnet18")
        try:
            peer.ask("import", package="segmentation_models_pytorch")
        except PeerError as error:
            pytest.skip(str(error))
        with pytest.raises(RuntimeError, match=r"encoder_unet/resnet18.*ours and torch do not compute the same.*logits"):
            run_case("encoder_unet/resnet18", "encoder_unet", model, TINY, jax.devices()[:1], peer=peer)
