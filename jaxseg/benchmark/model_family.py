"""`jaxseg benchmark models`: inference and training of every model, beside the same network of torch where there is one."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import jax.numpy as jnp
import tyro

from jaxseg.benchmark.models import SameNetwork, Setting, by_path, run_network
from jaxseg.benchmark.peers import PeerError, TorchPeer
from jaxseg.benchmark.session import environment, measure_all, need_positive, peer_beside, used_devices
from jaxseg.config import DtypeName
from jaxseg.errors import InputError
from jaxseg.model_table import variants
from jaxseg.models.deconvnet import SMALLEST
from jaxseg.weights import smp, torchvision
from jaxseg.weights.table import Layout, to_torch

NUM_CLASSES = 21
ALIKE = frozenset(("fcn/32s", "fcn/16s", "fcn/8s_at_once", "fcn_resnet/resnet101"))
"""Variants that "all" leaves out: they cost what another one does, or are twice as long."""
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "unet": {"norm": "batch", "dropout": 0.0},
    "fcn_resnet": {"auxiliary": False, "dropout": 0.0},
}
"""What differs from `jaxseg models`: nothing random, and what torch has beside it."""
PACKAGES: Mapping[str, tuple[str, Callable[[Any], Layout]]] = {
    "fcn_resnet/resnet50": ("torchvision", torchvision.layout),
    "fcn_resnet/resnet101": ("torchvision", torchvision.layout),
    **{f"encoder_unet/{encoder}": ("segmentation_models_pytorch", smp.layout) for encoder in ("resnet18", "resnet34", "resnet50", "vgg16")},
}
"""Packages that have the same network, and the layout of its weights."""


def models(
    *,
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")],
    models: str = "all",
    size: int = 128,
    batch: int = 2,
    dtype: DtypeName = "float32",
    torch_python: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None,
    seconds: float = 4.0,
) -> int:
    """Measure inference and training of every model, beside the same network of torch where there is one.

    Writes results.json after each case, and results.md with a plot at the end. The same command goes on where an interrupted one has
    stopped; more models can be added to the same folder. For example:
    `jaxseg benchmark models --out runs/models --models unet,encoder_unet --torch-python .venv/bin/python`.

    Args:
      out: folder of the results.
      models: names as `jaxseg models` prints them, with commas between, or all.
      size: side of the square images, pixels. A model that needs larger ones takes its smallest.
      batch: images a step.
      dtype: of the computation; the models' parameters are float32.
      torch_python: an interpreter that has torch, to be measured beside ours in a process of its own; torchvision's and
        segmentation_models_pytorch's networks are measured where it has these packages.
      seconds: of steps for each phase; large models take three steps, however long.
    """
    need_positive(seconds)
    if size < 1 or batch < 1:
        raise InputError(f"--size {size} --batch {batch}: required is at least 1 of each.")
    names = [name.strip() for name in models.split(",") if name.strip()]
    if not names:
        raise InputError(f"--models: got {models!r}; required names with commas between, or all. See jaxseg models.")
    found = variants(() if names == ["all"] else names)
    keys = [key for key in found if key not in ALIKE or names != ["all"]]
    setting, devices = Setting(size, batch, dtype=dtype), used_devices(1)
    options = {"models": keys, "seconds": seconds, "environment": environment()}
    options |= {"size": size, "batch": batch, "dtype": dtype, "parallel": setting.parallel}
    with peer_beside(torch_python, devices[0]) as peer:
        work = {f"networks/{key}": run for key, run in _cases({key: found[key] for key in keys}, setting, devices, peer, seconds)}
        measure_all(out, devices, options, peer, work)
    return 0


def _cases(
    chosen: Mapping[str, tuple[str, Callable[..., Any]]], setting: Setting, devices: list[Any], peer: TorchPeer | None, seconds: float
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    for key, (name, make) in chosen.items():
        compute = None if setting.dtype == "float32" else jnp.dtype(setting.dtype)
        model = make(num_classes=NUM_CLASSES, dtype=compute, **OPTIONS.get(name, {}))
        yield key, functools.partial(run_case, key, name, model, setting, devices, peer=peer, budget_s=seconds)


def run_case(
    key: str, name: str, model: Any, setting: Setting, devices: list[Any], *, peer: TorchPeer | None = None, budget_s: float = 4.0
) -> dict[str, Any]:
    """The record of one model, as `run_network`'s, at its smallest size where `setting`'s is below."""
    notes = []
    if name == "deconvnet" and setting.size < SMALLEST:
        notes.append(f"its images are of {SMALLEST} x {SMALLEST} pixels, the smallest that it takes")
        setting = dataclasses.replace(setting, size=SMALLEST)
    same = None
    if peer is not None and key == "unet":
        same = SameNetwork("unet", {"features": model.features}, by_path)
    elif peer is not None and key in PACKAGES:
        package, layout = PACKAGES[key]
        try:
            peer.ask("import", package=package)
            same = SameNetwork("packaged", {"package": package, "encoder": model.encoder}, functools.partial(_torch_weights, layout(model)))
        except PeerError as error:
            notes.append(f"not beside torch: its Python cannot import {package} ({error})")
    record = run_network(key, model, setting, devices, peer=peer, same=same, budget_s=budget_s)
    return {**record, "notes": [*notes, *record["notes"]]}


def _torch_weights(layout: Layout, variables: Any) -> dict[str, Any]:
    return {f"torch/{key}": array for key, array in to_torch(layout, variables).items()}
