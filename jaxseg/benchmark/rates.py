"""What this machine can do at all: a matrix product, a 3x3 convolution and a copy, the yardsticks of every other figure."""

import dataclasses
import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

MATMUL = 1024
"""Side of the two square matrices."""
CONV = (4, 64, 64, 64)
"""Image of the 3x3 convolution, 64 -> 64 channels."""
COPY = 1 << 24
"""Numbers that are read and written: more than caches hold."""


@dataclasses.dataclass(frozen=True)
class Rates:
    """Measured rates of this machine in one type of numbers."""

    matmul_gflops: float
    conv_gflops: float
    copy_gbs: float


def machine_rates(dtype: str = "float32", *, budget_s: float = 0.3) -> Rates:
    """The rates now: the median of at least 3 steps each, in about `budget_s` seconds in all.

    Measured beside every case, so that what else the machine does at the time slows the yardstick too.
    """
    matmul, conv, copy = (_median_s(call, budget_s / 3) for call in _programs(dtype))
    conv_flops = 2 * np.prod(CONV) * 9 * CONV[-1]
    return Rates(
        matmul_gflops=2 * MATMUL**3 / matmul / 1e9,
        conv_gflops=float(conv_flops / conv / 1e9),
        copy_gbs=2 * COPY * jnp.dtype(dtype).itemsize / copy / 1e9,
    )


def _median_s(call: Callable[[], jax.Array], budget_s: float) -> float:
    times: list[float] = []
    while len(times) < 3 or sum(times) < budget_s:
        begun = time.perf_counter()
        call().block_until_ready()
        times.append(time.perf_counter() - begun)
    return float(np.median(times))


@functools.lru_cache(maxsize=2)
def _programs(dtype: str) -> tuple[Callable[[], jax.Array], ...]:
    matrix = jnp.ones((MATMUL, MATMUL), dtype)
    image, kernel = jnp.ones(CONV, dtype), jnp.ones((3, 3, CONV[-1], CONV[-1]), dtype)
    conv = functools.partial(lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    calls = _compiled(jnp.matmul, matrix, matrix), _compiled(conv, image, kernel), _copier(dtype)
    for call in calls:
        call().block_until_ready()
    return calls


def _compiled(f: Callable[..., jax.Array], *args: jax.Array) -> Callable[[], jax.Array]:
    return functools.partial(jax.jit(f).lower(*args).compile(), *args)


def _copier(dtype: str) -> Callable[[], jax.Array]:
    """In place, for a fresh result of this size would measure how fast the system hands out pages."""
    row = [jnp.ones(COPY, dtype)]
    negative = jax.jit(jnp.negative, donate_argnums=0).lower(row[0]).compile()

    def call() -> jax.Array:
        row[0] = negative(row[0])
        return row[0]

    return call
