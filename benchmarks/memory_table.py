"""Peak bytes, FLOPs and step time of the U-Net's training step on large images: as it is, recomputed, accumulated, in bfloat16.

    python benchmarks/memory_table.py --out memory.md

Bytes and FLOPs are what the compiler says of the program at --size (arguments + results + temporaries; XLA allots them before it runs), so
nothing of that size is ever run. Steps are timed at --time-size, all in turn, as ratios to the first; --steps 0 leaves them out. XLA of
jax before 0.11.1 drops barriers on CPUs, and with them what remat and accumulate save: no gain there.
"""

import functools
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from jaxseg.benchmark.measure import alternate, compile_program, stepper
from jaxseg.cli import script
from jaxseg.losses import cross_entropy
from jaxseg.models import UNet
from jaxseg.progress import progress
from jaxseg.train_state import init_state, train_step

WAYS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "remat": {"remat": True},
    "accumulate 2": {"accumulate": 2},
    "accumulate 4": {"accumulate": 4},
    "accumulate 4, remat": {"accumulate": 4, "remat": True},
    "bfloat16": {"dtype": jnp.bfloat16},
    "bfloat16, accumulate 4, remat": {"dtype": jnp.bfloat16, "accumulate": 4, "remat": True},
}
HEAD = "| step | peak GiB | of the first | TFLOP | step time of the first |\n| --- | --: | --: | --: | --: |"


def main(
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.md")],
    size: int = 1024,
    batch: int = 4,
    features: tuple[int, ...] = (32, 64, 128, 256, 512),
    time_size: int = 128,
    steps: int = 5,
) -> None:
    """Compile the training step in each of the ways, and write the table.

    Args:
      out: the table, in Markdown.
      size: side of the images whose program is measured.
      batch: images a step, a multiple of 4.
      features: channels of each level of the U-Net, finest first.
      time_size: side of the images of the steps that are timed.
      steps: timed steps of each; 0 times none.
    """
    programs, timed = {}, {}
    with progress("compiling", len(WAYS) * (2 if steps else 1)) as advance:
        for way, options in WAYS.items():
            advance(1, note=way)
            state, images, step = training_step(size, batch, features, **options)
            quickly = {"xla_backend_optimization_level": 0}  # of the machine code, which decides nothing about memory
            programs[way] = compile_program(jax.jit(step, compiler_options=quickly), state, images)
            print(f"{way}: {programs[way].peak_bytes / 2**30:.2f} GiB, {programs[way].compile_s:.0f} s to compile", flush=True)
            if steps:
                advance(1, note=f"{way}, {time_size} x {time_size}")
                state, images, step = training_step(time_size, batch, features, **options)
                arrays = jax.tree.map(lambda x: jnp.asarray(np.full(x.shape, 0.01, x.dtype)), (state, images))
                timed[way] = stepper(functools.partial(jax.jit(step), *arrays))
    times = alternate(timed, budget_s=0, block_s=0, min_rounds=steps) if steps else {}

    first, device = next(iter(programs.values())), jax.devices()[0]
    rows = [
        f"{device.platform} ({device.device_kind}), jax {jax.__version__}: UNet {features}, batch norm, {batch} x {size} x {size}"
        + f"; steps at {time_size} x {time_size}, {steps} each" * bool(steps),
        "",
        HEAD,
    ]
    for way, program in programs.items():
        share, tera = program.peak_bytes / first.peak_bytes, program.flops / 1e12
        ratio = f"{times[way].ratio:.2f}" if steps else "-"
        rows.append(f"| {way} | {program.peak_bytes / 2**30:.2f} | {share:.2f} | {tera:.2f} | {ratio} |")
    out.write_text("\n".join(rows) + "\n")
    print("\n".join(rows))


def training_step(
    size: int, batch: int, features: tuple[int, ...], *, remat: bool = False, accumulate: int = 1, dtype: Any = None
) -> tuple[Any, dict[str, jax.ShapeDtypeStruct], Any]:
    """The shapes of the state and of a batch, and the step."""
    model = UNet(2, features, padding="same", norm="batch", dropout=0.0, dtype=dtype, remat=remat)
    optimizer = optax.adam(1e-3)
    state = jax.eval_shape(functools.partial(init_state, model, optimizer, (batch, size, size, 1)))
    images = {
        "image": jax.ShapeDtypeStruct((batch, size, size, 1), jnp.float32),
        "label": jax.ShapeDtypeStruct((batch, size, size), jnp.int32),
    }
    step = functools.partial(train_step, model=model, optimizer=optimizer, loss=cross_entropy, mean=jnp.zeros(1), std=jnp.ones(1))
    return state, images, functools.partial(step, accumulate=accumulate)


if __name__ == "__main__":
    script(main)
