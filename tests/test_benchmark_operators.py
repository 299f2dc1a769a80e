"""Ours, stock JAX and torch compute the same in every case of the benchmark; what a contest records; what the worker says when it fails."""

import dataclasses
import importlib.util
import signal
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from op_laws import needs_torch, random_array

from jaxseg.benchmark import operators
from jaxseg.benchmark.operator_run import agreement, compiled, run_case
from jaxseg.benchmark.operators import CASES, Case
from jaxseg.benchmark.peers import PeerError, torch_peer
from jaxseg.errors import InputError


def small(case: Case) -> Case:
    """The case on a 6 x 4 image, or a volume of such, of few channels."""
    classes = "21 classes" in case.name
    x = (2, *(6, 4, 2)[: len(case.x) - 2], case.x[3] if classes else 4)
    weights = case.weights
    if case.indices:
        weights = x
    elif weights and weights[0] == weights[1]:
        weights = (*weights[:-2], x[-1], 1 if classes else 3)
    elif weights:
        weights = (2, 12, 8, weights[3])
    return dataclasses.replace(case, x=x, weights=weights)


TORCH = importlib.util.find_spec("torch") is not None
SMALL = {case.name.split(",")[0] if "classes" not in case.name else case.name: small(case) for case in CASES}


@pytest.fixture(scope="module")
def peer():
    with torch_peer(Path(sys.executable)) as running:
        assert running is not None
        running.info["compile"] = False  # half a minute for each case
        yield running


@pytest.mark.parametrize("name", SMALL)
def test_ours_equals_stock_and_torch(name, request):
    case = SMALL[name]
    theirs = request.getfixturevalue("peer") if TORCH else None
    calls = compiled(case, "float32", ["both"])
    errors = agreement(case, calls, peer=theirs)
    assert set(errors) == ({"stock"} if case.stock else set()) | ({"torch"} if theirs and case.torch else set())
    for found in errors.values():
        assert set(found) == ({"y", "dx", "dw"} if "dw" in case.phases else {"y", "dx"})
        assert max(found.values()) < 1e-5


@pytest.mark.slow
@needs_torch
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_case_as_it_is_measured(dtype, peer):
    for case in CASES:
        run_case(case, dtype=dtype, peer=peer, budget_s=0)


def test_the_phases_of_a_case_are_parts_of_one_gradient():
    """fwd, dx and dw are what "both" gives."""
    case = SMALL["conv_transpose 3x3/2"]
    calls = compiled(case, "float32", case.phases)["ours"]
    got = {phase: program.call(*given) for phase, (program, given) in calls.items()}
    y, (dx, dw) = got["both"]
    for phase, value in {"fwd": y, "dx": dx, "dw": dw}.items():
        np.testing.assert_allclose(got[phase], value, rtol=1e-5, atol=1e-5)


def test_another_function_is_found_out():
    case = dataclasses.replace(SMALL["max_pool 2x2/2"], stock=lambda x: operators.flax_max_pool(x, window=2, stride=2) + 1e-3)
    with pytest.raises(RuntimeError, match=r"max_pool 2x2/2.*ours and stock do not compute the same.*'y'"):
        agreement(case, compiled(case, "float32", ["both"]))
    case = dataclasses.replace(case, stock=lambda x: operators.flax_max_pool(x, window=2, stride=2) * jnp.nan)
    with pytest.raises(RuntimeError, match="ours and stock"):
        agreement(case, compiled(case, "float32", ["both"]))


@needs_torch
def test_another_function_of_torch_is_found_out(peer):
    case = SMALL["conv_transpose 4x4/2"]
    wrong = dataclasses.replace(case, torch=("conv_transpose", {"stride": 2, "padding": 1, "output_padding": 0, "groups": 1}))
    agreement(wrong, compiled(wrong, "float32", ["both"]), peer=peer)
    calls = compiled(dataclasses.replace(case, stock=None, ours=lambda x, w: 1.001 * case.ours(x, w)), "float32", ["both"])
    with pytest.raises(RuntimeError, match=r"conv_transpose 4x4/2.*ours and torch do not compute the same.*'y'.*'dx'.*'dw'"):
        agreement(case, calls, peer=peer)


@needs_torch
def test_a_record_has_every_contestant_and_phase(peer):
    record = run_case(SMALL["conv_transpose 2x2/2"], peer=peer, budget_s=0.01)
    assert list(record["phases"]) == ["fwd", "dx", "dw", "both"]
    for found in record["phases"].values():
        assert list(found) == ["ours", "stock", "torch eager"]
        assert found["ours"]["ratio"] == 1
        for m in found.values():
            assert m["step_ms"] > 0
            assert m["ratio"] > 0
            assert m["compile_s"] > 0
            assert m["steps"] >= 3
    assert record["notes"] == []
    assert record["rates"]["matmul_gflops"] > 0


@needs_torch
def test_what_the_worker_cannot_do_is_an_error_and_it_goes_on(peer):
    with pytest.raises(PeerError, match="KeyError: 'no such operator'"):
        peer.build(
            "operator",
            {"x": random_array(1, 2, 2, 1), "g": random_array(1, 2, 2, 1)},
            name="no such operator",
            options={},
            dtype="float32",
            compiled=False,
        )
    assert peer.ask("hello")["threads"] >= 1
    steps, _, failed = peer.contestants("no such phase", ("eager",))
    assert steps == {}
    assert failed[0].startswith("torch eager, no such phase: ")


@needs_torch
def test_a_worker_that_dies_or_hangs_says_so():
    with torch_peer(Path(sys.executable)) as mortal:
        assert mortal is not None
        mortal._process.send_signal(signal.SIGSTOP)
        with pytest.raises(PeerError, match=r"ended during 'hello': no answer in 1 s"):
            mortal.ask("hello", timeout_s=0.6)
        with pytest.raises(PeerError, match="ended during 'hello'"):
            mortal.ask("hello")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"--torch-python .*nowhere: cannot be run \(No such file"),
        ("#!/bin/sh\necho no torch here >&2\n", "no torch here.*Give a Python that has torch"),
        ("#!/bin/sh\nexit\n", "ended during 'hello': no answer. Give a Python"),
        ("#!/bin/sh\nread x\necho listing\n", "answered 'hello' by 'listing' and is no Python. Give a Python"),
    ],
)
def test_an_interpreter_without_torch_is_refused(tmp_path, text, message):
    python = tmp_path / "nowhere"
    if text:
        python.write_text(text)
        python.chmod(0o755)
    with pytest.raises(InputError, match=message), torch_peer(python):
        pass


def test_without_an_interpreter_there_is_no_peer():
    with torch_peer(None) as nobody:
        assert nobody is None


def test_flat_positions_are_those_of_the_enlarged_map():
    index = np.array([[[0, 3], [1, 2]]])[..., None]  # one row of two windows would be [1, 1, 2, 1]; here 1 x 2 x 2
    assert operators.flat_positions(index)[0, :, :, 0].tolist() == [[0, 7], [9, 14]]
