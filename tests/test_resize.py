"""Laws of jaxseg.ops.resize: equality with torch and jax.image, constants, ramps and parabolas, where nan stays, what XLA is given."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from op_laws import DTYPES, LEADING, MOVES, forward_and_backward, hlo_names, needs_torch, random_array

from jaxseg.errors import InputError
from jaxseg.ops.resize import METHODS, NEAREST, phases, resize, weighted_sum

INTERPOLATION = METHODS[len(NEAREST) :]
SIZES = [
    ((4, 6), (8, 12)),
    ((3, 5), (9, 15)),
    ((3, 2), (12, 16)),
    ((2, 3), (16, 18)),
    ((2, 1), (32, 5)),  # products of small matrices
    ((3, 4), (48, 64)),
    ((6, 4), (9, 10)),
    ((17, 3), (33, 5)),
    ((3, 17), (5, 33)),
    ((8, 9), (7, 11)),
    ((23, 8), (27, 8)),
    ((11, 10), (7, 13)),
    ((5, 7), (5, 7)),
    ((5, 7), (5, 12)),
    ((1, 1), (4, 5)),
    ((1, 6), (7, 3)),
    ((4, 1), (1, 3)),
    ((5, 6), (1, 1)),
    ((2, 2), (3, 7)),
    ((8, 12), (4, 6)),
    ((12, 9), (3, 3)),
    ((15, 10), (10, 6)),
    ((16, 9), (15, 2)),
    ((20, 13), (3, 4)),
]
KINDS = [(m, False) for m in METHODS] + [(m, True) for m in INTERPOLATION]
TORCH = {"nearest": "nearest", "nearest_exact": "nearest-exact", "bilinear": "bilinear", "bicubic_torch": "bicubic"}
JAX = {"nearest_exact": "nearest", "bilinear": "bilinear", "bicubic": "cubic", "bicubic_torch": "cubic-pytorch"}
TORCH_CASES = [(*kind, *size) for size, kind in itertools.product(SIZES, KINDS) if kind[0] in TORCH]
JAX_CASES = [(method, *size) for size, method in itertools.product(SIZES, JAX)]
# One of each way that an axis can go: repeated, selected, summed, multiplied, reduced.
WAYS = [("nearest", (6, 8)), ("nearest", (5, 7)), ("bilinear", (6, 7)), ("bicubic", (36, 5)), ("bicubic_torch", (2, 3))]
PIXELS = {"nearest": lambda o, n, m: o * n // m, "nearest_exact": lambda o, n, m: (2 * o + 1) * n // (2 * m)}


def _close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * max(1, float(np.abs(expected).max())))


def _value_and_gradient(f, x):
    y, vjp = jax.vjp(f, x)
    g = random_array(*y.shape, seed=1)
    return y, g, vjp(g)[0]


def _equals_torch(method, align_corners, old, new):
    import torch

    x = random_array(2, *old, 3)
    y, g, gradient = _value_and_gradient(lambda x: resize(x, new, method, align_corners=align_corners), x)
    tx = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_()
    corners = {} if method in NEAREST else {"align_corners": align_corners}
    ty = torch.nn.functional.interpolate(tx, size=new, mode=TORCH[method], **corners)
    ty.backward(torch.tensor(g).permute(0, 3, 1, 2))
    _close(y, ty.detach().permute(0, 2, 3, 1).numpy())
    _close(gradient, tx.grad.permute(0, 2, 3, 1).numpy())


@needs_torch
@pytest.mark.parametrize("case", TORCH_CASES[::9] + [("nearest", False, (17, 3), (33, 5))], ids=str)
def test_resizing_equals_torch(case):
    _equals_torch(*case)


@needs_torch
@pytest.mark.slow
def test_resizing_equals_torch_everywhere():
    assert len(TORCH_CASES) > 100
    for case in TORCH_CASES:
        _equals_torch(*case)


def _equals_jax(method, old, new):
    x = random_array(2, *old, 3)
    y, g, gradient = _value_and_gradient(lambda x: resize(x, new, method), x)
    expected, vjp = jax.vjp(lambda x: jax.image.resize(x, (2, *new, 3), JAX[method], antialias=False), x)
    _close(y, expected)
    _close(gradient, vjp(g)[0])


@pytest.mark.parametrize("case", JAX_CASES[::9], ids=str)
def test_resizing_equals_jax_image_resize(case):
    _equals_jax(*case)


@pytest.mark.slow
def test_resizing_equals_jax_image_resize_everywhere():
    for case in JAX_CASES:
        _equals_jax(*case)


@pytest.mark.parametrize(("old", "new"), [((5, 6), (10, 12)), ((9, 4), (4, 9))])
def test_bicubic_with_aligned_corners_equals_scale_and_translate(old, new):
    x = random_array(2, *old, 3)
    scale = (np.array(new) - 1) / (np.array(old) - 1)
    where = (jnp.asarray(scale, jnp.float32), jnp.asarray((1 - scale) / 2, jnp.float32))
    expected = jax.image.scale_and_translate(x, (2, *new, 3), (1, 2), *where, method="cubic", antialias=False)
    _close(resize(x, new, "bicubic", align_corners=True), expected)


@pytest.mark.parametrize("method", NEAREST)
@pytest.mark.parametrize(("old", "new"), [(3, 5), (17, 33), (9, 7), (6, 98), (31, 12), (100, 150), (127, 150)])
def test_nearest_takes_the_pixel_of_its_definition_of_any_type(method, old, new):
    pixels = PIXELS[method](np.arange(new), old, new)
    label = np.arange(2 * old, dtype=np.int32).reshape(old, 2, 1)
    np.testing.assert_array_equal(resize(label, (new, 2), method), label[pixels])
    np.testing.assert_array_equal(resize(label.swapaxes(0, 1) % 2 == 1, (2, new), method), label.swapaxes(0, 1)[:, pixels] % 2 == 1)


def test_any_sparse_map_is_the_same_in_blocks():
    r = np.random.default_rng(0)
    for old, new in [(7, 7), (5, 12), (12, 5), (2, 50), (13, 3), (9, 10), (30, 17)]:
        index, weight = r.integers(0, old, (new, 3)), r.integers(-3, 4, (new, 3)) * 1.0
        matrix = np.zeros((new, old))
        np.add.at(matrix, (np.arange(new)[:, None], index), weight)
        map_ = phases(index, weight, old)
        for some in (map_, map_._replace(weights=dict(itertools.islice(map_.weights.items(), 7)))):  # multiplied, summed
            x = np.eye(old, dtype=np.float32)
            y = np.asarray(jax.jit(weighted_sum, static_argnums=1)(x[:, None], -3, some))[:, 0] if 0 else weighted_sum(x[:, None], -3, some)[:, 0]
            if some is map_:
                np.testing.assert_array_equal(y, matrix)
            np.testing.assert_array_equal(weighted_sum(x[None], -2, some)[0], y)
