"""Laws of the upper bounds by output stride, and FCN's issue's five figures on CamVid."""

import importlib.util
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.errors import InputError

FILE = Path(__file__).parents[1] / "benchmarks" / "fcn_upper_bounds.py"
spec = importlib.util.spec_from_file_location("fcn_upper_bounds", FILE)
assert spec is not None
assert spec.loader is not None
fcn_upper_bounds = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fcn_upper_bounds)
coarsen, confusion, bounds = fcn_upper_bounds.coarsen, fcn_upper_bounds.confusion, fcn_upper_bounds.bounds


def _label(*shape, classes=4, seed=0):
    return np.random.default_rng(seed).integers(0, classes, shape).astype(np.int32)


@pytest.mark.parametrize("stride", [1, 2, 3, 8])
def test_every_cell_has_the_label_of_its_centre(stride):
    label = _label(2, 29, 36, classes=200)
    rows, columns = (np.arange(n) // stride * stride + stride // 2 for n in label.shape[1:])
    rows, columns = (np.where(i < n, i, i - stride) for i, n in zip((rows, columns), label.shape[1:], strict=True))
    np.testing.assert_array_equal(coarsen(jnp.asarray(label), stride), label[:, rows][:, :, columns])


def test_labels_that_are_constant_in_the_cells_lose_nothing():
    cells = _label(1, 5, 7).repeat(4, 1).repeat(4, 2)
    for stride in (1, 2, 4):
        assert bounds(np.asarray(confusion(cells, stride, 4))) == (1, 1)
    assert max(bounds(np.asarray(confusion(cells, 8, 4)))) < 0.8


def test_void():
    label = np.full((1, 2, 6), 255, np.int32)
    label[0, 1] = 0, 0, 1, 255, 2, 2  # centres at row 1 and the odd columns
    label[0, 0] = 0, 255, 1, 1, 2, 255
    counts = np.asarray(confusion(label, 2, 3))
    np.testing.assert_array_equal(counts, [[3, 0, 0, 0], [0, 0, 0, 3], [0, 0, 3, 0], [0, 0, 0, 0]])
    named, own = bounds(counts)
    assert named == pytest.approx((1 + 0 + 3 / 6) / 3)
    assert own == pytest.approx((1 + 0 + 1) / 3)


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="missing"):
        fcn_upper_bounds.main(tmp_path)


def test_the_figures_of_camvids_training_labels(capsys):
    root = os.environ.get("JAXSEG_TEST_DATA")
    if root is None:
        pytest.skip("JAXSEG_TEST_DATA is not set: the folder with camvid is needed")
    fcn_upper_bounds.main(Path(root) / "camvid")
    printed = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    assert [(int(stride), float(score)) for stride, score, _ in printed] == [(2, 87.4), (4, 81.5), (8, 73.3), (16, 63.7), (32, 52.6)]
