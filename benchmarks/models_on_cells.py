"""Every model of jaxseg.models.MODELS on the generated cells: minutes of training each on 2 cores, and the test mIoU that it reaches.

    python benchmarks/models_on_cells.py runs/models

Runs `jaxseg train configs/cells_models.py --model NAME` for each, narrow networks (the config says how narrow), and writes table.md. An
interrupted model goes on where it stopped, a finished one is only tested again. The networks are narrowed to what a CPU trains in the
time, not to equal cost: the table shows that each learns, and does not rank the papers.
"""

import statistics
from pathlib import Path
from typing import Annotated

import jax
import tyro

from jaxseg.cli import main as jaxseg
from jaxseg.cli import script
from jaxseg.data import open_dataset
from jaxseg.errors import InputError
from jaxseg.evaluate import evaluate_split
from jaxseg.models import MODELS
from jaxseg.run_folder import load_run, read_metrics

CONFIG = Path(__file__).parent.parent / "configs" / "cells_models.py"
STEPS = 200


def main(
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    only: tuple[str, ...] = (),
    steps: int = STEPS,
) -> None:
    """Train and test every model on the generated cells and write the table.

    Args:
      out: folder of the runs and of the data, which is generated.
      only: these models; all by default.
      steps: optimizer steps of each.
    """
    unknown = [name for name in only if name not in MODELS]
    if unknown:
        raise InputError(f"--only: got {', '.join(unknown)}; there are {', '.join(MODELS)}.")
    prepare(out / "data")
    rows = [learn(name, out, steps) for name in only or MODELS]
    lines = [f"{steps} steps of configs/cells_models.py, {jax.devices()[0].device_kind}, jax {jax.__version__}", ""]
    lines += ["| model | parameters | images/s | test mIoU |", "| --- | --: | --: | --: |"]
    lines += [f"| {r['name']} | {r['parameters']:,} | {r['rate']:.1f} | {r['miou']:.3f} |" for r in rows]
    (out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def prepare(data: Path) -> None:
    """Generates the cells in `data`, unless they are there."""
    if jaxseg(["data", "prepare", "cells", "--data-dir", str(data)]):
        raise InputError(f"{data}: the cells could not be prepared; the message is above.")


def learn(name: str, out: Path, steps: int) -> dict[str, float | int | str]:
    """Trains one model in `out`/NAME; its parameters, images/s and test mIoU."""
    run = out / name
    options = ["--model", name, "--steps", str(steps)]
    if jaxseg(["train", str(CONFIG), *options, "--data-dir", str(out / "data"), "--workdir", str(run)]):
        raise InputError(f"{run}: the training ended with an error; the message is above.")
    lines = read_metrics(run)
    done = max((line["step"] for line in lines), default=0)
    if done < steps:
        raise InputError(f"{run}: stopped at step {done} of {steps}. The same command goes on from there.")
    trained = load_run(run)
    scores, _ = evaluate_split(trained.predict, trained.variables, open_dataset("cells", out / "data"), "test")
    parameters = sum(leaf.size for leaf in jax.tree.leaves(trained.variables["params"]))
    rate = statistics.median(line["images_per_s"] for line in lines if "images_per_s" in line)
    return {"name": name, "parameters": parameters, "rate": rate, "miou": scores["miou"]}


if __name__ == "__main__":
    script(main)
