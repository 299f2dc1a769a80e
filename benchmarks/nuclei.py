"""Nuclei as objects: trained runs beside methods without learning, on dsb2018's validation images.

    jaxseg data prepare dsb2018 --source FOLDER --data-dir data
    python benchmarks/nuclei.py --data-dir data runs/nuclei_border ...

Prints a Markdown table: average precision TP / (TP + FP + FN) over all objects of the split at IoU 0.5 to 0.9, the mean of the nine
thresholds 0.5, 0.55 ... 0.9, panoptic quality, and by how many objects an image's count is wrong.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from jaxseg.cli import script
from jaxseg.data import Dataset, open_dataset
from jaxseg.errors import InputError
from jaxseg.evaluate import check_same_kind, evaluate_objects, true_objects
from jaxseg.instances import baselines
from jaxseg.instances.matching import FINE_THRESHOLDS, THRESHOLDS, match, scores
from jaxseg.progress import progress
from jaxseg.run_folder import load_run

BASELINES = {"Otsu, connected components": baselines.otsu_components, "Otsu, distance watershed": baselines.otsu_watershed}


def main(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")] = (),
    data_dir: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("data"),
    data: str = "dsb2018",
    split: str = "val",
) -> None:
    """Score runs of `jaxseg train configs/nuclei_*.py` and the methods without learning.

    Args:
      runs: run folders.
      data_dir: where the data set was prepared.
      data: its name.
      split: which images.
    """
    dataset = open_dataset(data, data_dir)
    rows = {name: score_baseline(method, dataset, split) for name, method in BASELINES.items()}
    for folder in runs:
        rows[f"{folder.name}, step {load_run(folder).step}"] = score_run(folder, dataset, split)
    print(table(rows))


def score_baseline(method: Callable[[np.ndarray], np.ndarray], dataset: Dataset, split: str) -> dict[str, Any]:
    matchings = []
    with progress(method.__name__, dataset.splits[split]) as advance:
        for record in dataset.split(split):
            matchings.append(match(true_objects(record), method(record["image"]), FINE_THRESHOLDS))
            advance(1)
    return scores(matchings)


def score_run(folder: Path, dataset: Dataset, split: str) -> dict[str, Any]:
    run = load_run(folder)
    if run.route is None:
        raise InputError(f"{folder}: separates no objects; required is a run of a config with `instances`. Leave it out.")
    check_same_kind(run, dataset, split)
    return evaluate_objects(run.predict, run.variables, dataset, split, run.route, thresholds=FINE_THRESHOLDS)


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    lines = [f"| method | {' | '.join(f'AP {t:.1f}' for t in THRESHOLDS)} | mean AP | PQ | count error |"]
    lines += ["| --- |" + " --: |" * (len(THRESHOLDS) + 3)]
    for name, row in rows.items():
        ap = dict(zip(row["thresholds"], row["ap"], strict=True))
        numbers = *(ap[t] for t in THRESHOLDS), row["mean_ap"], row["pq"]
        lines += [f"| {name} | {' | '.join(f'{n:.3f}' for n in numbers)} | {row['count_error']:.2f} |"]
    return "\n".join(lines)


if __name__ == "__main__":
    script(main)
