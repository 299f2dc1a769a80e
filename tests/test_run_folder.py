"""run.json: a model as data and back, and nothing else but that out of any file."""

import copy
import functools
import itertools
import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from jaxseg.data.listing import DataInfo
from jaxseg.errors import InputError
from jaxseg.model_json import info_from_json, info_to_json, model_from_json, model_to_json
from jaxseg.models import MODELS, DirectHeatmap, UNet
from jaxseg.models.heatmap import PlainEncoder
from jaxseg.run_folder import load_run, read_description, write_description
from jaxseg.upsample import UPSAMPLERS, PixelShuffle, TransposedConv

INFO = DataInfo("cells", ("ground", "cell"), 1, ((0, 0, 0), (255, 128, 0)), "Cells.")
GOOD = {
    "options": {"config": "tiny.py"},
    "model": model_to_json(UNet(2, features=(4, 8), padding="same", norm="batch")),
    "data": json.loads(json.dumps(info_to_json(INFO))),
    "data_dir": "data",
    "splits": {"eval": "val", "test": "test"},
    "preprocess": {"mean": [0.5], "std": [0.25], "resize": 1.0},
    "example_size": [16, 16],
    "image_dtype": "uint8",
}
MIB_10 = 10 << 20


def through_a_file(description: dict, folder: Path) -> dict:
    write_description(folder, {**GOOD, "model": description})
    return read_description(folder)["model"]


@pytest.mark.parametrize("name", MODELS)
def test_every_model_comes_back(name, tmp_path):
    for options in ({}, {"dtype": jnp.bfloat16}):
        model = MODELS[name](3, **options)
        again = model_from_json(through_a_file(model_to_json(model), tmp_path))
        assert again == model


def test_an_encoder_comes_back(tmp_path):
    model = DirectHeatmap(3, encoder=functools.partial(PlainEncoder, features=(4, 8), dilated=True), enlarge=None)
    again = model_from_json(through_a_file(model_to_json(model), tmp_path))
    assert (again.encoder.func, again.encoder.keywords) == (model.encoder.func, model.encoder.keywords)


@pytest.mark.parametrize("upsampler", UPSAMPLERS)
@pytest.mark.parametrize("partial", [None, {"scale": 2}, {"scale": 2, "dtype": jnp.bfloat16}])
def test_every_upsampler_comes_back(upsampler, partial, tmp_path):
    upsample = functools.partial(UPSAMPLERS[upsampler], **partial) if partial else UPSAMPLERS[upsampler]
    for padding, norm, dtype in itertools.product(
        ("same", "valid"), (None, "batch", "group"), (None, jnp.float32, jnp.bfloat16, jnp.float16)
    ):
        model = UNet(3, features=(4, 6, 8), padding=padding, norm=norm, dropout=0.25, dtype=dtype, upsample=upsample)
        description = model_to_json(model)
        again = model_from_json(through_a_file(description, tmp_path))
        assert model_to_json(again) == description
        for field in ("num_classes", "features", "padding", "norm", "dropout", "axis_name"):
            assert getattr(again, field) == getattr(model, field)
            assert type(getattr(again, field)) is type(getattr(model, field))
        assert again.dtype == dtype
        assert getattr(again.upsample, "func", again.upsample) is UPSAMPLERS[upsampler]
        assert getattr(again.upsample, "keywords", {}) == (partial or {})


def test_the_model_that_comes_back_computes_the_same(tmp_path):
    model = UNet(3, features=(2, 4), padding="same", norm="group", upsample=functools.partial(PixelShuffle, scale=2))
    image = jax.random.normal(jax.random.key(0), (1, 6, 9, 2))
    again = model_from_json(through_a_file(model_to_json(model), tmp_path))
    jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiles faster
    variables = jit(model.init)(jax.random.key(1), image)
    assert (jit(model.apply)(variables, image) == jit(again.apply)(variables, image)).all()


def test_the_axis_of_a_pmap_is_not_part_of_a_model():
    assert model_to_json(UNet(2, axis_name="data")) == model_to_json(UNet(2))


def test_a_data_set_comes_back():
    assert info_from_json(json.loads(json.dumps(info_to_json(INFO)))) == INFO


class Other(nn.Module):
    num_classes: int = 2


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Other(), "Other: not in jaxseg.models.MODELS"),
        (UNet(2, upsample=Other), "none of transposed, "),
        (UNet(2, upsample=lambda features, **rest: TransposedConv(features)), "none of transposed, "),
        (UNet(2, upsample=functools.partial(TransposedConv, 8)), "positional arguments"),
    ],
)
def test_what_cannot_be_described_is_refused_when_it_is_written(model, words):
    with pytest.raises(InputError, match=words):
        model_to_json(model)


def changed(path: str, value) -> dict:
    """GOOD with the value at a/b/c replaced; ... removes it."""
    description = copy.deepcopy(GOOD)
    *parents, last = path.split("/")
    place = functools.reduce(lambda d, key: d[key], parents, description)
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return description


HOSTILE_TEXTS = {
    "empty": "",
    "not JSON": "model: unet",
    "yaml object": "!!python/object/apply:os.system ['touch spy_was_called']",
    "python": "__import__('os').system('touch spy_was_called')",
    "pickle": "cos\nsystem\n(S'touch spy_was_called'\ntR.",
    "cut short": json.dumps(GOOD)[:200],
    "two values": json.dumps(GOOD) * 2,
    "list": json.dumps([GOOD]),
    "string": '"unet"',
    "number": "1e999",
    "null": "null",
    "deep": "[" * 200_000 + "]" * 200_000,
    "deep objects": '{"model":' * 50_000 + "1" + "}" * 50_000,
    "10 MB": json.dumps({**GOOD, "padding": "x" * MIB_10}),
    "bytes": b"\xff\xfe\x00\x80",
    "nan": json.dumps(changed("preprocess/mean", [float("nan")])),
    "infinity": json.dumps(changed("preprocess/resize", float("inf"))),
    "long number": json.dumps(GOOD).replace('"num_classes": 2', '"num_classes": ' + "9" * 5000),
}
HOSTILE_VALUES = [
    ("model", "unet"),
    ("model", ["unet", {}]),
    ("model", {}),
    ("model", ...),
    ("model/name", "resnet"),
    ("model/name", "os.system"),
    ("model/name", "jaxseg.models.UNet"),
    ("model/name", "__class__"),
    ("model/name", ["unet"]),
    ("model/name", None),
    ("model/extra", 1),
    ("model/fields", []),
    ("model/fields/parent", "x"),
    ("model/fields/name", "x"),
    ("model/fields/axis_name", "data"),
    ("model/fields/__class__", "x"),
    ("model/fields/setup", "x"),
    ("model/fields/depth", 3),
    ("model/fields/num_classes", ...),
    ("model/fields/num_classes", "2"),
    ("model/fields/num_classes", True),
    ("model/fields/num_classes", 2.0),
    ("model/fields/num_classes", 3),
    ("model/fields/num_classes", 0),
    ("model/fields/num_classes", -2),
    ("model/fields/num_classes", 10**9),
    ("model/fields/features", "4, 8"),
    ("model/fields/features", 4),
    ("model/fields/features", []),
    ("model/fields/features", [4]),
    ("model/fields/features", [4, -8]),
    ("model/fields/features", [4, 0]),
    ("model/fields/features", [4, 10**9]),
    ("model/fields/features", [4, [8]]),
    ("model/fields/features", [4] * 10_000),
    ("model/fields/features", {"4": 8}),
    ("model/fields/padding", "circular"),
    ("model/fields/padding", None),
    ("model/fields/norm", "layer"),
    ("model/fields/norm", {"name": "batch", "fields": {}}),
    ("model/fields/dropout", "0.5"),
    ("model/fields/dropout", [0.5]),
    ("model/fields/dtype", "complex64"),
    ("model/fields/dtype", "object"),
    ("model/fields/dtype", 32),
    ("model/fields/dtype", ["float32"]),
    ("model/fields/upsample", ...),
    ("model/fields/upsample", "transposed"),
    ("model/fields/upsample", {"name": "subprocess.run", "fields": {}}),
    ("model/fields/upsample", {"name": "transposed", "fields": {"scale": "2"}}),
    ("model/fields/upsample", {"name": "transposed", "fields": {"scale": -1}}),
    ("model/fields/upsample", {"name": "transposed", "fields": {"parent": None}}),
    ("model/fields/upsample", {"name": "transposed", "fields": {"features": 8}, "call": "x"}),
    ("data", []),
    ("data/channels", "1"),
    ("data/channels", 0),
    ("data/channels", 10**9),
    ("data/class_names", "ab"),
    ("data/class_names", ["a", 1]),
    ("data/class_names", ["a", "b", "c"]),
    ("data/colours", [[0, 0, 0]]),
    ("data/colours", [[0, 0, 0], [0, 0, 256]]),
    ("data/colours", [[0, 0, 0], [0, 0]]),
    ("data/description", ...),
    ("data/path", "/etc/passwd"),
    ("data_dir", 3),
    ("splits", "test"),
    ("options", None),
    ("preprocess", ...),
    ("preprocess/mean", 0.5),
    ("preprocess/mean", [0.5, 0.5]),
    ("preprocess/mean", ["0.5"]),
    ("preprocess/std", [0.0]),
    ("preprocess/std", [10**400]),
    ("preprocess/resize", 0),
    ("preprocess/resize", 1e6),
    ("preprocess/resize", None),
    ("preprocess/percentiles", [99, 1]),
    ("preprocess/percentiles", [1, 101]),
    ("preprocess/percentiles", [1]),
    ("preprocess/call", "x"),
    ("example_size", [16]),
    ("example_size", [16, -16]),
    ("example_size", ["16", 16]),
    ("example_size", [16, 10**12]),
]


def assert_refused(folder: Path, monkeypatch) -> None:
    """By an InputError that names the file, before any checkpoint is opened; and nothing was executed."""
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=r"run\.json") as error:
        load_run(folder)
    assert len(str(error.value)) < 2000
    assert sorted(path.name for path in folder.iterdir()) == ["run.json"]


@pytest.mark.parametrize("name", HOSTILE_TEXTS)
def test_hostile_files_are_refused(name, tmp_path, monkeypatch):
    text = HOSTILE_TEXTS[name]
    (tmp_path / "run.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert_refused(tmp_path, monkeypatch)


@pytest.mark.parametrize(("path", "value"), HOSTILE_VALUES, ids=lambda x: str(x)[:30])
def test_hostile_values_are_refused(path, value, tmp_path, monkeypatch):
    (tmp_path / "run.json").write_text(json.dumps(changed(path, value)))
    assert_refused(tmp_path, monkeypatch)


def test_the_good_description_is_only_short_of_a_checkpoint(tmp_path):
    """So it is what was changed above that was refused."""
    write_description(tmp_path, GOOD)
    with pytest.raises(InputError, match="no finished checkpoint"):
        load_run(tmp_path)


def test_a_description_is_replaced_whole(tmp_path):
    write_description(tmp_path, GOOD)
    write_description(tmp_path, {**GOOD, "data_dir": "elsewhere"})
    assert read_description(tmp_path)["data_dir"] == "elsewhere"
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
