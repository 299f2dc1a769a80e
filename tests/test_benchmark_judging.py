"""The regression check and the claims, on records that were made up."""

import functools

import pytest
from test_benchmark_upsampling import fake_record

from jaxseg.benchmark.claims import CLAIMS, claims, held
from jaxseg.benchmark.compare import changes, compare
from jaxseg.benchmark.operators import CASES
from jaxseg.benchmark.results import Results, read_results
from jaxseg.errors import InputError


def stored(folder, records, **header):
    results = Results(folder / "results.json", {"dtype": "float32", **header}, {})
    folder.mkdir(exist_ok=True)
    for key, record in records.items():
        results.store(key, record)
    return folder


def test_a_step_twice_as_long_is_a_regression_and_an_equal_one_is_not(tmp_path, capsys):
    keys = [f"models/unet/{m}" for m in ("nearest", "bilinear")]
    before = stored(tmp_path / "before", {key: fake_record() for key in keys})
    assert compare(before, before) == 0
    slow = {keys[0]: fake_record(), keys[1]: fake_record()}
    slow[keys[1]]["phases"]["training"]["ours"]["step_ms"] *= 2
    now = stored(tmp_path / "now", slow)
    capsys.readouterr()
    assert compare(now, before) == 1
    out = capsys.readouterr().out
    assert "| models/unet/bilinear | training | 2 | 4 | 2.00 |" in out
    assert "nearest" not in out
    assert "1 of 4 slower by more than 30%" in out
    assert compare(now, before, tolerance=1.1) == 0
    assert compare(before, now) == 0  # faster


@pytest.mark.parametrize(
    ("ms", "rates", "slowdown"),
    [
        (4.0, (0.5, 0.5, 0.5), 1.0),  # half the machine, twice the time
        (2.0, (2.0, 2.0, 2.0), 2.0),  # twice the machine, the same time
        (4.0, (1.0, 1.0, 0.5), 1.0),  # what one yardstick explains is not ours
        (8.0, (1.0, 1.0, 0.5), 2.0),  # and no more than that
    ],
)
def test_the_machine_is_taken_out_of_a_step_time(tmp_path, ms, rates, slowdown):
    before, now = fake_record(ms=2.0), fake_record(ms=ms)
    now["rates"] = {name: rate * factor for (name, rate), factor in zip(now["rates"].items(), rates, strict=True)}
    runs = [stored(tmp_path / name, {"a": record}) for name, record in (("now", now), ("before", before))]
    assert [c.slowdown for c in changes(*map(read_results, runs))] == [slowdown, slowdown]
    assert compare(*runs) == (slowdown > 1)


def test_runs_of_other_work_are_not_compared(tmp_path):
    a = stored(tmp_path / "a", {"x": fake_record()}, size=8)
    with pytest.raises(InputError, match=r"measured other work: size \(8 and 16\)"):
        compare(stored(tmp_path / "b", {"x": fake_record()}, size=16), a)
    with pytest.raises(InputError, match="no case in common"):
        compare(stored(tmp_path / "c", {"y": fake_record()}, size=8), a)
    for tolerance in (0, float("nan")):
        with pytest.raises(InputError, match=f"--tolerance: got {tolerance}"):
            compare(a, a, tolerance=tolerance)


@pytest.mark.parametrize("where", ["rates/copy_gbs", "phases", "phases/both", "phases/dx/ours/step_ms", "phases/fwd/stock/ratio"])
def test_a_record_that_lacks_a_number_is_refused_by_name(tmp_path, where):
    record = fake_record(("fwd", "dx", "both"))
    *outer, last = where.split("/")
    functools.reduce(dict.__getitem__, outer, record).pop(last)
    run = stored(tmp_path / "run", {"operators/x": record})
    for judge in (claims, lambda run: compare(run, run)):
        with pytest.raises(InputError, match=rf"results.json: 'operators/x' has no number at '{where}"):
            judge(run)


def test_claims_are_held_against_what_was_measured(tmp_path, capsys):
    all_phases = ("fwd", "dx", "dw", "both")
    records = {f"operators/{case.name}": fake_record(all_phases, ratio=20.0) for case in CASES}
    records["models/unet/transposed"] = fake_record(ratio=20.0)
    records["networks/encoder_unet/resnet18"] = fake_record(ratio=20.0)
    assert claims(stored(tmp_path / "good", records)) == 0
    assert {claim.text for claim, _, _ in held(read_results(tmp_path / "good"))} == {claim.text for claim in CLAIMS}
    assert "**no**" not in capsys.readouterr().out


def test_claims_need_something_to_be_about(tmp_path):
    with pytest.raises(InputError, match="nothing that a claim is about"):
        claims(stored(tmp_path / "none", {"models/unet/nearest": fake_record()}))


def test_a_claim_fails_below_its_bound(tmp_path, capsys):
    key = "operators/max_pool 2x2/2, 4x128x128x32"
    for ratio, code in ((5.1, 0), (4.9, 1)):
        assert claims(stored(tmp_path / f"{ratio}", {key: fake_record(("fwd", "dx", "both"), ratio=ratio)})) == code
        assert ("| **no** |" in capsys.readouterr().out) == bool(code)
