"""The report of a finished run: its best checkpoint over the test split, with the best and the worst images."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxseg.data import Dataset
from jaxseg.evaluate import (
    ObjectPrediction,
    Prediction,
    baseline_scores,
    evaluate_objects,
    evaluate_split,
    print_object_scores,
    print_scores,
    true_objects,
)
from jaxseg.instances import matching
from jaxseg.instances.routes import Route
from jaxseg.report import Panel, write_report
from jaxseg.report_objects import ObjectPanel, write_object_report
from jaxseg.run_folder import Run, load_run, read_metrics

PANELS = 4  # of the best, and of the worst


def report_run(workdir: Path, dataset: Dataset) -> None:
    """Evaluates the run on its test split, prints the scores and writes WORKDIR/report.html."""
    run = load_run(workdir)
    split = run.description["splits"]["test"]
    if run.route is not None:
        _report_objects(workdir, dataset, run, run.route, split)
        return
    panels: list[Panel] = []

    def see(p: Prediction) -> None:
        _keep(panels, Panel(p.record["name"], p.record["image"], p.label, np.argmax(p.logits, -1).astype(np.int32), p.miou))

    scores, confusion = evaluate_split(run.predict, run.variables, dataset, split, see=see)
    baselines = baseline_scores(dataset, split)
    history = read_metrics(workdir)
    write_report(
        workdir / "report.html",
        title=f"{type(run.model).__name__} on {dataset.info.name}",
        facts=_facts(run, dataset, split, history),
        history=history,
        scores=scores,
        confusion=confusion,
        class_names=dataset.info.class_names,
        colours=dataset.info.colours,
        panels=panels,
        baselines=baselines,
    )
    print_scores(f"{split} of {dataset.info.name}, {dataset.splits[split]} images, step {run.step}", scores, confusion, baselines)
    print(f"report: {workdir / 'report.html'}")


def _report_objects(workdir: Path, dataset: Dataset, run: Run, route: Route, split: str) -> None:
    panels: list[ObjectPanel] = []

    def see(p: ObjectPrediction) -> None:
        score = matching.scores([p.matching])["ap50"]
        _keep(panels, ObjectPanel(p.record["name"], p.record["image"], true_objects(p.record), p.prediction, score))

    scores = evaluate_objects(run.predict, run.variables, dataset, split, route, see=see)
    history = read_metrics(workdir)
    write_object_report(
        workdir / "report.html",
        title=f"Objects by {type(run.model).__name__} on {dataset.info.name}",
        facts={"route": route.name, **_facts(run, dataset, split, history)},
        history=history,
        scores=scores,
        panels=panels,
    )
    print_object_scores(f"{split} of {dataset.info.name}, {dataset.splits[split]} images, step {run.step}", scores)
    print(f"report: {workdir / 'report.html'}")


def _keep(panels: list[Any], panel: Any) -> None:
    """Of the images with a score the best and the worst, in order."""
    if not np.isnan(panel.score):
        panels[:] = sorted([*panels, panel], key=lambda p: -p.score)
        del panels[PANELS:-PANELS]


def _facts(run: Any, dataset: Dataset, split: str, history: list[dict[str, Any]]) -> dict[str, str]:
    devices = f"{len(jax.devices())} x {jax.devices()[0].device_kind}"
    rates = [row["images_per_s"] for row in history if "images_per_s" in row]
    fields = {k: v for k, v in run.description["model"]["fields"].items() if v is not None}
    upsample = fields.get("upsample")  # an upsampler, or a name in the model's own words
    return {
        "model": f"{type(run.model).__name__}({', '.join(f'{k}={v}' for k, v in fields.items() if k != 'upsample')})",
        **({"upsampler": upsample["name"] if isinstance(upsample, dict) else upsample} if upsample else {}),
        "parameters": f"{sum(x.size for x in jax.tree.leaves(run.variables['params'])):,}",
        "data": f"{dataset.info.name}: {', '.join(f'{n} {s}' for s, n in dataset.splits.items())}; scored on {split}",
        "steps": f"{run.description['steps']}; shown is step {run.step}",
        "speed": f"{np.median(rates):.1f} images/s (median) on {devices}" if rates else "not measured",
        "versions": f"jaxseg {run.description['jaxseg']}, jax {run.description['jax']}",
        "command": run.description["command"],
    }
