"""results.json: a header that says what was measured where, and one record a case; written after each, so that a run can go on."""

import dataclasses
import datetime
import json
import math
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jaxseg.benchmark.rates import Rates
from jaxseg.errors import InputError

FILE = "results.json"
CHOICE = ("date", "models", "methods", "only", "seconds")
"""What may differ between the parts of one results.json: which cases were asked for, when, and how long a case takes."""
NEEDED = {"operators": ("fwd", "dx", "both"), "models": ("inference", "training"), "networks": ("inference", "training")}
"""What every record of a kind has measured."""


class Results:
    """The records of a folder. `key in results`, `results.store(key, record)`, `results.header`, `results.cases`."""

    def __init__(self, path: Path, header: dict[str, Any], cases: dict[str, Any]):
        self.path, self.header, self.cases = path, header, cases

    def __contains__(self, key: str) -> bool:
        return key in self.cases

    def store(self, key: str, record: Mapping[str, Any]) -> None:
        """Adds a record and replaces the file at one stroke."""
        self.cases[key] = record
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps({"header": self.header, "cases": self.cases}, indent=1) + "\n")
        os.replace(part, self.path)


def make_header(devices: Sequence[Any], options: Mapping[str, Any], torch: Mapping[str, Any] | None) -> dict[str, Any]:
    """Machine, versions, date and options of a run over `devices`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "device": f"{len(devices)} x {devices[0].device_kind}",
        "platform": devices[0].platform,
        "cpu": _cpu(),
        "cores": cores,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "jaxseg")}},
        "torch": f"{torch['torch']}, Python {torch['python']}, {torch['threads']} threads" if torch else None,
        "torch_compile": torch["compile"] if torch else None,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        **json.loads(json.dumps(options)),
    }


def open_results(out: Path, header: Mapping[str, Any]) -> Results:
    """The results in `out`, or none yet; those of another machine or of other options are refused.

    Raises:
      InputError: `out` holds results that were measured otherwise; the message says what differs.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; required is a folder, made when missing. Give another path.")
    out.mkdir(parents=True, exist_ok=True)
    path = out / FILE
    if not path.exists():
        return Results(path, dict(header), {})
    old = read_results(path)
    mine, theirs = ({k: v for k, v in h.items() if k not in CHOICE} for h in (header, old.header))
    changed = [f"{k} (was {theirs.get(k)!r}, now {mine.get(k)!r})" for k in {**theirs, **mine} if theirs.get(k) != mine.get(k)]
    if changed:
        raise InputError(f"--out {out}: holds results of another setting: {'; '.join(changed)}. Give another --out, or the same options.")
    return Results(path, dict(header), old.cases)


def read_results(path: Path) -> Results:
    """A results.json, or the one in a folder.

    Raises:
      InputError: it is missing, was not written by this benchmark, or lacks a figure that reports and judgements read.
    """
    path = path / FILE if path.is_dir() else path
    try:
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Give a {FILE} of `jaxseg benchmark`.") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}). Delete it, or restore it.") from error
    if not isinstance(data, dict) or not isinstance(data.get("header"), dict) or not isinstance(data.get("cases"), dict):
        raise InputError(f"{path}: has no header and cases. Give a {FILE} of `jaxseg benchmark`.")
    for key, record in data["cases"].items():
        lacking = next(_lacking(record, NEEDED.get(key.split("/")[0], ())), None)
        if lacking:
            raise InputError(f"{path}: {key!r} has no number at {lacking!r}. Restore the file, or measure in another folder.")
    return Results(path, data["header"], data["cases"])


def _lacking(record: Any, phases: Iterable[str]) -> Iterator[str]:
    """Where a record lacks a number: every phase has ours, and every contestant a time and a ratio."""

    def at(*keys: str) -> Any:
        value = record
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    measured = at("phases") if isinstance(at("phases"), dict) else {}
    places = [("rates", rate.name) for rate in dataclasses.fields(Rates)]
    for phase in {**dict.fromkeys(phases), **measured}:
        contestants = at("phases", phase) if isinstance(at("phases", phase), dict) else {}
        places += [("phases", phase, who, figure) for who in {"ours": None, **contestants} for figure in ("step_ms", "ratio")]
    return ("/".join(place) for place in places if type(n := at(*place)) not in (int, float) or not 0 < n < math.inf)


def gradient_speedup(phases: Mapping[str, Any]) -> float | None:
    """Stock's gradients (in input and weights) over ours, where there is a stock operator; `phases` are those of an operator's record."""
    parts = [phases[p] for p in ("dx", "dw") if p in phases]
    if not all("stock" in part for part in parts):
        return None
    return sum(part["stock"]["step_ms"] for part in parts) / sum(part["ours"]["step_ms"] for part in parts)


def _cpu() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
