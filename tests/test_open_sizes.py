"""Operators traced with an open batch, height and width equal themselves at each size, down to a single pixel, and stay slices."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from op_laws import random_array

from jaxseg.errors import InputError
from jaxseg.ops.pooling import flat_indices, max_pool, max_pool_with_indices, max_unpool, window_indices
from jaxseg.ops.prediction import bilinear_kernel, upsample_prediction
from jaxseg.ops.resize import METHODS, resize


def times(scale, method, align_corners=False):
    return lambda x: resize(x, (scale * x.shape[1], scale * x.shape[2]), method, align_corners=align_corners)


def pooled_and_back(x):
    y, indices = max_pool_with_indices(x)
    return max_unpool(y, indices, size=x.shape[1:3])


def positions_and_back(x):
    numbers = ((3, 2), (2, 2), (1, 0))
    indices = max_pool_with_indices(x, *numbers)[1]
    return window_indices(flat_indices(indices, x.shape[1:3], *numbers), x.shape[1:3], *numbers)


CASES = {  # the function, and of what height and width are multiples
    "pooling": (max_pool, 2),
    "pooling of 3 x 3, stride 2": (partial(max_pool, window=3, stride=2, padding=1, ceil_mode=False), 4),
    "its gradient": (jax.grad(lambda x: (max_pool(x) ** 2).sum()), 2),
    "pooling, stride 1": (partial(max_pool, window=3, stride=1, padding=1), 2),
    "unpooling": (pooled_and_back, 2),
    "positions": (positions_and_back, 2),
    **{
        f"{method} x {scale}": (times(scale, method), 1)
        for method in METHODS
        for scale in ((2, 3) if method in ("nearest", "bilinear") else (2,))
    },
    **{f"{method} x 2, corners": (times(2, method, True), 1) for method in ("bilinear", "bicubic")},
    "bilinear x 4, half open": (lambda x: resize(x, (4 * x.shape[1], 12)), 1),
    "prediction": (partial(upsample_prediction, scale=4), 1),
    "its middle": (lambda x: upsample_prediction(x, 2, offset=1, size=x.shape[1:3]), 1),
    "prediction, learned": (lambda x: upsample_prediction(x, 2, kernel=jnp.asarray(bilinear_kernel(2)) ** 2), 1),
}


def exported(function, step):
    image = jax.ShapeDtypeStruct(jax.export.symbolic_shape(f"b, {step}*h, {step}*w, 2"), jnp.float32)
    return jax.export.export(jax.jit(function))(image)


@pytest.mark.parametrize("case", CASES)
def test_an_open_size_equals_each_size(case):
    function, step = CASES[case]
    program = exported(function, step)
    for n, h, w in ((1, step, step), (2, 3 * step, 2 * step)):
        x = random_array(n, h, w, 2, ties=True) + 0.25 * random_array(n, h, w, 1, seed=1)
        np.testing.assert_allclose(program.call(x), jax.jit(function)(x), rtol=1e-5, atol=1e-5, err_msg=str((n, h, w)))


@pytest.mark.parametrize("case", ["pooling", "pooling of 3 x 3, stride 2", "unpooling", "nearest x 2", "prediction"])
def test_open_sizes_need_no_gather(case):
    assert not re.search(r"stablehlo\.(dynamic_)?gather", exported(*CASES[case]).mlir_module())


def test_an_open_size_that_does_not_fit_is_refused():
    with pytest.raises(jax.errors.InconclusiveDimensionOperation):
        exported(max_pool, 1)
    with pytest.raises(InputError, match="required an integer from 1"):
        resize(np.zeros((1, 2, 2, 1), np.float32), ("h", "w"))
