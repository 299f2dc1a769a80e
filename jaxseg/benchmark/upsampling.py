"""`jaxseg benchmark upsampling`: every upsampling method in every model, and every operator apart, beside stock JAX and torch."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxseg.benchmark import models as networks
from jaxseg.benchmark import operators
from jaxseg.benchmark.operator_run import run_case
from jaxseg.benchmark.peers import TorchPeer
from jaxseg.benchmark.session import environment, measure_all, need_positive, peer_beside, used_devices
from jaxseg.config import DtypeName
from jaxseg.errors import InputError
from jaxseg.parallel import Parallel
from jaxseg.upsample import UPSAMPLERS

USAGE = """jaxseg benchmark upsampling --out DIR [--option value ...]    every upsampling method and operator on this machine
jaxseg benchmark models --out DIR [--option value ...]        inference and training of every model

Each shows its options by --help."""


def main(argv: list[str]) -> int:
    """The command line `jaxseg benchmark ...`."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    if argv[0] == "models":
        from jaxseg.benchmark.model_family import models

        return tyro.cli(models, args=argv[1:], prog="jaxseg benchmark models")
    if argv[0] != "upsampling":
        raise InputError(f"no such benchmark; there are upsampling and models. Got {argv[0]!r}")
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
    used = used_devices(devices)
    with peer_beside(torch_python if devices == 1 else None, used[0]) as peer:
        options = {
            "models": chosen[0],
            "methods": chosen[1],
            "only": only,
            "seconds": seconds,
            "devices": devices,
            "environment": environment(),
            **dataclasses.asdict(setting),
        }
        measure_all(out, used, options, peer, dict(_cases(*chosen, setting, used, peer, only, seconds)))
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


def _names(option: str, text: str, there: dict[str, Any]) -> list[str]:
    if text == "all":
        return list(there)
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in there]
    if unknown or not names:
        raise InputError(f"{option}: got {text!r}; there are {', '.join(there)}. Give some of them with commas between, or all.")
    return names


def _check(setting: networks.Setting, devices: int, seconds: float) -> None:
    need_positive(seconds)
    if len(setting.features) < 2 or min(setting.features) < 1:
        given = " ".join(map(str, setting.features)) or "nothing"
        raise InputError(f"--features: got {given}; required two levels or more of 1 channel or more. Give numbers such as 32 64 128.")
    if setting.size < 1 or setting.batch < 1 or devices < 1:
        raise InputError(f"--size {setting.size} --batch {setting.batch} --devices {devices}: required is at least 1 of each.")
    if setting.batch % devices:
        near = -(-setting.batch // devices) * devices
        raise InputError(f"--batch: got {setting.batch} for {devices} devices; required a multiple of {devices}. Give --batch {near}.")
