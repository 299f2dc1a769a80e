"""What the tests of the operators share: arrays, parametrisations, and what XLA is given to compile."""

import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

DTYPES = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
LEADING = pytest.mark.parametrize("leading", [(), (2,), (2, 1, 3)])
MOVES = {"scatter", "select_and_scatter", "gather", "dynamic_slice", "dynamic_gather", "dynamic_update_slice"}
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed (pip install -e .[parity]): nothing is compared with torch"
)


def spread(firsts, seconds):
    """All pairs; quick are those with every first and every second once, or as often as the shorter list goes into the longer."""
    n = min(len(firsts), len(seconds))
    quick = ((i % n == j % n, a, b) for i, a in enumerate(firsts) for j, b in enumerate(seconds))
    return [pytest.param(a, b, marks=() if now else pytest.mark.slow) for now, a, b in quick]


def random_array(*shape, seed=0, ties=False):
    r = np.random.default_rng(seed)
    return np.asarray(r.integers(-1, 2, shape) if ties else r.normal(size=shape), np.float32)


def hlo_names(f, *args):
    """Names of the operations that XLA is given and of those it makes of them."""
    given = re.findall(r'stablehlo\.(\w+)|"stablehlo\.(\w+)"', jax.jit(f).lower(*args).as_text())
    return {a or b for a, b in given} | compiled_names(f, *args)


def compiled_names(f, *args):
    """Names of the operations that XLA makes."""
    made = re.findall(r"= [^=]*?\b([a-z][a-z0-9-]*)\(", jax.jit(f).lower(*args).compile().as_text())
    return {name.replace("-", "_") for name in made}


def forward_and_backward(f):
    """f and its gradient in all its floating arguments."""

    def both(*args):
        y, vjp = jax.vjp(f, *args)
        return y, vjp(y)

    return both


def check_linear_map(f, x, v):
    """Forward, reverse and second derivatives of f along v, and vmap, on batches x and v of two."""

    def energy(x):
        return (f(x) ** 3).sum() / 6

    @jax.jit
    def derivatives(x, v):
        hvp = jax.jvp(jax.grad(energy), (x[0],), (v[0],))[1]
        return jax.jvp(f, (x,), (v,))[1], jax.jacfwd(f)(x[0]), jax.jacrev(f)(x[0]), hvp, jax.grad(energy)(x), jax.vmap(jax.grad(energy))(x)

    df, forward, reverse, hvp, gradient, mapped = derivatives(x, v)
    np.testing.assert_allclose(df, f(v), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(forward, reverse, rtol=1e-6, atol=1e-7)
    matrix = np.asarray(forward).reshape(-1, x[0].size)
    hessian = matrix.T @ (np.asarray(f(x)[0]).reshape(-1, 1) * matrix)
    np.testing.assert_allclose(hvp.ravel(), hessian @ v[0].ravel(), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(mapped, gradient, rtol=1e-5, atol=1e-5)
