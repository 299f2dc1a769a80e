"""What test-time augmentation gains on the EM membranes of ISBI 2012: the test slices as they are, turned, mirrored and resampled.

    jaxseg train configs/isbi2012_unet.py --data-dir data --workdir runs/isbi2012
    python benchmarks/test_time_augmentation.py runs/isbi2012 --out augmentation.md

The U-Net's row of the challenge is the mean over 7 rotated versions (Ronneberger et al. 2015, section 4). One model, no training here; the
scores are those of `jaxseg.em_metrics`, on the 6 held-out slices. About 40 passes a slice.
"""

from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxseg import metrics
from jaxseg.cli import script
from jaxseg.data import open_dataset, to_float
from jaxseg.em_metrics import em_scores
from jaxseg.errors import InputError
from jaxseg.inference.augmented import augmented
from jaxseg.progress import progress
from jaxseg.run_folder import load_run

WAYS: dict[str, dict[str, Any]] = {
    "as it is": {"symmetries": 1},
    "4 rotations": {"symmetries": 4},
    "8 symmetries": {"symmetries": 8},
    "8 symmetries at 0.8, 1, 1.25": {"symmetries": 8, "scales": (0.8, 1.0, 1.25)},
}
SCORES = ("pixel_error", "pixel_disagreement", "rand_score", "information_score")
HEAD = "| test slices | passes | pixel error | wrong pixels | Rand score | information score | mIoU |\n|---|--:|--:|--:|--:|--:|--:|"


def main(
    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")], out: Annotated[Path, tyro.conf.arg(metavar="FILE.md")]
) -> None:
    """Score a run on isbi2012's test slices in each of the ways, and write the table.

    Args:
      run_folder: of `jaxseg train configs/isbi2012_unet.py`.
      out: the table, in Markdown.
    """
    run = load_run(run_folder)
    if run.info.name != "isbi2012":
        raise InputError(f"{run_folder}: was trained on {run.info.name}; required a run of configs/isbi2012_unet.py.")
    dataset = open_dataset("isbi2012", Path(run.description["data_dir"]))
    slices = dataset.split("test")
    predict = jax.jit(run.predict)  # one program for each size, however often it runs
    rows = [f"{run_folder.name}, step {run.step}, slices of {dataset.splits['test']}", "", HEAD]
    with progress("scoring", len(WAYS) * len(slices)) as advance:
        for way, options in WAYS.items():
            average = augmented(predict, **options)
            matrix, inside, labels = np.zeros((2, 2), np.int64), [], []
            for record in (slices[i] for i in range(len(slices))):
                probabilities = np.exp(np.asarray(average(run.variables, jnp.asarray(to_float(record["image"]))[None])[0]))
                label = record["label"].astype(np.int32)
                matrix += np.asarray(metrics.confusion_matrix(label[None], probabilities.argmax(-1)[None], num_classes=2))
                inside.append(probabilities[..., 1])
                labels.append(label)
                advance(1, note=way)
            scores = em_scores(inside, labels)
            values = [*(scores[name] for name in SCORES), metrics.scores(matrix)["miou"]]
            passes = options["symmetries"] * len(options.get("scales", (1.0,)))
            rows.append(f"| {way} | {passes} | {' | '.join(f'{value:.4f}' for value in values)} |")
            out.write_text("\n".join(rows) + "\n")
    print("\n".join(rows))


if __name__ == "__main__":
    script(main)
