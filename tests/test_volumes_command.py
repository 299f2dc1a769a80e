"""`save_run` of a model of volumes, and `jaxseg predict` with it: the labels of the whole volume, by cubes; the rest is refused."""

import json

import jax
import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image
from random_variables import random_variables

import jaxseg
from jaxseg.cli import main
from jaxseg.data import to_float
from jaxseg.data.listing import DataInfo
from jaxseg.errors import InputError
from jaxseg.inference import region_prediction
from jaxseg.inference.region_files import open_regions
from jaxseg.models import NNUNet, UNet
from jaxseg.run_folder import load_run, save_run

INFO = DataInfo("noise", ("background", "a", "b"), 1, ((0, 0, 0), (255, 0, 0), (0, 255, 0)))
NETS = {
    "padded": UNet(3, (3, 4), padding="same", norm="batch"),
    "unpadded": UNet(3, (3, 4)),
    "nnunet": NNUNet(3, (2, 3), strides=(1, (1, 2, 2))),
}


@pytest.fixture(scope="module")
def volume():
    return np.random.default_rng(0).integers(0, 256, (21, 40, 53), np.uint8)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, net in NETS.items():
        variables = random_variables(net, np.zeros((1, 20, 20, 20, 1), np.float32))
        save_run(folder / name, net, variables, INFO, mean=[0.5], std=[0.2], example_size=(20, 20, 20))
    return folder


def _whole(run, volume):
    apply, variables, _ = jaxseg.load(run)
    return np.asarray(jax.jit(apply)(variables, to_float(volume)[None, ..., None]))[0].argmax(-1)


def _predict(run, out, *inputs, options=()):
    return main(["predict", str(run), *map(str, inputs), "--out", str(out), *options])


@pytest.mark.parametrize("name", ["padded", "unpadded"])
def test_files_of_all_kinds_give_the_whole_volume_s_labels(runs, volume, name, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    tifffile.imwrite(source / "pages.tif", volume, compression="zlib", photometric="minisblack")
    np.save(source / "array.npy", volume)
    array = zarr.create_array(str(source / "z.zarr"), shape=volume.shape, dtype=volume.dtype, chunks=(5, 40, 40))
    array[...] = volume
    assert _predict(runs / name, out, source, options=("--tile", "28")) == 0
    whole = _whole(runs / name, volume)
    assert len(np.unique(whole)) > 1
    for labels in (tifffile.imread(out / "pages.tif"), tifffile.imread(out / "array.tif"), zarr.open_array(str(out / "z.zarr"))[...]):
        assert labels.shape == volume.shape
        assert np.mean(labels == whole) > 0.9999  # two logits may be equal but for rounding
    with Image.open(out / "pages_overview.png") as overview:
        assert overview.size == (53, 40)


def test_a_norm_of_the_whole_needs_cropped_tiles_unless_one_is_enough(runs, volume, tmp_path, capsys):
    np.save(tmp_path / "v.npy", volume)
    assert _predict(runs / "nnunet", tmp_path / "out", tmp_path / "v.npy", options=("--tile", "16")) == 2
    assert "instance or group norm" in capsys.readouterr().err
    assert _predict(runs / "nnunet", tmp_path / "out", tmp_path / "v.npy", options=("--tile", "16", "--blend", "crop")) == 0
    assert tifffile.imread(tmp_path / "out" / "v.tif").shape == volume.shape
    assert _predict(runs / "nnunet", tmp_path / "one", tmp_path / "v.npy") == 0
    assert np.mean(tifffile.imread(tmp_path / "one" / "v.tif") == _whole(runs / "nnunet", volume)) > 0.9999


@pytest.mark.parametrize("size", [(20, 30, 1), (20, 30, 3), (2, 3, 4), (20, 30, 1, 1)])
def test_a_thin_volume_is_not_taken_for_a_picture(runs, size, tmp_path):
    thin = np.random.default_rng(1).integers(0, 256, size, np.uint8)
    np.save(tmp_path / "v.npy", thin)
    assert _predict(runs / "padded", tmp_path / "out", tmp_path / "v.npy") == 0
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out" / "v.tif"), _whole(runs / "padded", thin.reshape(size[:3])))


def test_chunks_of_several_slices_are_decoded_once(volume, tmp_path, monkeypatch):
    array = zarr.create_array(str(tmp_path / "z.zarr"), shape=volume.shape, dtype=volume.dtype, chunks=(8, 20, 30))
    array[...] = volume
    decoded = []
    get = zarr.Array.__getitem__
    monkeypatch.setattr(zarr.Array, "__getitem__", lambda self, where: decoded.append(where) or get(self, where))
    with open_regions(tmp_path / "z.zarr", 1, volume=True) as file:
        np.testing.assert_array_equal(file[0:21, slice(0, 40), slice(3, 50)][..., 0], to_float(volume)[:, :, 3:50])
    assert len(decoded) == 3 * 2 * 2


def test_an_interrupted_prediction_goes_on_where_it_stopped(runs, volume, tmp_path, monkeypatch):
    np.save(tmp_path / "v.npy", volume)
    monkeypatch.setattr(region_prediction, "EVERY", 2)
    through = region_prediction._classes
    taken = []

    def counted(labels, most):
        take, finish = through(labels)

        def one(n, rows, columns, logits):
            if len(taken) == most:
                raise KeyboardInterrupt
            taken.append((n.start, rows.start, columns.start))
            take(n, rows, columns, logits)

        return one, finish

    monkeypatch.setattr(region_prediction, "_classes", lambda labels: counted(labels, 3))
    command = (runs / "padded", tmp_path / "out", tmp_path / "v.npy")
    assert _predict(*command, options=("--tile", "28", "--blend", "crop")) == 130
    first = list(taken)
    taken.clear()
    monkeypatch.setattr(region_prediction, "_classes", lambda labels: counted(labels, 1000))
    assert _predict(*command, options=("--tile", "28", "--blend", "crop")) == 0
    assert (len(first), taken[0]) == (3, first[2])  # of three regions two were noted
    assert _predict(runs / "padded", tmp_path / "once", tmp_path / "v.npy", options=("--tile", "28", "--blend", "crop")) == 0
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out" / "v.tif"), tifffile.imread(tmp_path / "once" / "v.tif"))


def test_what_is_no_volume_is_refused(runs, volume, tmp_path, capsys):
    Image.fromarray(volume[0]).save(tmp_path / "one.png")
    array = zarr.create_group(str(tmp_path / "t.ome.zarr"))
    array.create_array("0", shape=(2, 3, 8, 8), dtype=np.uint8, chunks=(1, 1, 8, 8))[...] = volume[:6, :8, :8].reshape(2, 3, 8, 8)
    array.attrs["multiscales"] = [{"axes": [{"name": a} for a in "tzyx"], "datasets": [{"path": "0"}]}]
    np.save(tmp_path / "flat.npy", volume[0])
    np.save(tmp_path / "two.npy", volume[:20].reshape(2, 10, 40, 53))
    tifffile.imwrite(tmp_path / "page.tif", volume[0])
    said = {"one.png": "is one image; the model takes volumes", "page.tif": "is one image", "t.ome.zarr": "axes TZYX (2, 3, 8, 8)"}
    said |= {"flat.npy": "has the shape (40, 53); the model takes volumes, [D, H, W]", "two.npy": "(2, 10, 40, 53)"}
    for name, words in said.items():
        assert _predict(runs / "padded", tmp_path / "out", tmp_path / name) == 2
        assert words in capsys.readouterr().err
    for option in (("--tta",), ("--probabilities",), ("--dense", "a_trous")):
        assert _predict(runs / "padded", tmp_path / "out", tmp_path / "one.png", options=option) == 2
        assert "takes volumes, and the option is for images" in capsys.readouterr().err
    assert _predict(runs / "padded", tmp_path / "out", tmp_path / "one.png", options=("--blend", "linear")) == 2
    assert "Take blend='crop'" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["evaluate"], ["heatmaps", "--layers"], ["export", "--format", "stablehlo", "--out", "x.stablehlo"]])
def test_commands_for_images_name_the_run(runs, command, capsys):
    name, *options = command
    assert main([name, str(runs / "padded"), *options]) == 2
    assert "its model takes volumes, which only `jaxseg predict` and `jaxseg.load` do" in capsys.readouterr().err


def test_a_saved_run_of_images_is_one_like_any_other(tmp_path):
    net = UNet(3, (3, 4), padding="same", norm="batch")
    variables = random_variables(net, np.zeros((1, 8, 8, 1), np.float32))
    save_run(tmp_path / "run", net, variables, INFO, mean=[0.5], std=[0.2], example_size=(8, 8), options={"seed": 3})
    run = load_run(tmp_path / "run")
    assert (run.model, run.info, run.takes_volumes, run.description["options"]) == (net, INFO, False, {"seed": 3})
    jax.tree.map(np.testing.assert_array_equal, run.variables, variables)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["preprocess"] == {"mean": [0.5], "std": [0.2], "resize": 1.0}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": UNet(3, (3, 5), padding="same", norm="batch")}, "weights: they do not fit the model in .*down1_conv1/kernel"),
        ({"model": UNet(2, (3, 4), padding="same", norm="batch")}, "the model has 2 classes, its data 3"),
        ({"example_size": (8, 8, 8)}, "weights: they do not fit the model in .*down0_conv1/kernel"),
        ({"example_size": (8,)}, "example_size"),
        ({"mean": [0.5, 0.5]}, "required 1 means"),
        ({"std": [0.0]}, "required 1 means"),
        ({"mean": float("nan")}, "required are what JSON has"),
        ({"example_size": 8}, "required are what JSON has"),
        ({"options": {"a": float("nan")}}, "required are what JSON has"),
        ({"options": {"a": object()}}, "required are what JSON has"),
        ({"options": {"a": "x" * (1 << 20)}}, "larger than 1048576 bytes"),
        ({"image_dtype": "int8"}, "image_dtype='int8'; required one of uint8, uint16, float32"),
    ],
)
def test_what_would_be_no_run_is_not_saved(change, words, tmp_path):
    net = UNet(3, (3, 4), padding="same", norm="batch")
    variables = random_variables(net, np.zeros((1, 8, 8, 1), np.float32))
    given = {"model": net, "mean": [0.5], "std": [0.2], "example_size": (8, 8), **change}
    with pytest.raises(InputError, match=words):
        save_run(tmp_path / "run", given.pop("model"), variables, INFO, **given)
    assert not (tmp_path / "run").exists()


def test_what_numpy_has_is_saved_as_numbers(tmp_path):
    net = UNet(3, (3, 4), padding="same", norm="batch")
    variables = random_variables(net, np.zeros((1, 8, 8, 1), np.float32))
    info = DataInfo("noise", ("background", "a", "b"), np.int64(1), np.array(INFO.colours))  # type: ignore[arg-type]
    given = {"mean": 0.5, "std": np.float32(0.25), "example_size": np.array([8, 8]), "options": {"rate": np.float32(0.5)}}
    save_run(str(tmp_path / "run"), net, variables, info, **given)
    run = load_run(tmp_path / "run")
    assert (run.info, run.description["options"]) == (INFO, {"rate": 0.5})
    assert run.description["preprocess"] == {"mean": [0.5], "std": [0.25], "resize": 1.0}


def test_variables_that_are_not_finite_are_not_saved(tmp_path):
    net = UNet(3, (3, 4), padding="same")
    variables = jax.tree.map(lambda leaf: leaf * np.nan, random_variables(net, np.zeros((1, 8, 8, 1), np.float32)))
    with pytest.raises(InputError, match="nan or infinite"):
        save_run(tmp_path / "run", net, variables, INFO, mean=[0.5], std=[0.2], example_size=(8, 8))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be made a folder"):
        save_run(tmp_path / "file" / "run", net, _finite(variables), INFO, mean=[0.5], std=[0.2], example_size=(8, 8))


def _finite(variables):
    return jax.tree.map(np.nan_to_num, variables)


def test_a_run_is_not_overwritten(runs):
    with pytest.raises(InputError, match="holds a run already"):
        save_run(runs / "padded", NETS["padded"], {}, INFO, mean=[0.5], std=[0.2], example_size=(8, 8, 8))
