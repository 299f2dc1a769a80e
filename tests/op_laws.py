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


def random_array(*shape, seed=0, ties=False):
    r = np.random.default_rng(seed)
    return np.asarray(r.integers(-1, 2, shape) if ties else r.normal(size=shape), np.float32)


def hlo_names(f, *args):
    """Names of the operations that XLA is given and of those it makes of them."""
    lowered = jax.jit(f).lower(*args)
    given = re.findall(r'stablehlo\.(\w+)|"stablehlo\.(\w+)"', lowered.as_text())
    made = re.findall(r"= [^=]*?\b([a-z][a-z0-9-]*)\(", lowered.compile().as_text())
    return {a or b for a, b in given} | {name.replace("-", "_") for name in made}


def forward_and_backward(f):
    """f and its gradient in all its floating arguments."""

    def both(*args):
        y, vjp = jax.vjp(f, *args)
        return y, vjp(y)

    return both
