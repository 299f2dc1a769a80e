"""Every model trains by `jaxseg train` and learns: minutes each, in make test-all. benchmarks/models_on_cells.py prints the table."""

import runpy
from pathlib import Path

import pytest

from jaxseg.models import MODELS

SCRIPT = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "models_on_cells.py"))
FLOOR = {"heatmap": 0.5, "conv_only": 0.5, "fcn": 0.5, "fcn_resnet": 0.5}
"""mIoU to be reached; all background has 0.25, Otsu's threshold 0.59. These have coarse maps or small fields."""


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    SCRIPT["prepare"](folder / "data")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_model_learns_the_cells(name, out):
    assert SCRIPT["learn"](name, out, SCRIPT["STEPS"])["miou"] >= FLOOR.get(name, 0.75)
