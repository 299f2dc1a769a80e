"""Compile time, step time, FLOPs, bytes and peak memory of one function; several functions timed in alternation."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxseg.benchmark.rates import Rates, machine_rates
from jaxseg.errors import InputError

Steps = Callable[[int], list[float]]
"""Runs n steps and returns the seconds that each has taken."""


@dataclasses.dataclass(frozen=True)
class Timing:
    """Warm step time: the median and the interquartile range of `steps` steps, and how it compares with the first contestant.

    `ratio` is the median over the rounds of (this one's step time / that of the first contestant in the same round).
    """

    step_ms: float
    spread_ms: float
    steps: int
    ratio: float = 1.0


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What one program costs. `None` where it cannot be known (another framework's FLOPs, images of an operator).

    FLOPs and bytes are the compiler's own counts for the whole program; `matmul_share` and `copy_share` are flops / step_s and
    bytes / step_s over the machine's measured rates. Bytes count every access of every fused loop: what caches serve can lift
    copy_share above 1.
    """

    step_ms: float
    spread_ms: float
    steps: int
    compile_s: float | None = None
    images_per_s: float | None = None
    flops: float | None = None
    bytes: float | None = None
    peak_bytes: int | None = None
    matmul_share: float | None = None
    copy_share: float | None = None


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled function, and what the compiler says of it."""

    call: Callable[..., Any]
    compile_s: float
    flops: float
    bytes: float
    peak_bytes: int

    def measurement(self, timing: Timing, rates: Rates, images: int | None = None) -> Measurement:
        """`timing` with this program's costs; `images` are those of one step."""
        seconds = timing.step_ms / 1e3
        return Measurement(
            step_ms=timing.step_ms,
            spread_ms=timing.spread_ms,
            steps=timing.steps,
            compile_s=self.compile_s,
            images_per_s=images / seconds if images else None,
            flops=self.flops,
            bytes=self.bytes,
            peak_bytes=self.peak_bytes,
            matmul_share=self.flops / seconds / (rates.matmul_gflops * 1e9),
            copy_share=self.bytes / seconds / (rates.copy_gbs * 1e9),
        )


def compile_program(fn: Callable[..., Any], *args: Any, devices: int = 1) -> Program:
    """`fn` compiled for `args`: a plain function, or what `jax.jit` or `jax.pmap` has made of one.

    The time is that of tracing, lowering and compiling. Counts of a program over several devices are those of one, times `devices`.
    """
    jitted: Any = fn if hasattr(fn, "lower") else jax.jit(fn)
    begun = time.perf_counter()
    compiled = jitted.lower(*args).compile()
    compile_s = time.perf_counter() - begun
    costs, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    # Donated arguments are counted among the outputs too.
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    flops, accessed = (max(float(costs.get(name, 0)), 0.0) for name in ("flops", "bytes accessed"))
    return Program(compiled, compile_s, devices * flops, devices * accessed, devices * int(peak))


def stepper(call: Callable[[], Any]) -> Steps:
    """`call` as timed steps; each waits until its result is there."""

    def steps(n: int) -> list[float]:
        seconds = []
        for _ in range(n):
            begun = time.perf_counter()
            jax.block_until_ready(call())
            seconds.append(time.perf_counter() - begun)
        return seconds

    return steps


def balanced_orders(names: Sequence[str]) -> list[list[str]]:
    """Orders of `names` in each of which all come once; in all, each comes equally often right after each other one, and at each place.

    Whoever always came next after another process would find its caches in the middle, and look 2 to 10 per cent slower than it is.

    Source: Williams 1949, Experimental designs balanced for the estimation of residual effects of treatments.

    >>> balanced_orders("abc")
    [['a', 'b', 'c'], ['b', 'c', 'a'], ['c', 'a', 'b'], ['c', 'b', 'a'], ['a', 'c', 'b'], ['b', 'a', 'c']]
    """
    n = len(names)
    zigzag = [(i + 1) // 2 if i % 2 else n - i // 2 for i in range(n)]
    orders = [[names[(place + shift) % n] for place in zigzag] for shift in range(n)]
    return orders + [order[::-1] for order in orders]


def alternate(contestants: Mapping[str, Steps], *, budget_s: float = 1.5, block_s: float = 0.03, min_rounds: int = 3) -> dict[str, Timing]:
    """Times several contestants in alternating rounds: what else the machine does meets all of them alike.

    A round gives each a block of steps of about `block_s` seconds (one step at least), in an order of `balanced_orders`. Where a step
    takes less than ten blocks, one more goes before, which finds the caches as another one has left them and does not count. Rounds go
    on until `budget_s` is spent, and there are never fewer than `min_rounds`. The first contestant is the one that the ratios compare
    with.

    Args:
      contestants: by name, functions that run n steps and return each one's seconds: `stepper(call)`, or a peer process.
    """
    if not contestants:
        raise InputError("alternate: got no contestants; required at least one. Give {name: stepper(call)}.")
    blocks, warm_up, times, rounds = {}, {}, {name: [] for name in contestants}, []
    for name, steps in contestants.items():
        last = steps(1)[0]
        if last < budget_s:  # the first step may still allocate
            last = steps(1)[0]
        blocks[name] = int(np.clip(block_s / max(last, 1e-7), 1, 200))
        warm_up[name] = int(last < 10 * block_s)
    begun, orders = time.perf_counter(), balanced_orders(list(contestants))
    while len(rounds) < min_rounds or time.perf_counter() - begun < budget_s:
        medians = {}
        for name in orders[len(rounds) % len(orders)]:
            seconds = contestants[name](warm_up[name] + blocks[name])[warm_up[name] :]
            times[name] += seconds
            medians[name] = float(np.median(seconds))
        rounds.append(medians)
    first = next(iter(contestants))
    return {
        name: Timing(
            step_ms=1e3 * float(np.median(seconds)),
            spread_ms=1e3 * float(np.subtract(*np.percentile(seconds, (75, 25)))),
            steps=len(seconds),
            ratio=float(np.median([medians[name] / medians[first] for medians in rounds])),
        )
        for name, seconds in times.items()
    }


def measure(
    fn: Callable[..., Any], *args: Any, images: int | None = None, rates: Rates | None = None, budget_s: float = 1.0
) -> Measurement:
    """What `fn(*args)` costs when it is compiled: see `Measurement`.

    Args:
      fn: a function of arrays, jitted or not. Its arguments are not donated, for every step takes the same ones.
      images: images of one step, for images/s.
      rates: of this machine; measured now where they are not given.
      budget_s: seconds of steps; three steps are always made.

    >>> import jax.numpy as jnp
    >>> cost = measure(jnp.matmul, jnp.ones((64, 32)), jnp.ones((32, 16)), budget_s=0.01)
    >>> cost.flops == 2 * 64 * 32 * 16, cost.compile_s > 0, cost.step_ms > 0
    (True, True, True)
    """
    args = jax.device_put(args)
    program = compile_program(fn, *args)
    timing = alternate({"fn": stepper(lambda: program.call(*args))}, budget_s=budget_s)["fn"]
    return program.measurement(timing, rates or machine_rates(), images)
