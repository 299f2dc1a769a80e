"""docs/embedding.md runs as printed, on several devices; `import jaxseg` costs nothing; `load` gives what was trained."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxseg
from jaxseg.errors import InputError
from jaxseg.run_folder import load_run

PAGE = Path(__file__).parent.parent / "docs" / "embedding.md"

RUN_PAGE = """
import pathlib, re, shlex, sys
from jaxseg.cli import main
names = {}
blocks = re.findall("```(python|bash)\\n(.*?)```", pathlib.Path(sys.argv[1]).read_text(), re.S)
for kind, code in blocks:
    if kind == "python":
        exec(compile(code, code, "exec"), names)
    else:
        command, *options = shlex.split(code)
        assert command == "jaxseg" and main(options) == 0, code
print(len(blocks), names["jax"].device_count())
"""


def test_the_page_runs_as_printed_on_two_devices(trained, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "cells").symlink_to(trained)
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN_PAGE, str(PAGE)], cwd=tmp_path, capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    blocks = len(re.findall("^```", PAGE.read_text(), re.M)) // 2
    assert done.stdout.splitlines()[-1] == f"{blocks} 2"
    assert {p.name for p in tmp_path.iterdir()} == {
        "runs",
        "cells.stablehlo",
        "apart.stablehlo",
        "apart.stablehlo.safetensors",
        "cells.safetensors",
    }


def test_the_import_takes_no_time_and_no_libraries():
    code = """
import sys, time, jax, flax
before, start = set(sys.modules), time.perf_counter()
import jaxseg
assert time.perf_counter() - start < 0.3
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PATH": ""}, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "jaxseg\n", "")


def test_load_gives_what_was_trained(trained):
    apply, variables, meta = jaxseg.load(str(trained))
    run = load_run(trained)
    assert (meta.class_names, meta.colours, meta.channels) == (run.info.class_names, run.info.colours, run.info.channels)
    assert (meta.step, meta.model, meta.preprocess) == (run.step, run.model, run.description["preprocess"])
    image = np.random.default_rng(0).random((2, 12, 20, meta.channels), np.float32)
    logits = jax.jit(apply)(variables, image)
    assert (logits.shape, logits.dtype) == ((2, 12, 20, len(meta.class_names)), "float32")
    np.testing.assert_array_equal(logits, jax.jit(run.predict)(run.variables, image))


def test_apply_preprocesses(trained):
    apply, variables, meta = jaxseg.load(trained)
    image = np.random.default_rng(0).random((1, 16, 16, meta.channels), np.float32)
    mean, std = (np.asarray(meta.preprocess[k], np.float32) for k in ("mean", "std"))
    by_hand = jax.jit(meta.model.apply)(variables, (image - mean) / std)
    np.testing.assert_allclose(jax.jit(apply)(variables, image), by_hand, rtol=0, atol=1e-5)


def test_no_run_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no run folder"):
        jaxseg.load(tmp_path)
