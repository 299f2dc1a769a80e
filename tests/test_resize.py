"""Laws of jaxseg.ops.resize: equality with torch and jax.image, constants, ramps and parabolas, where nan stays, what XLA is given."""

import itertools
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from op_laws import DTYPES, LEADING, MOVES, check_linear_map, forward_and_backward, hlo_names, needs_torch, random_array

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
WAYS = [
    ("nearest", (6, 8)),
    ("nearest", (5, 7)),
    ("bilinear", (6, 8)),
    ("bilinear", (6, 7)),
    ("bicubic", (36, 5)),
    ("bicubic_torch", (2, 3)),
]
PIXELS = {"nearest": lambda o, n, m: o * n // m, "nearest_exact": lambda o, n, m: (2 * o + 1) * n // (2 * m)}


def _close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * max(1, float(np.abs(expected).max())))


def _value_and_gradient(f, x, g):
    y, vjp = jax.vjp(f, x)
    return y, vjp(g)[0]


def _equals_torch(method, align_corners, old, new):
    import torch

    x, g = random_array(2, *old, 3), random_array(2, *new, 3, seed=1)
    tx = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_()
    corners = {} if method in NEAREST else {"align_corners": align_corners}
    ty = torch.nn.functional.interpolate(tx, size=new, mode=TORCH[method], **corners)
    ty.backward(torch.tensor(g).permute(0, 3, 1, 2))
    ours = jax.jit(lambda x, g: _value_and_gradient(lambda x: resize(x, new, method, align_corners=align_corners), x, g))
    for got, expected in zip(ours(x, g), (ty.detach(), tx.grad), strict=True):
        _close(got, expected.permute(0, 2, 3, 1).numpy())


@needs_torch
@pytest.mark.parametrize("case", TORCH_CASES[::17], ids=str)
def test_resizing_equals_torch(case):
    _equals_torch(*case)


@needs_torch
@pytest.mark.slow
def test_resizing_equals_torch_everywhere():
    assert len(TORCH_CASES) > 100
    for case in TORCH_CASES:
        _equals_torch(*case)


def _equals_jax(method, old, new):
    def ours(x):
        return resize(x, new, method)

    def theirs(x):
        return jax.image.resize(x, (2, *new, 3), JAX[method], antialias=False)

    x, g = random_array(2, *old, 3), random_array(2, *new, 3, seed=1)
    both = jax.jit(lambda x, g: [_value_and_gradient(f, x, g) for f in (ours, theirs)])
    for got, expected in zip(*both(x, g), strict=True):
        _close(got, expected)


@pytest.mark.parametrize("case", JAX_CASES[::17], ids=str)
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

    @jax.jit
    def both(x):
        theirs = jax.image.scale_and_translate(x, (2, *new, 3), (1, 2), *where, method="cubic", antialias=False)
        return resize(x, new, "bicubic", align_corners=True), theirs

    _close(*both(x))


@pytest.mark.parametrize("method", NEAREST)
@pytest.mark.parametrize(("old", "new"), [(3, 5), (17, 33), (9, 7), (6, 98), (127, 150)])
def test_nearest_takes_the_pixel_of_its_definition_of_any_type(method, old, new):
    pixels = PIXELS[method](np.arange(new), old, new)
    label = np.arange(2 * old, dtype=np.int32).reshape(old, 2, 1)
    rows, columns = jax.jit(lambda x: (resize(x, (new, 2), method), resize(x.swapaxes(0, 1) % 2 == 1, (2, new), method)))(label)
    np.testing.assert_array_equal(rows, label[pixels])
    np.testing.assert_array_equal(columns, label.swapaxes(0, 1)[:, pixels] % 2 == 1)


@pytest.mark.parametrize(
    ("most_terms", "sizes", "dots"),
    [(0, [(7, 28), (3, 40)], 2), (1000, [(7, 7), (20, 48), (48, 20), (40, 44)], 0)],
    ids=["multiplied", "summed"],
)
def test_any_sparse_map_is_the_same_in_blocks(most_terms, sizes, dots, monkeypatch):
    monkeypatch.setattr(sys.modules["jaxseg.ops.resize"], "MOST_TERMS", most_terms)
    r = np.random.default_rng(0)
    for old, new in sizes:
        index = np.clip(np.arange(new)[:, None] * old // new + np.arange(-1, 2), 0, old - 1)
        weight = r.integers(1, 4, (new, 3)) * 1.0
        matrix = np.zeros((new, old))
        np.add.at(matrix, (np.arange(new)[:, None], index), weight)
        map_, identity = phases(index, weight, old), np.eye(old, dtype=np.float32)
        f = jax.jit(lambda x, m=map_: (weighted_sum(x[:, None], m, None), weighted_sum(x[None], None, m)))
        rows, columns = f(identity)
        np.testing.assert_array_equal(rows[:, 0], matrix)
        np.testing.assert_array_equal(columns[0], matrix)
        assert str(f.trace(identity).jaxpr).count("dot_general") == dots


def test_both_axes_at_once_are_one_after_the_other(monkeypatch):
    x, size = random_array(2, 5, 6, 3), (10, 12)

    def f(x):
        y = resize(x, size)
        return y, jax.grad(lambda x: (resize(x, size) ** 3).sum())(x)

    once = jax.jit(f)(x)
    monkeypatch.setattr(sys.modules["jaxseg.ops.resize"], "AT_ONCE", 0)
    for a, b in zip(once, jax.jit(lambda x: f(x))(x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(68, 68, 64), (97, 43, 3), (64, 64, 16), (211, 97, 24)])
def test_bilinear_twice_as_large_rounds_alike_in_images_of_any_shape(shape):
    double = jax.jit(lambda x: resize(x, (2 * x.shape[0], 2 * x.shape[1])))
    image = random_array(*shape)
    whole = np.asarray(double(image))
    for h, w in ((17, 20), (26, 26), (31, 13), (12, 40)):
        part = np.asarray(double(image[2 : 2 + h, 3 : 3 + w]))
        np.testing.assert_array_equal(part[1:-1, 1:-1], whole[5 : 3 + 2 * h, 7 : 5 + 2 * w])


@pytest.mark.parametrize("new", [(10, 14), (10, 4)])
@pytest.mark.parametrize("barriers", [False, True])
def test_the_derivative_is_the_map_itself_whichever_way_it_is_written(barriers, new, monkeypatch):
    monkeypatch.setattr(sys.modules["jaxseg.ops.resize"], "BARRIERS", barriers)
    x, v = random_array(2, 2, 5, 7, 3)
    check_linear_map(lambda x: resize(x, new), x, v)


@DTYPES
def test_constants_stay_and_the_type_too(dtype):
    cases = list(itertools.product(KINDS, [6, 7, 48]))
    x = jnp.full((3, 1, 2), 3, dtype)
    for ((method, aligned), new), y in zip(
        cases, jax.jit(lambda x: [resize(x, (n, 1), m, align_corners=a) for (m, a), n in cases])(x), strict=True
    ):
        assert y.shape == (new, 1, 2)
        assert y.dtype == dtype
        power_of_two = new in (6, 48) and not aligned and method != "bicubic"  # the weights have few bits
        exact = dtype != jnp.float32 or method in NEAREST or power_of_two
        np.testing.assert_allclose(np.asarray(y, np.float32), 3, rtol=0 if exact else 3e-7)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_short_floats_are_rounded_once(dtype):
    x = jnp.asarray(random_array(3, 4, 2), dtype)
    f = jax.jit(lambda x: [resize(x, new, method) for method, new in WAYS])
    for got, expected in zip(f(x), f(x.astype(jnp.float32)), strict=True):
        np.testing.assert_array_equal(got, expected.astype(dtype))


def _polynomial(size, old, align_corners, quadratic):
    """A polynomial at the pixel centres of an image of `size`, in units of the pixels of `old`."""
    row, column = (
        np.arange(n) * (m - 1) / (n - 1) if align_corners else (np.arange(n) + 0.5) * m / n - 0.5 for n, m in zip(size, old, strict=True)
    )
    row = row[:, None]
    return np.asarray(3 * row - 2 * column + 1 + quadratic * (row**2 / 8 - row * column / 4), np.float32)[..., None]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("new", [(14, 16), (21, 11), (9, 5)])
def test_inside_lines_stay_lines_and_with_keys_parabolas_too(new, align_corners):
    old = 7, 8
    images = [_polynomial(old, old, align_corners, method == "bicubic") for method in INTERPOLATION]
    f = jax.jit(lambda xs: [resize(x, new, m, align_corners=align_corners) for x, m in zip(xs, INTERPOLATION, strict=True)])
    for method, y in zip(INTERPOLATION, f(images), strict=True):
        expected = _polynomial(new, old, align_corners, method == "bicubic")
        row, column = (2 * -(-n // m) for n, m in zip(new, old, strict=True))
        if method == "bicubic_torch":  # a = -3/4 does not even reproduce lines
            assert np.abs(y - expected)[row:-row, column:-column].max() > 1e-2 or new == (9, 5)
        elif method == "bilinear" and align_corners:
            np.testing.assert_allclose(y, expected, atol=2e-5)
        else:
            np.testing.assert_allclose(y[row:-row, column:-column], expected[row:-row, column:-column], atol=2e-5)


def test_every_new_pixel_hands_a_weight_of_one_back():
    def total(x, method, align_corners):
        return resize(x, (7, 12), method, align_corners=align_corners).sum()

    for gradient in jax.jit(lambda x: [jax.grad(total)(x, *kind) for kind in KINDS])(jnp.ones((5, 6, 2))):
        np.testing.assert_allclose(gradient.sum((0, 1)), 7 * 12, rtol=1e-6)


@pytest.mark.parametrize(
    ("method", "new"),
    [
        ("nearest", (13, 8)),
        ("nearest_exact", (4, 3)),
        ("nearest", (12, 10)),
        ("bilinear", (12, 20)),
        ("bilinear", (12, 10)),
        ("bilinear", (12, 2)),
    ],
)
def test_nan_and_infinity_stay_within_their_footprints(method, new):
    f = jax.jit(partial(resize, size=new, method=method))
    for row, column in [(0, 0), (2, 3), (5, 4)]:
        mark = np.zeros((6, 5, 1), np.float32)
        mark[row, column] = 1
        touched = np.asarray(f(mark)) > 0
        np.testing.assert_array_equal(np.isnan(f(np.where(mark, np.float32(np.nan), mark))), touched)
        np.testing.assert_array_equal(np.isposinf(f(np.where(mark, np.float32(np.inf), mark))), touched)


@LEADING
def test_any_leading_axes_and_vmap(leading):
    x = random_array(*leading, 3, 4, 2)
    for method, new in WAYS[1:5]:
        f = jax.jit(partial(resize, size=new, method=method))
        y = f(x)
        each = [f(image) for image in x.reshape(-1, 3, 4, 2)]
        np.testing.assert_allclose(y.reshape(-1, *new, 2), each, rtol=1e-6, atol=1e-6)
        if leading:
            np.testing.assert_allclose(jax.jit(jax.vmap(f))(x), y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("method", "new"), WAYS)
def test_forward_reverse_and_second_derivatives(method, new):
    x, v = random_array(2, 3, 4, 1), random_array(2, 3, 4, 1, seed=1)
    f = jax.jit(partial(resize, size=new, method=method))
    check_linear_map(f, x, v)


@pytest.mark.parametrize(("method", "new"), [("nearest", (3, 4)), ("bilinear", (2, 5)), ("bicubic", (24, 2))])
def test_derivatives_equal_finite_differences(method, new):
    f = jax.jit(lambda x: resize(x, new, method) ** 2)
    with jax.enable_x64(True):
        check_grads(f, (random_array(2, 2, 1).astype(np.float64),), order=2)


@pytest.mark.parametrize(
    ("method", "new", "align_corners"),
    [
        ("nearest", (12, 10), False),
        ("nearest_exact", (3, 10), False),
        ("bilinear", (8, 10), False),
        ("bilinear", (8, 10), True),
        ("bilinear", (32, 40), False),
        ("bilinear", (2, 5), False),
        ("bicubic", (16, 20), False),
        ("bicubic_torch", (8, 10), False),
    ],
)
def test_integer_factors_compile_without_gather_scatter_and_dot(method, new, align_corners):
    seen = hlo_names(forward_and_backward(lambda x: resize(x, new, method, align_corners=align_corners)), jnp.ones((4, 5, 3)))
    assert "slice" in seen  # it does read something
    assert not seen & (MOVES | {"dot", "dot_general", "convolution", "custom_call"})


@pytest.mark.parametrize(("method", "new"), [("nearest", (7, 4)), ("bilinear", (7, 4)), ("bicubic", (64, 3))])
def test_no_size_compiles_to_gather_or_scatter(method, new):
    assert not hlo_names(forward_and_backward(lambda x: resize(x, new, method)), jnp.ones((4, 5, 3))) & MOVES


def test_one_number_is_both_and_numpys_are_numbers():
    x = random_array(4, 4, 3)
    for size in (8, np.int64(8), (np.int32(8), 8), np.array([8, 8])):
        np.testing.assert_array_equal(resize(x, size), resize(x, (8, 8)))


@pytest.mark.parametrize(
    ("call", "got", "advice"),
    [
        (lambda x: resize(x[0], (2, 2)), "resize: got shape (4, 3)", "Add the missing axes"),
        (lambda x: resize(x, (2, 2), "cubic"), "got method 'cubic'", "nearest, nearest_exact, bilinear, bicubic, bicubic_torch"),
        (lambda x: resize(x, (2, 0)), "got size (2, 0)", "an integer from 1"),
        (lambda x: resize(x, (2, 2, 3)), "got size (2, 2, 3)", "an integer from 1"),
        (lambda x: resize(x, (2.5, 2)), "got size (2.5, 2)", "an integer from 1"),
        (lambda x: resize(x, (True, 2)), "got size (True, 2)", "an integer from 1"),
        (lambda x: resize(x[:0], (2, 2)), "got shape (0, 4, 3)", "from one pixel on"),
        (lambda x: resize(x, (2, 2), "nearest", align_corners=True), "align_corners=True with method 'nearest'", "Leave it out"),
        (lambda x: resize(x.astype(int), (2, 2)), "got int32; required floating", "take 'nearest' for labels"),
    ],
)
def test_errors_say_what_was_got_and_what_to_do(call, got, advice):
    with pytest.raises(InputError) as error:
        call(jnp.zeros((4, 4, 3)))
    assert got in str(error.value)
    assert advice in str(error.value)
