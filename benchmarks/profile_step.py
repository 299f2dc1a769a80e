"""Where the time of a training step goes: `python benchmarks/profile_step.py [SIZE BATCH [MODEL]]` prints a table.

The step is that of `jaxseg benchmark upsampling` (base 32, depth 4, batch normalisation, Adam), or of a MODEL of `jaxseg benchmark models`,
such as encoder_unet/resnet18. The times are those of the profiler, summed
over its threads and by kind of the compiled operations, so they add up to more than the step where operations run beside each other.
Of the U-Net then the step with one thing changed, in turn with the step itself: what is left on the table.
"""

import collections
import functools
import glob
import gzip
import json
import re
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxseg import losses
from jaxseg.benchmark.measure import alternate, compile_program, stepper
from jaxseg.benchmark.model_family import NUM_CLASSES, OPTIONS
from jaxseg.benchmark.models import CHANNELS, Setting, _Loop, make_model, random_batch, random_state
from jaxseg.model_table import variants
from jaxseg.train_state import train_step

STEPS = 3


def main(size: str = "128", batch: str = "4", model: str | None = None) -> None:
    setting = Setting(size=int(size), batch=int(batch))
    if model is not None:
        print(f"{model}, {batch} x {size} x {size}, jax {jax.__version__} on {jax.devices()[0].device_kind}\n")
        family, make = variants([model])[model]
        loop, text = _training(setting, network=make(NUM_CLASSES, **OPTIONS.get(family, {})))
        kinds = _kinds(loop, text, _any_kind)
        for kind, ms in sorted(kinds.items(), key=lambda item: -item[1]):
            print(f"{ms:8.1f} ms  {100 * ms / sum(kinds.values()):3.0f}%  {kind}")
        return
    print(f"U-Net {setting.features}, {batch} x {size} x {size}, jax {jax.__version__} on {jax.devices()[0].device_kind}\n")
    loop, text = _training(setting)
    for kind, ms in sorted(_kinds(loop, text, _kind).items(), key=lambda item: -item[1]):
        print(f"{ms:8.1f} ms  {kind}")
    print("\nthe step with one thing changed, its time over the step's:")
    changes: dict[str, dict[str, Any]] = {
        "one-hot cross-entropy instead of a gather": {"loss": _one_hot},
        "SGD instead of Adam": {"optimizer": optax.sgd(1e-3)},
        "state not donated": {"donate": False},
        "group normalisation": {"norm": "group"},
        "no normalisation": {"norm": None},
        "direct instead of Winograd convolutions": {"direct": True},
    }
    for name, change in changes.items():
        other, _ = _training(setting, **change)
        times = alternate({"ours": stepper(loop), "other": stepper(other)}, budget_s=6, block_s=0.5)
        print(f"{times['other'].step_ms / times['ours'].step_ms:8.2f}     {name}")


def _training(
    setting: Setting,
    loss: Any = losses.cross_entropy,
    optimizer: Any = None,
    donate: bool = True,
    direct: bool = False,
    network: Any = None,
    **model_change: Any,
) -> tuple[_Loop, str]:
    model = network or make_model("unet", "transposed", setting).clone(**model_change)
    optimizer = optimizer or optax.adam(1e-3)
    state = random_state(model, optimizer, (setting.batch, setting.size, setting.size, CHANNELS))
    step = functools.partial(train_step, model=model, optimizer=optimizer, loss=loss, mean=jnp.zeros(CHANNELS), std=jnp.ones(CHANNELS))
    start, images = jax.device_put((state, random_batch(setting)))
    from jaxseg import ops

    ours = ops.conv_general_dilated
    ops.conv_general_dilated = jax.lax.conv_general_dilated if direct else ours
    program = compile_program(jax.jit(step, donate_argnums=(0,) if donate else ()), start, images)
    ops.conv_general_dilated = ours
    return _Loop(program.call, start, images), program.call.as_text()


def _one_hot(logits: jax.Array, label: jax.Array, **rest: Any) -> jax.Array:
    return optax.softmax_cross_entropy(logits, jax.nn.one_hot(label, logits.shape[-1])).mean()


def _kinds(loop: _Loop, text: str, kind: Callable[[str, str, str], str]) -> dict[str, float]:
    """Milliseconds a step by kind of operation."""
    operations = {}
    for line in text.splitlines():
        if found := re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (\S+) ([\w\-]+)\(", line):
            source = re.search(r'op_name="([^"]*)"', line)
            operations[found.group(1)] = kind(found.group(1), found.group(2), source.group(1) if source else "")
    with tempfile.TemporaryDirectory() as folder:
        loop()
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            for _ in range(STEPS):
                loop()
        with gzip.open(glob.glob(f"{folder}/**/*perfetto*.gz", recursive=True)[0]) as file:
            trace = json.load(file)
    times: dict[str, float] = collections.defaultdict(float)
    for event in trace["traceEvents"] if isinstance(trace, dict) else trace:
        if event.get("ph") == "X" and event.get("name") in operations:
            times[operations[event["name"]]] += event["dur"] / 1e3 / STEPS
    return times


def _any_kind(name: str, shape: str, source: str) -> str:
    """Of any model: what is computed, in which direction, in which of its parts."""
    where = re.search(r"[A-Z]\w*\.?\w*/(\w+?)[\d_]*[/.]", source)
    part = f", {where.group(1)}" if where else ""
    direction = "backward" if "transpose(" in source else "forward"
    if "copy" in name or "transpose" in name:
        return "copies and transposes" + part
    if "conv_general_dilated" in source:
        return f"XLA's convolutions, {direction}{part}"
    if "dot_general" in source:
        return f"matrix products (Winograd's, 1x1), {direction}{part}"
    return f"all else, {direction}{part}"


def _kind(name: str, shape: str, source: str) -> str:
    backward = "transpose(" in source
    if "conv_general_dilated" in source and "copy" not in name:
        return "direct convolution: " + ("weight gradient" if backward and "3,3," in shape else "input gradient" if backward else "forward")
    if "_sample/" in source:
        return "transposed convolution: " + ("backward" if backward else "forward")
    if "copy" in name or "transpose" in name:
        return "transposed copies for the weight gradients of direct convolutions"
    if "_conv" in source:
        return "Winograd convolution: " + ("backward" if backward else "forward")
    if "_norm" in source or "relu" in source or "/max" in source:
        return "normalisation and ReLU: " + ("backward" if backward else "forward")
    if "concatenate" in source or "concatenate" in name:
        return "concatenation of skips"
    if "UNet" in source:
        return "pooling, crops, sums and the rest of the model"
    return "loss, optimizer and the rest"


if __name__ == "__main__":
    main(*sys.argv[1:])
