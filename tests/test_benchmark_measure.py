"""The laws that the benchmark's figures obey: FLOPs, bytes, rates, alternation."""

import collections
import dataclasses
import functools
import itertools
import json
import time

import jax.numpy as jnp
import numpy as np
import pytest
from op_laws import random_array

from jaxseg.benchmark import Measurement, Rates, alternate, machine_rates, measure
from jaxseg.benchmark import rates as rates_module
from jaxseg.benchmark.measure import Timing, balanced_orders, compile_program, stepper
from jaxseg.errors import InputError

RATES = Rates(matmul_gflops=50.0, conv_gflops=50.0, copy_gbs=10.0)


@pytest.fixture(scope="module")
def product():
    return measure(jnp.matmul, random_array(192, 128), random_array(128, 64), images=3, rates=RATES, budget_s=0.05)


def test_flops_bytes_and_memory_of_a_matrix_product_are_known(product):
    numbers = 192 * 128 + 128 * 64 + 192 * 64
    assert product.flops == 2 * 192 * 128 * 64
    assert product.bytes == 4 * numbers
    assert product.peak_bytes >= 4 * numbers


def test_figures_of_one_measurement_agree(product):
    seconds = product.step_ms / 1e3
    assert product.images_per_s == pytest.approx(3 / seconds)
    assert product.matmul_share == pytest.approx(product.flops / seconds / 50e9)
    assert product.copy_share == pytest.approx(product.bytes / seconds / 10e9)
    assert product.steps >= 3
    assert Measurement(**json.loads(json.dumps(dataclasses.asdict(product)))) == product


def test_compiling_is_counted_apart():
    """The function's Python body, which runs only while it is traced, sleeps."""

    def slow_to_trace(x):
        time.sleep(0.2)
        return x + 1

    cost = measure(slow_to_trace, random_array(3), rates=RATES, budget_s=0.01)
    assert cost.compile_s is not None
    assert cost.compile_s > 0.2
    assert cost.step_ms < 200


def test_memory_counts_what_lies_between():
    x = random_array(256, 256)
    chain = compile_program(lambda x: (x @ x) @ x, x)
    assert chain.peak_bytes >= 3 * x.nbytes  # argument, product, result
    assert compile_program(lambda x: x @ x, x).peak_bytes < 3 * x.nbytes


def test_counts_of_several_devices_are_those_of_one_times_their_number():
    one, four = (compile_program(jnp.matmul, random_array(8, 8), random_array(8, 8), devices=n) for n in (1, 4))
    assert (four.flops, four.bytes, four.peak_bytes) == (4 * one.flops, 4 * one.bytes, 4 * one.peak_bytes)


def test_a_step_ends_when_its_result_is_there():
    product = functools.partial(compile_program(lambda x: x @ x @ x, x := random_array(700, 700)).call, x)
    whole = []
    for _ in range(5):  # other work on the machine makes single calls ten times as long
        begun = time.perf_counter()
        np.asarray(product())
        whole.append(time.perf_counter() - begun)
    assert min(stepper(product)(3)) > 0.2 * min(whole)


def fake(milliseconds, slower=lambda: 1.0, seen=None):
    def steps(n):
        if seen is not None:
            seen.append(n)
        return [milliseconds / 1e3 * slower()] * n

    return steps


def test_ratios_are_those_of_the_rounds_however_the_machine_drifts():
    """The machine slows down by 1% with each block that anybody runs: the medians of all steps drift, the ratios hardly."""
    clock = itertools.count()
    drift = lambda: 1.01 ** next(clock)  # noqa: E731
    found = alternate({"a": fake(2.0, drift), "b": fake(6.0, drift), "c": fake(1.0, drift)}, budget_s=0, min_rounds=42)
    assert found["a"].ratio == 1
    assert found["b"].ratio == pytest.approx(3, rel=1e-4)
    assert found["c"].ratio == pytest.approx(0.5, rel=1e-4)
    assert found["a"].spread_ms > 0.2


def test_nobody_pays_for_always_coming_after_the_same_one():
    """Whoever comes after "spins" takes 1.3 times as long, and everybody's first step ten times; "a" and "b" are equal."""
    last = [""]

    def turn(name, milliseconds):
        def steps(n):
            slower, last[0] = 1.3 if last[0] == "spins" else 1.0, name
            return [10.0, *[milliseconds / 1e3 * slower] * (n - 1)]

        return steps

    found = alternate({"a": turn("a", 2.0), "b": turn("b", 2.0), "spins": turn("spins", 2.0)}, budget_s=0, block_s=11, min_rounds=12)
    assert found["a"].step_ms == found["b"].step_ms <= 2.6
    assert found["b"].ratio == 1


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6])
def test_each_comes_equally_often_after_each_other_and_at_each_place(n):
    orders = balanced_orders("abcdef"[:n])
    assert all(sorted(order) == list("abcdef"[:n]) for order in orders)
    after = collections.Counter(pair for order in orders for pair in itertools.pairwise(order))
    assert len(after) == n * (n - 1)
    assert set(after.values()) <= {2}
    assert set(collections.Counter(place for order in orders for place in enumerate(order)).values()) == {2}


def test_medians_and_spreads_are_those_of_all_steps():
    times = itertools.cycle([1.0, 2.0, 3.0, 4.0, 5.0])
    timing = alternate({"a": lambda n: [next(times) for _ in range(n)]}, budget_s=0, min_rounds=5)["a"]
    assert timing == Timing(step_ms=3000.0, spread_ms=2000.0, steps=5, ratio=1.0)


def test_a_slow_contestant_takes_three_single_steps_and_a_fast_one_blocks():
    slow, fast = [], []
    found = alternate({"slow": fake(5000, seen=slow), "fast": fake(1, seen=fast)}, budget_s=0, block_s=0.03)
    assert slow == [1, 1, 1, 1]  # one to warm up
    assert fast == [1, 31, 31, 31]
    assert found["slow"].steps == 3


def test_time_is_boxed():
    begun = time.perf_counter()
    alternate({"sleep": stepper(lambda: time.sleep(0.005))}, budget_s=0.1, block_s=0.01)
    assert 0.1 <= time.perf_counter() - begun < 1.0


def test_nobody_to_time_is_refused():
    with pytest.raises(InputError, match="got no contestants"):
        alternate({})


def test_rates_are_of_work_that_is_done(monkeypatch):
    """Half the time for the same work is twice the rate; and the three are positive on this machine."""
    found = machine_rates(budget_s=0.0)
    assert min(dataclasses.astuple(found)) > 0
    monkeypatch.setattr(rates_module, "_programs", lambda dtype: ("matmul", "conv", "copy"))
    monkeypatch.setattr(rates_module, "_median_s", lambda call, budget: {"matmul": 2.0, "conv": 1.0, "copy": 0.5}[call])
    assert machine_rates("float32") == Rates(1024**3 / 1e9, 4 * 64 * 64 * 64 * 9 * 64 * 2 / 1e9, 2 * 4 * 2**24 / 0.5 / 1e9)
    assert machine_rates("bfloat16").copy_gbs == machine_rates("float32").copy_gbs / 2


def test_the_copy_copies():
    """Each call negates all of it, in place."""
    call = rates_module._copier("float32")
    first = np.asarray(call())
    assert first.shape == (rates_module.COPY,)
    assert first[-1] == -1
    assert float(call()[0]) == 1
