"""Laws of jaxseg.ops.content_aware: equality with loops and torch, selection, bilinearity, derivatives, no gather, no all-gather."""

import functools
import itertools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from op_laws import DTYPES, MOVES, forward_and_backward, hlo_names, needs_torch, random_array

from jaxseg.errors import InputError
from jaxseg.ops.content_aware import carafe

SIZES = [(1, 1), (1, 6), (3, 2), (4, 4), (5, 9), (8, 5)]
SPREAD = [(1, 2, (3, 2)), (3, 1, (5, 9)), (3, 3, (1, 6)), (5, 2, (5, 9)), (7, 2, (3, 2))]
reassemble = jax.jit(carafe, static_argnames="scale")


@functools.partial(jax.jit, static_argnames="scale")
def _with_gradients(x, weights, g, scale=2):
    y, vjp = jax.vjp(functools.partial(carafe, scale=scale), x, weights)
    return y, *vjp(g)


def _nearest(x):
    return np.repeat(np.repeat(x, 2, -3), 2, -2)


def _inputs(k, scale, size, leading=(2,), channels=3, seed=0):
    h, w = size
    return random_array(*leading, h, w, channels, seed=seed), random_array(*leading, scale * h, scale * w, k * k, seed=seed + 1)


def _loops(x, weights, scale):
    """mmcv's kernel (carafe_naive_forward), pixel by pixel."""
    *n, rh, rw, kk = weights.shape
    k = int(kk**0.5)
    y = np.zeros((*n, rh, rw, x.shape[-1]))
    for a, b, i, j in itertools.product(range(rh), range(rw), range(k), range(k)):
        row, column = a // scale + i - k // 2, b // scale + j - k // 2
        if 0 <= row < x.shape[-3] and 0 <= column < x.shape[-2]:
            y[..., a, b, :] += weights[..., a, b, i * k + j, None] * x[..., row, column, :]
    return y


@pytest.mark.parametrize(
    ("k", "scale", "size", "leading"),
    [(1, 3, (2, 3), (2,)), (3, 2, (1, 5), ()), (5, 2, (3, 6), (2, 1, 3)), (5, 1, (6, 1), (2,)), (7, 2, (3, 4), ())],
)
def test_reassembly_equals_the_loops_of_the_official_kernel(k, scale, size, leading):
    x, weights = _inputs(k, scale, size, leading)
    np.testing.assert_allclose(reassemble(x, weights, scale=scale), _loops(x, weights, scale), rtol=1e-5, atol=1e-5)


def _torch_carafe(x, weights, scale):
    import torch

    (n, c, h, w), kk = x.shape, weights.shape[1]
    k = int(kk**0.5)
    patches = torch.nn.functional.unfold(x, k, padding=k // 2).reshape(n, c * kk, h, w)
    patches = torch.nn.functional.interpolate(patches, scale_factor=scale, mode="nearest").reshape(n, c, kk, scale * h, scale * w)
    return (patches * weights[:, None]).sum(2)


def _compare_with_torch(k, scale, size):
    import torch

    x, weights = _inputs(k, scale, size, channels=4)
    g = random_array(*weights.shape[:3], 4, seed=5)
    tx, tw, tg = (torch.tensor(a).permute(0, 3, 1, 2) for a in (x, weights, g))
    tx.requires_grad_(), tw.requires_grad_()
    ty = _torch_carafe(tx, tw, scale)
    ty.backward(tg)
    for ours, theirs in zip(_with_gradients(x, weights, g, scale=scale), (ty.detach(), tx.grad, tw.grad), strict=True):
        np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1), rtol=1e-4, atol=1e-4, err_msg=f"k={k}, scale={scale}, size={size}")


@needs_torch
@pytest.mark.parametrize(("k", "scale", "size"), SPREAD)
def test_values_and_both_gradients_equal_torch(k, scale, size):
    _compare_with_torch(k, scale, size)


@needs_torch
@pytest.mark.slow
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("k", [1, 3, 5, 7])
def test_values_and_both_gradients_equal_torch_in_all_sizes(k, scale):
    for size in SIZES:
        _compare_with_torch(k, scale, size)


def test_one_hot_weights_select_the_neighbour_exactly():
    x, _ = _inputs(5, 2, (6, 7))
    y = random_array(2, 12, 14, 3, seed=2)
    for i, j in itertools.product(range(5), repeat=2):
        weights = np.zeros((2, 12, 14, 25), np.float32)
        weights[..., 5 * i + j] = 1
        shifted = np.pad(x, [(0, 0), (2, 2), (2, 2), (0, 0)])[:, i : i + 6, j : j + 7]
        selected, back, _ = _with_gradients(x, weights, y)
        np.testing.assert_array_equal(selected, _nearest(shifted))
        np.testing.assert_allclose(np.vdot(selected, y), np.vdot(x, back), rtol=1e-4)  # the adjoint shifts back


def test_normalised_kernels_keep_constants_inside_and_equal_ones_are_the_box_filter():
    x, logits = _inputs(5, 2, (7, 8))
    y = np.asarray(reassemble(np.full_like(x, 3), jax.nn.softmax(logits)))
    np.testing.assert_allclose(y[:, 4:-4, 4:-4], 3, rtol=1e-6)
    assert np.all(y[:, :4] < 2.999)  # zeros outside
    box = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 5, 5, 1), (1, 1, 1, 1), "SAME") / 25
    np.testing.assert_allclose(reassemble(x, jax.nn.softmax(0 * logits)), _nearest(box), rtol=1e-5, atol=1e-6)


def test_first_and_second_derivatives_equal_finite_differences():
    with jax.enable_x64(True):
        x, weights = (a.astype(np.float64) for a in _inputs(3, 1, (2, 5), leading=(), channels=2))
        check_grads(functools.partial(reassemble, scale=1), (x, weights), order=2, modes=["fwd", "rev"])


def test_forward_mode_is_the_product_rule_and_hessian_vector_products_are_gradients():
    x, weights = _inputs(3, 2, (3, 5))
    dx, dw = _inputs(3, 2, (3, 5), seed=7)
    _, tangent = jax.jit(lambda *a: jax.jvp(carafe, a[:2], a[2:]))(x, weights, dx, dw)
    np.testing.assert_allclose(tangent, _loops(dx, weights, 2) + _loops(x, dw, 2), rtol=1e-4, atol=1e-4)

    def gradient(x, weights):  # of |y|^2 / 2, which is of degree four
        y, vjp = jax.vjp(carafe, x, weights)
        return vjp(y)

    hvp = jax.jit(lambda *a: jax.jvp(gradient, a[:2], a[2:])[1])(x, weights, dx, dw)
    steps = jax.jit(jax.vmap(lambda s: gradient(x + s * dx, weights + s * dw)))(jnp.array([1.0, -1, 3, -3]))
    for ours, (a, b, c, d) in zip(hvp, steps, strict=True):  # exact for polynomials of degree three
        np.testing.assert_allclose(ours, (27 * (a - b) - (c - d)) / 48, rtol=1e-3, atol=1e-2)


def test_jacobians_of_forward_and_reverse_mode_are_equal():
    x, weights = _inputs(3, 2, (2, 3), leading=(), channels=2)
    for argument in (0, 1):
        columns, rows = (jax.jit(jacobian(carafe, argument))(x, weights) for jacobian in (jax.jacfwd, jax.jacrev))
        np.testing.assert_allclose(columns, rows, atol=1e-6)


@pytest.mark.parametrize("axes", [(1, 3), (None, 0), (0, None)])
def test_vmap_and_vmap_of_grad_equal_loops(axes):
    x, weights = _inputs(3, 2, (3, 5), leading=(2,))
    many = [np.stack([a, -2 * a, a**2], axis or 0) if axis is not None else a for a, axis in zip((x, weights), axes, strict=True)]

    def loss(x, weights):
        return jnp.sum(carafe(x, weights) ** 3)

    for f, out in ((carafe, 0), (jax.grad(loss, (0, 1)), (0, 0))):
        mapped = jax.jit(jax.vmap(f, axes, out))(*many)
        one_by_one = [jax.jit(f)(*(a if axis is None else a.take(i, axis) for a, axis in zip(many, axes, strict=True))) for i in range(3)]
        jax.tree.map(lambda m, *s: np.testing.assert_allclose(m, np.stack(s), rtol=1e-4, atol=1e-3), mapped, *one_by_one)


@DTYPES
def test_sums_are_those_of_float32_in_every_float(dtype):
    x, weights = (jnp.asarray(a, dtype) for a in _inputs(5, 2, (4, 6)))
    g = jnp.asarray(random_array(2, 8, 12, 3, seed=3), dtype)
    wide = _with_gradients(*(a.astype(np.float32) for a in (x, weights, g)))
    for ours, exact in zip(_with_gradients(x, weights, g), wide, strict=True):
        assert ours.dtype == dtype
        np.testing.assert_allclose(ours.astype(np.float32), exact, rtol=float(jnp.finfo(dtype).eps), atol=1e-5)  # one rounding, at the end


def test_reassembly_compiles_without_scatter_and_gather():
    x, weights = (jnp.asarray(a) for a in _inputs(3, 2, (5, 6)))

    def hvp(x, weights):
        return jax.jvp(jax.grad(lambda x, w: jnp.sum(carafe(x, w) ** 2), (0, 1)), (x, weights), (x, weights))

    for f in (forward_and_backward(carafe), hvp):
        seen = hlo_names(f, x, weights)
        assert "multiply" in seen
        assert not seen & MOVES


SHARDED = r"""
import re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxseg.ops.content_aware import carafe

assert jax.device_count() == 8
rows = NamedSharding(Mesh(np.array(jax.devices()), ("rows",)), PartitionSpec(None, "rows"))
draw = np.random.default_rng(0).normal
whole = [draw(size=s).astype(np.float32) for s in [(2, 24, 6, 4), (2, 48, 12, 25), (2, 48, 12, 4)]]

def run(x, weights, g):
    y, vjp = jax.vjp(carafe, x, weights)
    return y, vjp(g)

split = jax.jit(run, in_shardings=rows, out_shardings=rows).lower(*whole).compile()
text = split.as_text()
moves = set(re.findall(r" (all-gather|all-to-all|all-reduce|collective-permute)(?:-start)?\(", text))
assert moves == {"collective-permute"}, moves
for a, b in zip(jax.tree.leaves(split(*[jax.device_put(a, rows) for a in whole])), jax.tree.leaves(run(*whole)), strict=True):
    assert len(a.sharding.device_set) == 8
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
"""


def test_a_sharded_height_exchanges_rows_and_gathers_nothing():
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run([sys.executable, "-c", SHARDED], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_empty_batch_has_empty_gradients():
    gradients = jax.eval_shape(jax.grad(lambda x, w: carafe(x, w).sum(), (0, 1)), _zeros(0, 2, 3, 4), _zeros(0, 4, 6, 9))
    assert [g.shape for g in gradients] == [(0, 2, 3, 4), (0, 4, 6, 9)]


def _zeros(*shape):
    return jnp.zeros(shape)


@pytest.mark.parametrize(
    ("call", "got", "advice"),
    [
        (lambda: carafe(_zeros(4, 4), _zeros(8, 8, 9)), "carafe: got shape (4, 4)", "Add the missing axes"),
        (lambda: carafe(_zeros(2, 3, 1), _zeros(4, 6, 16)), "weights of shape (4, 6, 16) for input (2, 3, 1)", "k odd"),
        (lambda: carafe(_zeros(2, 3, 1), _zeros(4, 6, 8)), "required (4, 6, 'k*k')", "permute(0, 2, 3, 1)"),
        (lambda: carafe(_zeros(2, 3, 1), _zeros(4, 6, 9), 3), "and scale 3; required (6, 9, 'k*k')", "permute"),
        (lambda: carafe(_zeros(5, 2, 3, 1), _zeros(4, 6, 9)), "required (5, 4, 6, 'k*k')", "permute"),
        (lambda: carafe(_zeros(2, 3, 1), _zeros()), "got weights of shape ()", "permute"),
        (lambda: carafe(_zeros(2, 3, 1), _zeros(0, 0, 9), 0), "got scale 0", "factor of enlargement"),
        (lambda: carafe(_zeros(2, 3, 1), _zeros(4, 6, 9), 2.0), "got scale 2.0; required an integer", "factor of enlargement"),
        (lambda: carafe(_zeros(2, 3, 1).astype(int), _zeros(4, 6, 9)), "carafe: got int32; required floating", "astype"),
    ],
)
def test_errors_say_what_was_got_and_what_to_do(call, got, advice):
    with pytest.raises(InputError) as error:
        call()
    assert got in str(error.value)
    assert advice in str(error.value)


def test_carafe_works_in_shard_map():
    x, weights = random_array(2, 4, 4, 2), random_array(2, 8, 8, 9, seed=1)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")

    def loss(x, weights):
        return (carafe(x, weights) ** 2).sum()

    summed = jax.grad(lambda x, w: jax.lax.psum(loss(x, w), "data"), (0, 1))
    mapped = jax.shard_map(summed, mesh=mesh, in_specs=(spec, spec), out_specs=(spec, spec))
    both = zip(jax.jit(mapped)(x, weights), jax.grad(loss, (0, 1))(x, weights), strict=True)
    for got, expected in both:
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
