"""`jaxseg benchmark upsampling`: every upsampling method in every model, and every operator apart, beside stock JAX and torch."""

import contextlib
import dataclasses
import functools
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro

from jaxseg.benchmark import models as networks
from jaxseg.benchmark import operators
from jaxseg.benchmark.operator_run import run_case
from jaxseg.benchmark.peers import TorchPeer, torch_peer
from jaxseg.benchmark.report import write_report
from jaxseg.benchmark.results import make_header, open_results
from jaxseg.config import DtypeName
from jaxseg.errors import InputError
from jaxseg.parallel import Parallel
from jaxseg.progress import progress
from jaxseg.upsample import UPSAMPLERS

USAGE = """jaxseg benchmark upsampling --out DIR [--option value ...]

Measures every upsampling method and operator on this machine; `jaxseg benchmark upsampling --help` shows the options."""


def main(argv: list[str]) -> int:
    """The command line `jaxseg benchmark ...`."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    if argv[0] != "upsampling":
        raise InputError(f"no such benchmark; there is upsampling. Got {argv[0]!r}")
    return tyro.cli(upsampling, args=argv[1:], prog="jaxseg benchmark upsampling")


def upsampling(
    *,
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")],
    models: str = "unet",
    methods: str = "all",
    size: int = 128,
    batch: int = 4,
    features: tuple[int, ...] = (32, 64, 128, 256, 512),
    dtype: DtypeName = "float32",
    devices: int = 1,
    parallel: Parallel = "jit",
    torch_python: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None,
    only: Literal["operators", "models"] | None = None,
    seconds: float = 1.2,
) -> int:
    """Measure every upsampling method in every model, and every operator apart, beside stock JAX/Flax and torch.

    Writes results.json after each case, and results.md with plots at the end. The same command goes on where an interrupted one has
    stopped; more models or methods can be added to the same folder. For example:
    `jaxseg benchmark upsampling --out runs/upsampling --torch-python .venv/bin/python`.

    Args:
      out: folder of the results.
      models: names with commas between them, or all.
      methods: of upsampling, with commas between them, or all.
      size: side of the square images, pixels.
      batch: images a step, over all devices.
      features: channels of the U-Net's levels, finest first.
      dtype: of the computation; the models' parameters are float32.
      devices: how many; on a CPU they are simulated. Operators, stock and torch are measured on one only.
      parallel: how the batch is split over devices: jit over a sharded mesh, or pmap.
      torch_python: an interpreter that has torch, to be measured beside ours in a process of its own.
      only: one half of the work.
      seconds: of steps for each phase of an operator; networks take four times as long.
    """
    setting = networks.Setting(size, batch, features, dtype, parallel)
    chosen = _names("--models", models, networks.UPSAMPLED), _names("--methods", methods, UPSAMPLERS)
    _check(setting, devices, seconds)
    if only == "operators" and devices > 1:
        raise InputError(f"--devices {devices}: operators are measured on one device only. Leave it out, or --only models.")
    used = _devices(devices)
    if torch_python is not None and used[0].platform != "cpu":
        raise InputError(
            f"--torch-python: torch is measured on the CPU, and JAX runs on {used[0].platform}. Leave it out, or JAX_PLATFORMS=cpu."
        )
    with _no_stored_programs(), torch_peer(torch_python if devices == 1 else None) as peer:
        options = {
            "models": chosen[0],
            "methods": chosen[1],
            "only": only,
            "seconds": seconds,
            "devices": devices,
            "environment": environment(),
            **dataclasses.asdict(setting),
        }
        results = open_results(out, make_header(used, options, peer.info if peer else None))
        work = dict(_cases(*chosen, setting, used, peer, only, seconds))
        todo = {key: run for key, run in work.items() if key not in results}
        print(f"{results.header['device']}: {len(work)} cases, {len(todo)} to be measured", flush=True)
        try:
            with progress("measuring", len(work), len(work) - len(todo)) as advance:
                for key, run in todo.items():
                    begun = time.monotonic()
                    results.store(key, run())
                    advance(1, note=f"{key}: {time.monotonic() - begun:.0f} s")
        finally:  # what an interrupted run has measured is there to be read
            path = write_report(results)
    print(json.dumps({"cases": len(results.cases), "results": str(results.path), "report": str(path)}), flush=True)
    return 0


def _cases(
    models: Sequence[str],
    methods: Sequence[str],
    setting: networks.Setting,
    devices: Sequence[Any],
    peer: TorchPeer | None,
    only: str | None,
    seconds: float,
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """By key: what measures one case and returns its record."""
    if only != "models" and len(devices) == 1:
        for case in operators.CASES:
            yield f"operators/{case.name}", functools.partial(run_case, case, dtype=setting.dtype, peer=peer, budget_s=seconds)
    if only != "operators":
        for model in models:
            for method in methods:
                run = functools.partial(networks.run_model, model, method, setting, devices, peer=peer, budget_s=4 * seconds)
                yield f"models/{model}/{method}", run


def environment() -> dict[str, str]:
    """What is set of the variables that make programs faster or slower; torch's process inherits them."""
    names = ("GLIBC_TUNABLES", "XLA_FLAGS", "LD_PRELOAD", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    return {name: os.environ[name] for name in names if name in os.environ}


def _names(option: str, text: str, there: dict[str, Any]) -> list[str]:
    if text == "all":
        return list(there)
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in there]
    if unknown or not names:
        raise InputError(f"{option}: got {text!r}; there are {', '.join(there)}. Give some of them with commas between, or all.")
    return names


def _check(setting: networks.Setting, devices: int, seconds: float) -> None:
    if not 0 < seconds < math.inf:
        raise InputError(f"--seconds: got {seconds}; required above 0. Give a number such as 1.2.")
    if len(setting.features) < 2 or min(setting.features) < 1:
        given = " ".join(map(str, setting.features)) or "nothing"
        raise InputError(f"--features: got {given}; required two levels or more of 1 channel or more. Give numbers such as 32 64 128.")
    if setting.size < 1 or setting.batch < 1 or devices < 1:
        raise InputError(f"--size {setting.size} --batch {setting.batch} --devices {devices}: required is at least 1 of each.")
    if setting.batch % devices:
        near = -(-setting.batch // devices) * devices
        raise InputError(f"--batch: got {setting.batch} for {devices} devices; required a multiple of {devices}. Give --batch {near}.")


def _devices(count: int) -> list[Any]:
    """The first `count` devices; a CPU is split into as many simulated ones, which must happen before JAX has started."""
    if count > 1:
        with contextlib.suppress(RuntimeError):  # it has started, and has what it has
            jax.config.update("jax_num_cpu_devices", count)
    found = jax.devices()
    if len(found) < count:
        raise InputError(f"--devices: got {count}; there are {len(found)}. Give at most {len(found)}, or run the command in a new process.")
    return found[:count]


@contextlib.contextmanager
def _no_stored_programs() -> Iterator[None]:
    """Compile times are those of compiling, so programs that a cache has kept are not read."""
    before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
