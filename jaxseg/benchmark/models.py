"""Whole networks: inference, and the training step that `jaxseg train` runs, for each model and upsampling method."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from jaxseg import losses
from jaxseg.benchmark.contest import Call, contest, differences, need_agreement
from jaxseg.benchmark.measure import compile_program
from jaxseg.benchmark.peers import TorchPeer
from jaxseg.benchmark.rates import machine_rates
from jaxseg.benchmark.stock_unet import stock_programs
from jaxseg.models import MODELS
from jaxseg.parallel import AXIS, Parallel, data_mesh, parallel_step, replicated
from jaxseg.train_state import TrainState, init_state, train_step
from jaxseg.upsample import UPSAMPLERS

CHANNELS, CLASSES, LEARNING_RATE = 3, 21, 1e-3
CHECKED_STEPS = 3
UPSAMPLED = {name: MODELS[name] for name in ("unet", "segnet")}
"""Models that take any upsampler."""
TOLERANCE = {"logits": {"float32": 1e-3, "bfloat16": 0.1}, "losses": {"float32": 1e-2, "bfloat16": 0.1}}
"""Largest difference between two implementations, as a share of the largest value, of the logits and of the first training losses."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all models of a run have in common: square images of `size` pixels, `batch` of them a step over all devices."""

    size: int = 128
    batch: int = 4
    features: tuple[int, ...] = (32, 64, 128, 256, 512)
    dtype: str = "float32"
    parallel: Parallel = "jit"


def make_model(name: str, method: str, setting: Setting) -> nn.Module:
    """The model as it is benchmarked: the U-Net with same-padding, batch normalisation and no dropout, others as they come."""
    dtype = None if setting.dtype == "float32" else jnp.dtype(setting.dtype)
    options: dict[str, Any] = {}
    if name == "unet":
        options = {"features": setting.features, "padding": "same", "norm": "batch", "dropout": 0.0}
    return MODELS[name](num_classes=CLASSES, upsample=UPSAMPLERS[method], dtype=dtype, **options)


def run_model(
    name: str, method: str, setting: Setting, devices: Sequence[Any], *, peer: TorchPeer | None = None, budget_s: float = 4.8
) -> dict[str, Any]:
    """The record of one model with one method, built like an operator's (`operator_run.run_case`): phases inference and training.

    On one device the U-Net with transposed convolution has the stock Flax U-Net and torch's beside it; both need a size that can be
    halved at every level.

    Raises:
      RuntimeError: ours and another implementation do not compute the same.
    """
    halved = setting.size % 2 ** (len(setting.features) - 1) == 0
    beside = (name, method, len(devices)) == ("unet", "transposed", 1) and halved
    same = None
    if beside and peer is not None:
        same = SameNetwork("unet", {"features": setting.features}, by_path, peer.modes)
    return run_network(name, make_model(name, method, setting), setting, devices, stock=beside, peer=peer, same=same, budget_s=budget_s)


@dataclasses.dataclass(frozen=True)
class SameNetwork:
    """A network of torch that is one of ours: what the peer is asked to build, and our variables by the names that it loads."""

    do: str
    options: Mapping[str, Any]
    weights: Callable[[Any], dict[str, np.ndarray]]
    modes: tuple[str, ...] = ("eager",)


def run_network(
    name: str,
    model: nn.Module,
    setting: Setting,
    devices: Sequence[Any],
    *,
    stock: bool = False,
    peer: TorchPeer | None = None,
    same: SameNetwork | None = None,
    budget_s: float = 4.8,
) -> dict[str, Any]:
    """The record of one model: phases inference and training, beside the stock U-Net and the `same` network of torch where they are given.

    Raises:
      RuntimeError: ours and another implementation do not compute the same.
    """
    optimizer = optax.adam(LEARNING_RATE)
    state = random_state(model, optimizer, (setting.batch, setting.size, setting.size, CHANNELS))
    batch = random_batch(setting)
    calls = {"ours": our_calls(model, optimizer, state, batch, setting.parallel, devices)}
    errors: dict[str, dict[str, float]] = {}
    if stock:
        calls["stock"] = _stock_calls(state, batch, setting, optimizer)
    theirs = peer if same else None
    if stock or theirs:
        ours, *others = (_results(made) for made in calls.values())
        if stock:
            errors["stock"] = differences(others[0], ours)
        if theirs and same:
            options = {**same.options, "dtype": setting.dtype, "learning_rate": LEARNING_RATE, "compiled": len(same.modes) > 1}
            errors["torch"] = theirs.build(same.do, {**same.weights(state.variables), **batch, **ours}, **options)
        need_agreement(f"{name} {setting}", errors, lambda result: TOLERANCE[result][setting.dtype])

    rates = machine_rates(setting.dtype)
    record: dict[str, Any] = {"rates": dataclasses.asdict(rates), "errors": errors, "phases": {}, "notes": []}
    for phase in ("inference", "training"):
        turn = {who: made[phase] for who, made in calls.items()}
        budget = budget_s * len(calls) ** 0.5
        modes = same.modes if same else ()
        found, failed = contest(turn, rates, budget_s=budget, block_s=0.3, images=setting.batch, peer=theirs, phase=phase, modes=modes)
        record["phases"][phase] = found
        record["notes"] += failed
    if theirs:
        theirs.ask("drop")
    return record


def by_path(variables: Any) -> dict[str, np.ndarray]:
    """Our variables by Flax's names, "params/down0_conv1/kernel", which torch_peer.py's own U-Net reads."""
    return {"/".join(path): value for path, value in flatten_dict(variables).items()}  # type: ignore[misc]


def random_batch(setting: Setting) -> dict[str, np.ndarray]:
    r = np.random.default_rng(0)
    shape = (setting.batch, setting.size, setting.size)
    return {"image": r.random((*shape, CHANNELS), np.float32), "label": r.integers(0, CLASSES, shape).astype(np.int32)}


def random_state(model: nn.Module, optimizer: optax.GradientTransformation, shape: tuple[int, int, int, int]) -> TrainState:
    """A state as `init_state` makes it, filled by numpy: compiling the initialisers would take longer than many a measurement."""
    r = np.random.default_rng(0)

    def fill(path: tuple[str, ...], leaf: Any) -> np.ndarray:
        if path[-1] in ("scale", "var"):
            return np.ones(leaf.shape, leaf.dtype)
        if path[-1] == "kernel":
            fan_in = leaf.shape[-2] if path[-2].endswith("_sample") else math.prod(leaf.shape[:-1])
            return (math.sqrt(2 / fan_in) * r.normal(size=leaf.shape)).astype(leaf.dtype)
        return np.zeros(leaf.shape, leaf.dtype)

    shapes = jax.eval_shape(functools.partial(init_state, model, optimizer, shape))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    params, stats = (
        unflatten_dict({path: fill(path, leaf) for path, leaf in flatten_dict(tree).items()})
        for tree in (shapes.params, shapes.batch_stats)
    )
    return zeros.replace(params=params, batch_stats=stats)


def our_calls(
    model: Any,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: dict[str, np.ndarray],
    how: Parallel,
    devices: Sequence[Any],
) -> dict[str, Call]:
    """Inference and training over `devices`, compiled, with a function that makes the next step of each.

    The training step is `parallel_step`'s, inside one more `jax.jit`, so that its costs can be read and it compiles once.
    """
    mesh, n = data_mesh(devices), len(devices)
    whole, sharded = replicated(mesh), NamedSharding(mesh, PartitionSpec(AXIS))
    variables, there = jax.device_put(state.variables, whole), jax.device_put(batch, sharded)
    if how == "pmap":
        infer: Any = jax.pmap(model.apply, in_axes=(None, 0), devices=devices)  # type: ignore[arg-type]
        image = batch["image"].reshape(n, -1, *batch["image"].shape[1:])
    else:
        infer, image = jax.jit(model.apply, in_shardings=(whole, sharded), out_shardings=sharded), there["image"]
    inference = compile_program(infer, variables, image, devices=n)

    def step(state, batch, axis_name=None):
        return train_step(
            state,
            batch,
            model=model.clone(axis_name=axis_name),
            axis_name=axis_name,
            optimizer=optimizer,
            loss=losses.cross_entropy,
            mean=jnp.zeros(CHANNELS),
            std=jnp.ones(CHANNELS),
        )

    start = jax.device_put(state, whole)
    training = compile_program(jax.jit(parallel_step(step, how, devices), donate_argnums=0), start, there, devices=n)
    return {
        "inference": (inference, functools.partial(inference.call, variables, image)),
        "training": (training, _Loop(training.call, start, there)),
    }


class _Loop:
    """Training step after training step: each call makes one, from the state that the last has left, and returns its loss."""

    def __init__(self, step: Callable[[Any, Any], tuple[Any, Any]], state: Any, batch: Any):
        self.step, self.state, self.batch = step, state, batch

    def __call__(self) -> Any:
        self.state, metrics = self.step(self.state, self.batch)
        jax.block_until_ready(self.state)
        return metrics["loss"] if isinstance(metrics, dict) else metrics


def _stock_calls(
    state: TrainState, batch: dict[str, np.ndarray], setting: Setting, optimizer: optax.GradientTransformation
) -> dict[str, Call]:
    dtype = None if setting.dtype == "float32" else jnp.dtype(setting.dtype)
    variables, start, infer, step = stock_programs(
        state.variables, num_classes=CLASSES, features=setting.features, dtype=dtype, optimizer=optimizer
    )
    variables, start, there = jax.device_put((variables, start, batch))
    inference, training = compile_program(infer, variables, there["image"]), compile_program(step, start, there)
    return {
        "inference": (inference, functools.partial(inference.call, variables, there["image"])),
        "training": (training, _Loop(training.call, start, there)),
    }


def _results(calls: dict[str, Call]) -> dict[str, np.ndarray]:
    """Logits, and the losses of the first training steps."""
    logits = np.asarray(calls["inference"][1](), np.float32)
    return {"logits": logits, "losses": np.array([float(calls["training"][1]()) for _ in range(CHECKED_STEPS)])}
