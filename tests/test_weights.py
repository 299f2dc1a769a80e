"""Laws of jaxseg.weights: what comes over comes back, every key that does not fit is named, and nothing stored is executed."""

import os
import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from op_laws import needs_torch, random_array
from safetensors.numpy import save_file

from jaxseg.errors import InputError
from jaxseg.models import FCN, BasicUNet, EncoderUNet, FCNResNet, MilesialUNet
from jaxseg.weights import milesial, monai, smp, torchvision, wkentaro_fcn
from jaxseg.weights.adapt import first_conv, new_head
from jaxseg.weights.files import read_weights
from jaxseg.weights.layouts import channels_and_classes
from jaxseg.weights.table import from_torch, to_torch

TABLE = {
    "a.weight": (("params", "a", "kernel"), "conv"),
    "up.weight": (("params", "up", "kernel"), "conv_transpose"),
    "fc.weight": (("params", "fc", "kernel"), "linear_conv"),
    "n.running_mean": (("batch_stats", "n", "mean"), "same"),
}
SHAPES = {"a.weight": (5, 4, 3, 2), "up.weight": (4, 5, 2, 2), "fc.weight": (6, 36), "n.running_mean": (7,)}
FULL = {
    "milesial": (MilesialUNet(2), milesial.layout),
    "milesial bilinear": (MilesialUNet(2, bilinear=True), milesial.layout),
    "monai": (BasicUNet(2), monai.layout),
    "smp resnet34": (EncoderUNet(2), smp.layout),
    "smp vgg16": (EncoderUNet(2, encoder="vgg16"), smp.layout),
    "torchvision fcn_resnet50": (FCNResNet(21), torchvision.layout),
    "wkentaro fcn8s": (FCN(21), wkentaro_fcn.layout),
}


def variables():
    shapes = {"a": (3, 2, 4, 5), "up": (2, 2, 4, 5), "fc": (3, 3, 4, 6)}
    return {"params": {k: {"kernel": jnp.zeros(s)} for k, s in shapes.items()}, "batch_stats": {"n": {"mean": jnp.zeros(7)}}}


def state():
    r = np.random.default_rng(0)
    return {key: r.normal(size=shape).astype(np.float32) for key, shape in SHAPES.items()}


def test_axes_go_where_they_belong_and_back():
    theirs = state()
    ours = from_torch(TABLE, {**theirs, "n.num_batches_tracked": np.int64(3)}, variables())["params"]
    assert ours["a"]["kernel"][2, 1, 3, 4] == theirs["a.weight"][4, 3, 2, 1]
    assert ours["up"]["kernel"][1, 0, 3, 4] == theirs["up.weight"][3, 4, 1, 0]
    assert ours["fc"]["kernel"][2, 1, 3, 4] == theirs["fc.weight"].reshape(6, 4, 3, 3)[4, 3, 2, 1]
    back = to_torch(TABLE, from_torch(TABLE, theirs, variables()))
    assert back.keys() == theirs.keys()
    for key, array in theirs.items():
        np.testing.assert_array_equal(back[key], array)


def test_every_key_that_does_not_fit_is_named_at_once():
    theirs = state()
    theirs["up.weight"] = theirs["up.weight"][1:]
    theirs["fc.weight"] = theirs["fc.weight"].astype(np.int32)
    theirs["n.running_mean"][3] = np.nan
    theirs["other"] = theirs.pop("a.weight")
    ours = variables()
    ours["params"]["late"] = {"bias": jnp.zeros(3)}
    with pytest.raises(InputError) as error:
        from_torch({**TABLE, "b": (("params", "b"), "same")}, theirs, ours)
    for words in (
        "a.weight: missing",
        "other: unknown",
        "b: missing",
        "b: the model has no params/b",
        "params/late/bias: not in the layout",
        "up.weight: shape (3, 5, 2, 2), required (4, 5, 2, 2)",
        "fc.weight: int32, required floats",
        "n.running_mean: holds nan",
    ):
        assert words in str(error.value)


def test_a_part_may_come_over_and_named_keys_be_left_out():
    theirs = {"a.weight": state()["a.weight"], "head.weight": np.ones(3)}
    table = {"a.weight": TABLE["a.weight"]}
    new = from_torch(table, theirs, variables(), ignored=("head.weight",), whole=False)
    assert abs(new["params"]["a"]["kernel"]).sum() > 0
    assert abs(new["params"]["up"]["kernel"]).sum() == 0
    with pytest.raises(InputError, match=r"head\.weight: unknown"):
        from_torch(table, theirs, variables(), whole=False)
    with pytest.raises(InputError, match="variables lack params/up/kernel"):
        to_torch(TABLE, {"params": {"a": new["params"]["a"]}})


@pytest.mark.parametrize("name", FULL)
def test_a_layout_covers_its_model_and_round_trips(name):
    model, layout = FULL[name]
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    paths = ["/".join(k.key for k in path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    table = layout(model)
    assert sorted("/".join(path) for path, _ in table.values()) == sorted(paths)
    assert all(change in ("same", "conv", "conv_transpose") for _, change in table.values())


def test_the_first_convolution_for_other_channels_answers_as_before():
    kernel = random_array(7, 7, 3, 4)
    grey = np.asarray(first_conv(kernel, 1))
    np.testing.assert_allclose(grey, kernel.sum(2, keepdims=True), rtol=1e-6)
    np.testing.assert_array_equal(first_conv(kernel, 3), kernel)
    four = np.asarray(first_conv(kernel, 4))
    np.testing.assert_allclose(four, kernel[:, :, [0, 1, 2, 0]] * 0.75, rtol=1e-6)
    np.testing.assert_allclose(first_conv(kernel, 2), kernel[:, :, :2] * 1.5, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(first_conv(kernel, 6)).sum(2), kernel.sum(2), rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="got 0 channels"):
        first_conv(kernel, 0)


def test_a_new_head_keeps_what_means_the_same():
    trained, fresh = random_array(3, 3, 4, 1), random_array(3, 3, 4, 2, seed=1)
    np.testing.assert_array_equal(new_head(trained, trained + 1), trained)
    features = random_array(5, 3, 3, 4)
    one, two = (np.einsum("nhwi,hwik->nk", features, head) for head in (trained, np.asarray(new_head(trained, fresh))))
    np.testing.assert_allclose(jax.nn.softmax(two)[:, 1:], jax.nn.sigmoid(one), rtol=1e-5)
    np.testing.assert_array_equal(new_head(fresh, random_array(3, 3, 4, 7)), random_array(3, 3, 4, 7))
    with pytest.raises(InputError, match=r"got \(3, 3, 4, 1\) for \(1, 1, 4, 2\)"):
        new_head(trained, fresh[:1, :1])


def test_safetensors_are_read(tmp_path):
    save_file({"x": np.arange(6, dtype=np.float16).reshape(2, 3)}, tmp_path / "w.safetensors")
    read = read_weights(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(read["x"], np.arange(6).reshape(2, 3))


@needs_torch
def test_torch_files_are_read_whatever_is_around_the_state(tmp_path):
    import torch

    layer = torch.nn.Conv2d(2, 3, 3).bfloat16()
    torch.save({"state_dict": layer.state_dict(), "epoch": 3}, tmp_path / "w.pth")
    read = read_weights(tmp_path / "w.pth")
    assert read.keys() == {"weight", "bias"}
    np.testing.assert_array_equal(read["weight"], layer.weight.detach().float().numpy())
    torch.save(dict(layer.named_parameters()), tmp_path / "parameters.pth")
    np.testing.assert_array_equal(read_weights(tmp_path / "parameters.pth")["weight"], read["weight"])


@needs_torch
def test_tensors_that_are_no_arrays_are_all_named(tmp_path):
    import torch

    state = {"a": torch.ones(2), "b": torch.ones(2, device="meta"), "c": torch.eye(3).to_sparse()}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(
        InputError, match=r"b: torch\.float32, torch\.strided, on meta; c: torch\.float32, torch\.sparse_coo, on cpu; required"
    ):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("key", ["encoder.conv1.weight", "segmentation_head.0.bias"])
def test_a_file_of_no_channels_or_classes_is_refused(key):
    state = {"encoder.conv1.weight": np.ones((64, 3, 7, 7)), "segmentation_head.0.bias": np.ones(2)}
    state[key] = state[key][:, :0] if state[key].ndim > 1 else state[key][:0]
    with pytest.raises(InputError, match=f"{key}: shape .*at least one channel and one class"):
        channels_and_classes("smp_unet", state, smp.layout(EncoderUNet(2)))


def test_negative_variances_are_refused():
    with pytest.raises(InputError, match="v: holds variances below 0"):
        from_torch({"v": (("batch_stats", "n", "var"), "same")}, {"v": -np.ones(3)}, {"batch_stats": {"n": {"var": jnp.ones(3)}}})


class Bomb:
    def __reduce__(self):
        return os.mkdir, (str(Path(os.environ["PYTEST_BOMB"]) / "exploded"),)


@needs_torch
def test_nothing_in_a_file_is_executed(tmp_path, monkeypatch):
    import torch

    monkeypatch.setenv("PYTEST_BOMB", str(tmp_path))
    (tmp_path / "a.pth").write_bytes(pickle.dumps({"state_dict": Bomb()}))
    torch.save({"x": torch.ones(2), "y": Bomb()}, tmp_path / "b.pth")
    for name in ("a.pth", "b.pth"):
        with pytest.raises(InputError, match=f"{name}: not weights alone"):
            read_weights(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 64, b"\x10\x00\x00\x00\x00\x00\x00\x00{not json here!!}"], ids=["empty", "noise", "header"]
)
@pytest.mark.parametrize("suffix", [".safetensors", pytest.param(".pth", marks=needs_torch)])
def test_damaged_files_are_refused_by_name(content, suffix, tmp_path):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"w{suffix}: "):
        read_weights(path)


def test_missing_and_too_large_files_are_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no such file"):
        read_weights(tmp_path / "none.safetensors")
    save_file({"x": np.zeros(100, np.float32)}, tmp_path / "w.safetensors")
    monkeypatch.setattr("jaxseg.weights.files.LIMIT", 64)
    with pytest.raises(InputError, match="at most 64 are read"):
        read_weights(tmp_path / "w.safetensors")
