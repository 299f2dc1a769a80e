"""`jaxseg export --format onnx`: onnxruntime computes what JAX does, for each primitive and for whole models, or nothing is written."""

import importlib.util
import runpy
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from op_laws import random_array
from random_variables import random_variables

from jaxseg import export_onnx, models, upsample
from jaxseg.cli import main
from jaxseg.data.listing import DataInfo
from jaxseg.embed import loaded
from jaxseg.errors import InputError
from jaxseg.export_onnx import convert, to_onnx
from jaxseg.run_folder import Run

NARROW = runpy.run_path(str(Path(__file__).parent.parent / "configs" / "cells_models.py"))["NARROW"]
needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime")),
    reason="onnx and onnxruntime are not installed (pip install -e .[onnx]): no ONNX file is made",
)


def conv(kernel, stride=(1, 1), padding=((1, 1), (1, 1)), holes=(1, 1), dilation=(1, 1), groups=1, numbers=("NHWC", "HWIO", "NHWC")):
    kernel = random_array(*kernel, seed=1)
    return lambda x: lax.conv_general_dilated(x, kernel, stride, padding, holes, dilation, numbers, groups)


def padded(*config, fill=0.0):
    return lambda x: lax.pad(x, jnp.float32(fill), config)


NONE = (0, 0, 0)
FUNCTIONS = {
    "convolution": conv((3, 3, 4, 5)),
    "strided, uneven, partly cut": conv((3, 2, 4, 5), (2, 1), ((-1, 2), (0, 3))),
    "dilated": conv((3, 3, 4, 5), dilation=(2, 1)),
    "grouped": conv((3, 3, 2, 6), groups=2),
    "transposed": conv((3, 3, 4, 5), padding=((2, 1), (0, 3)), holes=(2, 3)),
    "transposed, cut": conv((3, 3, 4, 5), padding=((-1, 1), (1, -2)), holes=(2, 2)),
    "transposed, dilated, grouped": conv((2, 3, 2, 6), padding=((3, 3), (4, 4)), holes=(2, 2), dilation=(1, 2), groups=2),
    "other layouts": conv((5, 4, 3, 3), numbers=("NHWC", "OIHW", "NCHW")),
    "padding": padded(NONE, (2, 1, 0), (0, 3, 0), NONE, fill=-np.inf),
    "cutting and padding": padded(NONE, (-1, 2, 0), (1, -2, 0), NONE),
    "holes": padded(NONE, (1, 0, 1), (-1, 2, 2), NONE, fill=3.0),
    "products": lambda x: jnp.einsum("nhwc,cd,kd->nkwh", x, *(random_array(*s) for s in ((4, 3), (2, 3)))),
    "products of images": lambda x: jnp.einsum("nhwc,nhvc->nhwv", x, x + 1),
    "sums": lambda x: (x.sum((1, 3)) - x.mean(1).max(-1)) / x.min((1, 2, 3))[:, None],
    "norm": lambda x: (x - x.mean((1, 2), keepdims=True)) * lax.rsqrt(x.var((1, 2), keepdims=True) + 1e-3),
    "softmax": lambda x: jax.nn.softmax(x, -1) + jax.nn.sigmoid(x) * jnp.tanh(x),
    "powers": lambda x: jnp.abs(x) ** 0.75 + x**3 + jnp.square(x) - jnp.sqrt(jnp.exp(-x)),
    "comparisons": lambda x: jnp.where((x > 0.3) & ~(x >= 1) | (x != x), x, -jnp.clip(x, -0.2, 0.6)),
    "small integers": lambda x: jnp.where(x.argmax(-1, keepdims=True).astype(jnp.int8) == jnp.arange(4, dtype=jnp.int8), x, 0),
    "labels": lambda x: jnp.argmax(x, -1).astype(jnp.int32),
    "slices": lambda x: x[:, 1::2, ::-1, 1:3] + x[:, -1, None, 2, None, 0, None, None],
    "a window": lambda x: lax.slice(x[:, 1:4, 2:5], (0, 0, 1, 0), (x.shape[0], 3, 3, 4)),
    "joined": lambda x: jnp.concatenate([x, jnp.zeros((*x.shape[:3], 2)), *jnp.split(x, 2, 3)], -1).transpose(0, 3, 1, 2),
    "stacked": lambda x: jnp.stack([x, 2 * x], 2).reshape(x.shape[0] * x.shape[1], -1),
    "reflected": lambda x: jnp.pad(jnp.pad(x, ((0, 0), (2, 1), (0, 3), (0, 0)), "reflect"), ((0, 0), (0, 1), (1, 0), (0, 0)), "edge"),
    "a constant": lambda x: jnp.broadcast_to(jnp.arange(4.0), x.shape),
}


def run(content, image):
    import onnxruntime

    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"image": image})[0]


@needs_onnx
@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_primitive_equals_jax_at_any_batch(name):
    function = FUNCTIONS[name]
    content = convert(function, jax.export.symbolic_shape("b, 5, 6, 4"), "y")
    for batch in (1, 3):
        x = random_array(batch, 5, 6, 4)
        want = np.asarray(jax.jit(function)(x))
        got = run(content, x)
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def model_of(network, side=20):
    variables = random_variables(network, jnp.zeros((1, side, side, 2)))
    info = DataInfo("cells", ("ground", "cell", "edge"), 2, ((0, 0, 0), (255, 128, 0), (0, 0, 255)))
    preprocess = {"mean": [0.4, 0.6], "std": [0.2, 0.3], "resize": 1.0}
    return loaded(Run(network, variables, info, 0, {"preprocess": preprocess, "example_size": [side, side]}))


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "size"),
    [
        *(pytest.param(make(num_classes=3), (201, 224) if name == "deconvnet" else (45, 70), id=name) for name, make in NARROW.items()),
        *(
            pytest.param(models.UNet(3, features=(4, 6, 8), padding="same", upsample=up), (21, 30), id=f"unet, {name}")
            for name, up in upsample.UPSAMPLERS.items()
        ),
        pytest.param(models.UNet(3, features=(4, 6, 8)), (44, 41), id="unet, unpadded"),
        pytest.param(NARROW["milesial"](num_classes=3, bilinear=True), (33, 40), id="milesial, bilinear"),
    ],
)
def test_every_model_and_upsampler_becomes_onnx(network, size):
    model = model_of(network, max(size))
    image = np.random.default_rng(7).random((2, *size, 2), np.float32)
    want = np.asarray(jax.jit(model.apply)(model.variables, image))
    np.testing.assert_allclose(run(to_onnx(model, size=size), image), want, rtol=0, atol=1e-4 * np.abs(want).max())


@needs_onnx
def test_a_file_that_computes_something_else_is_refused(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(export_onnx.BINARY, "max", "Min")
    command = ["export", str(trained), "--format", "onnx", "--size", "12", "17", "--out", str(tmp_path / "net.onnx")]
    assert main(command) == 2
    assert "onnxruntime's result differs from JAX's by" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@needs_onnx
@pytest.mark.parametrize("labels", [False, True])
def test_the_command_writes_what_was_trained(trained, tmp_path, capsys, labels):
    from jaxseg.embed import load

    out = tmp_path / "net.onnx"
    assert main(["export", str(trained), "--format", "onnx", "--size", "12", "17", *["--labels"] * labels, "--out", str(out)]) == 0
    assert f"-> {'labels' if labels else 'logits'}" in capsys.readouterr().out
    apply, variables, meta = load(trained)
    image = np.random.default_rng(7).random((4, 12, 17, meta.channels), np.float32)
    want, got = np.asarray(jax.jit(apply)(variables, image)), run(out.read_bytes(), image)
    if labels:
        assert got.dtype == np.int32
        assert np.mean(got == want.argmax(-1)) > 0.999  # two logits may be equal but for rounding
    else:
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())


@needs_onnx
@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: jnp.cumsum(x, 1), "got cumsum of float32"),
        (lambda x: x.astype(jnp.bfloat16) + 1, "got numbers of bfloat16"),
        (lambda x: lax.fori_loop(0, 3, lambda i, x: x * i, x), "got (scan|while) of"),
    ],
)
def test_what_has_no_counterpart_is_named(function, words):
    with pytest.raises(InputError, match=words):
        convert(function, jax.export.symbolic_shape("b, 5, 6, 4"), "y")


def test_without_onnx_the_command_says_what_to_install(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx.helper", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["export", str(trained), "--format", "onnx", "--size", "16", "16", "--out", str(tmp_path / "net.onnx")]) == 2
    assert "pip install 'jaxseg[onnx]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
