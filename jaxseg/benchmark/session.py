"""What the benchmark's commands share: devices, torch's process, and cases measured one after the other, stored, and gone on with."""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxseg.benchmark.peers import TorchPeer, torch_peer
from jaxseg.benchmark.report import write_report
from jaxseg.benchmark.results import make_header, open_results
from jaxseg.errors import InputError
from jaxseg.host_memory import KEEPING, keep_freed_memory
from jaxseg.progress import progress


def measure_all(
    out: Path,
    devices: Sequence[Any],
    options: Mapping[str, Any],
    peer: TorchPeer | None,
    work: Mapping[str, Callable[[], dict[str, Any]]],
) -> None:
    """Measures what `out` does not hold yet, stores each record at once, and writes the report, after an interruption too.

    Args:
      options: for the header of the results.
      work: by key, what measures one case and returns its record.

    Raises:
      InputError: `out` holds results of other options.
    """
    keep_freed_memory()
    results = open_results(out, make_header(devices, options, peer.info if peer else None))
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


@contextlib.contextmanager
def peer_beside(python: Path | None, device: Any) -> Iterator[TorchPeer | None]:
    """torch's process where `python` is given. Meanwhile compile times are those of compiling: what a cache has kept is not read.

    Raises:
      InputError: JAX does not run on the CPU, or `python` has no torch.
    """
    if python is not None and device.platform != "cpu":
        raise InputError(
            f"--torch-python: torch is measured on the CPU, and JAX runs on {device.platform}. Leave it out, or JAX_PLATFORMS=cpu."
        )
    before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        with torch_peer(python, {**os.environ, **KEEPING}) as peer:
            yield peer
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


def used_devices(count: int) -> list[Any]:
    """The first `count` devices; a CPU is split into as many simulated ones, which must happen before JAX has started."""
    if count > 1:
        with contextlib.suppress(RuntimeError):  # it has started, and has what it has
            jax.config.update("jax_num_cpu_devices", count)
    found = jax.devices()
    if len(found) < count:
        raise InputError(f"--devices: got {count}; there are {len(found)}. Give at most {len(found)}, or run the command in a new process.")
    return found[:count]


def environment() -> dict[str, str]:
    """What is set of the variables that make programs faster or slower; torch's process inherits them."""
    names = ("GLIBC_TUNABLES", "XLA_FLAGS", "LD_PRELOAD", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    return {name: os.environ[name] for name in names if name in os.environ}


def need_positive(seconds: float) -> None:
    if not 0 < seconds < math.inf:
        raise InputError(f"--seconds: got {seconds}; required above 0. Give a number such as 1.2.")
