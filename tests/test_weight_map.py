"""border_weight_map equals eq. 2 of the U-Net paper computed the long way."""

import time

import numpy as np
import pytest

from jaxseg.errors import InputError
from jaxseg.weight_map import border_weight_map


def _brute_force(instances, w0, sigma):
    numbers = [k for k in np.unique(instances) if k]
    weight = np.ones(instances.shape)
    points = [np.argwhere(instances == k) for k in numbers]
    for y, x in np.argwhere(instances == 0):
        d = sorted(np.sqrt(((p - (y, x)) ** 2).sum(1)).min() for p in points)
        if len(d) >= 2:
            weight[y, x] += w0 * np.exp(-((d[0] + d[1]) ** 2) / (2 * sigma**2))
    return weight


def _cells(seed, size, number, numbers_start=1):
    """Random discs, later ones over earlier ones, some touching, some split in two."""
    r = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    instances = np.zeros((size, size), np.int32)
    for k in range(number):
        cy, cx, radius = (*r.integers(0, size, 2), r.integers(2, max(3, size // 10)))
        instances[(y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = numbers_start + 3 * k
    return instances


@pytest.mark.parametrize(("w0", "sigma"), [(10.0, 5.0), (10.0, 1.5), (3.0, 20.0)])
@pytest.mark.parametrize("number", [0, 1, 2, 9])
def test_equals_the_definition(w0, sigma, number):
    instances = _cells(number, 40, number)
    np.testing.assert_allclose(border_weight_map(instances, w0=w0, sigma=sigma), _brute_force(instances, w0, sigma), atol=1e-6)


def test_two_cells_one_pixel_apart():
    instances = np.zeros((5, 7), np.int32)
    instances[:, :3], instances[:, 4:] = 7, 2
    weight = border_weight_map(instances)
    np.testing.assert_allclose(weight[:, 3], 1 + 10 * np.exp(-4 / 50), rtol=1e-6)
    np.testing.assert_array_equal(weight[instances > 0], 1)
    assert weight.dtype == np.float32


def test_permuting_or_transposing_the_instances_changes_nothing():
    instances = _cells(4, 50, 8)
    weight = border_weight_map(instances)
    np.testing.assert_array_equal(border_weight_map(np.where(instances > 0, 1000 - instances, 0)), weight)
    np.testing.assert_allclose(border_weight_map(instances.T.copy()).T, weight, rtol=1e-6)


def test_class_weights_and_ignored_pixels():
    instances = _cells(4, 50, 8)
    border = border_weight_map(instances) - 1
    by_instance = border_weight_map(instances, class_weights=[0.5, 2.0])
    np.testing.assert_allclose(by_instance, border + np.where(instances > 0, 2.0, 0.5), atol=1e-6)
    label = np.where(instances > 0, 2, 1)
    label[0] = 255
    by_label = border_weight_map(instances, class_weights=[9.0, 0.5, 2.0], label=label)
    np.testing.assert_allclose(by_label[1:], by_instance[1:], atol=1e-6)
    np.testing.assert_array_equal(by_label[0], 0)


def test_wrong_input_is_refused():
    instances = _cells(4, 20, 3)
    for args, kwargs in (
        ((instances[None],), {}),
        ((instances.astype(np.float32),), {}),
        ((instances,), {"label": instances[:10]}),
        ((instances,), {"sigma": 0.0}),
        ((instances,), {"class_weights": [1.0]}),
        ((instances,), {"class_weights": [1.0, 2.0], "label": np.full_like(instances, -1)}),
    ):
        with pytest.raises(InputError, match="border_weight_map"):
            border_weight_map(*args, **kwargs)


def test_300_instances_of_512x512_are_quick():
    instances = _cells(0, 512, 300)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        border_weight_map(instances)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1.0  # 0.1 to 0.2 s on an idle core; one transform of the whole image for each instance takes over 3 s
