"""`jaxseg evaluate`: the scores of a trained model over a whole split."""

import dataclasses
import functools
import itertools
import json
import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Float, Int
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxseg import metrics, parallel
from jaxseg.data import Dataset, cells, open_dataset, to_float
from jaxseg.data.listing import Record
from jaxseg.data.pipeline import IGNORED
from jaxseg.em_metrics import em_scores
from jaxseg.errors import InputError
from jaxseg.image_files import check_dtype
from jaxseg.inference.whole import Predict
from jaxseg.instances import matching
from jaxseg.instances.routes import Route
from jaxseg.progress import progress
from jaxseg.run_folder import Run, load_run
from jaxseg.train_state import eval_step

BASELINES: dict[str, dict[str, Callable[[np.ndarray], np.ndarray]]] = {"cells": {"Otsu": cells.otsu_baseline}}
"""By data set: predictors [H,W,C] -> [H,W] without training, scored beside the model."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One image of the split, what the model made of it, and its own mean IoU (nan where it has no labelled pixel)."""

    record: Record
    label: Int[np.ndarray, "h w"]
    logits: Float[np.ndarray, "h w k"]
    miou: float


def predictions(
    predict: Predict, variables: Any, records: Sequence[Record], *, batch_size: int = 4, title: str = "evaluating"
) -> Iterator[tuple[Int[np.ndarray, "k k"], Prediction]]:
    """(confusion matrix, prediction) of every record in order. Images of one size in a row share a batch, split over all devices.

    A short batch is filled up with copies that are left out of the result, so each size compiles once and nothing is dropped.
    """
    for record, (matrix, logits) in _whole_images(eval_step, predict, variables, records, batch_size, title):
        matrix = matrix.astype(np.int64)
        miou = metrics.scores(matrix)["miou"] if matrix.sum() else float("nan")
        yield matrix, Prediction(record, record["label"].astype(np.int32), logits, miou)


def _whole_images(
    function: Callable[..., Any], predict: Predict, variables: Any, records: Sequence[Record], batch_size: int, title: str
) -> Iterator[tuple[Record, Any]]:
    """(record, its part of what `function` gives for its batch) of every record in order."""
    step, sharded, whole = _program(function, predict)
    variables = jax.device_put(variables, whole)
    devices = len(jax.devices())
    batch_size = -(-batch_size // devices) * devices
    with progress(title, len(records)) as advance:
        for _, group in itertools.groupby((records[i] for i in range(len(records))), key=lambda r: r["image"].shape):
            while chunk := list(itertools.islice(group, batch_size)):
                fill = batch_size - len(chunk)
                image = np.stack([to_float(r["image"]) for r in chunk + chunk[:1] * fill])
                label = np.stack([r["label"].astype(np.int32) for r in chunk + chunk[:1] * fill])
                results = jax.device_get(step(variables, jax.device_put({"image": image, "label": label}, sharded)))
                for i, record in enumerate(chunk):
                    yield record, jax.tree.map(operator.itemgetter(i), results)
                    advance(1)


@functools.lru_cache(maxsize=4)
def _program(function: Any, predict: Predict) -> tuple[Callable[..., Any], jax.sharding.Sharding, jax.sharding.Sharding]:
    """The compiled function, and the shardings of its batch and of its variables: kept, for training evaluates many times."""
    mesh = parallel.data_mesh()
    sharded, whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(parallel.AXIS)), parallel.replicated(mesh)
    step = functools.partial(function, predict=predict)
    return jax.jit(step, in_shardings=(whole, sharded), out_shardings=whole), sharded, whole


def evaluate_split(
    predict: Predict, variables: Any, dataset: Dataset, split: str, *, see: Callable[[Prediction], None] | None = None
) -> tuple[dict[str, Any], Int[np.ndarray, "k k"]]:
    """(scores, confusion matrix) over a split, with the data set's own metrics; `see` is shown every prediction."""
    info = dataset.info
    total = np.zeros((info.num_classes, info.num_classes), np.int64)
    inside, labels = [], []
    for matrix, prediction in predictions(predict, variables, dataset.split(split), title=f"evaluating {split}"):
        total += matrix
        if info.name == "isbi2012":
            inside.append(np.asarray(jax.nn.softmax(prediction.logits, -1))[..., 1])
            labels.append(prediction.label)
        if see is not None:
            see(prediction)
    scores = metrics.scores(total, info.class_names)
    if inside:
        scores |= em_scores(inside, labels)
    return scores, total


@dataclasses.dataclass(frozen=True)
class ObjectPrediction:
    """One image of the split, the objects that the model separated in it, and how they match the true ones."""

    record: Record
    prediction: Int[np.ndarray, "h w"]
    matching: matching.Matching


def evaluate_objects(
    predict: Predict,
    variables: Any,
    dataset: Dataset,
    split: str,
    route: Route,
    *,
    thresholds: Sequence[float] = matching.THRESHOLDS,
    see: Callable[[ObjectPrediction], None] | None = None,
) -> dict[str, Any]:
    """The scores of `jaxseg.instances.matching` over a split; `see` is shown every image with its objects."""
    matchings = []
    for record, logits in _whole_images(_logits, predict, variables, dataset.split(split), 1, f"evaluating {split}"):
        prediction = route.decode(logits)
        matchings.append(matching.match(true_objects(record), prediction, thresholds))
        if see is not None:
            see(ObjectPrediction(record, prediction, matchings[-1]))
    return matching.scores(matchings)


def true_objects(record: Record) -> Int[np.ndarray, "h w"]:
    """The instance map of a record, -1 where its label is ignored."""
    return np.where(record["label"] == IGNORED, -1, record["instances"]).astype(np.int32)


def _logits(variables: Any, batch: Any, *, predict: Predict) -> Any:
    return predict(variables, batch["image"])


def baseline_scores(dataset: Dataset, split: str) -> dict[str, float]:
    """Mean IoU of each untrained baseline of the data set."""
    result = {}
    for name, baseline in BASELINES.get(dataset.info.name, {}).items():
        total = np.zeros((dataset.info.num_classes,) * 2, np.int64)
        for record in dataset.split(split):
            pair = jnp.asarray(record["label"][None].astype(np.int32)), jnp.asarray(baseline(record["image"])[None].astype(np.int32))
            total += np.asarray(metrics.confusion_matrix(*pair, num_classes=dataset.info.num_classes))
        result[name] = metrics.scores(total)["miou"]
    return result


def evaluate(
    workdir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="WORKDIR")],
    split: str | None = None,
    data: str | None = None,
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
) -> int:
    """Score a trained model over every image of a split, whole.

    For example: `jaxseg evaluate runs/cells --split test`. The last line on standard output is one JSON object.

    Args:
      workdir: run folder of `jaxseg train`.
      split: which split; by default the one that the config calls its test split.
      data: another prepared data set of the same classes and channels.
      data_dir: where the data set was prepared; by default where the training read it.
    """
    run = load_run(workdir)
    try:
        dataset = open_dataset(data or run.info.name, data_dir or run.description["data_dir"])
    except InputError as error:
        raise error if data_dir else InputError(f"{error}; or say with --data-dir where the data set is now") from error
    check_same_kind(run, dataset, str(split or run.description["splits"]["test"]))
    split = str(split or run.description["splits"]["test"])
    title = f"{workdir}, step {run.step}, on {split} of {dataset.info.name} ({dataset.splits[split]} images)"
    if run.route is not None:
        scores = evaluate_objects(run.predict, run.variables, dataset, split, run.route)
        print_object_scores(title, scores)
        line = {k: matching.finite(v) for k, v in scores.items()} | {"step": run.step, "split": split, "images": dataset.splits[split]}
        print(json.dumps(line), flush=True)
        return 0
    scores, confusion = evaluate_split(run.predict, run.variables, dataset, split)
    baselines = baseline_scores(dataset, split)
    print_scores(title, scores, confusion, baselines)
    line = metrics.scores(confusion, dataset.info.class_names, json_safe=True)
    line |= {k: v for k, v in scores.items() if k not in line}
    line |= {"step": run.step, "split": split, "images": dataset.splits[split]} | {f"{k.lower()}_miou": v for k, v in baselines.items()}
    print(json.dumps(line), flush=True)
    return 0


def check_same_kind(run: Run, dataset: Dataset, split: str) -> None:
    """Raises InputError where a model cannot be used on a data set: other classes, channels or type of pixels, no objects."""
    info = dataset.info
    if run.route is not None and "instances" not in dataset.split(split)[0]:
        raise InputError(
            f"--data {info.name}: has no instance maps; the model separates objects (route {run.route.name}). "
            "Choose a data set with instances."
        )
    if (info.class_names, info.channels) != (run.info.class_names, run.info.channels):
        raise InputError(
            f"--data {info.name}: has {info.channels} channels and classes {', '.join(info.class_names)}; the model was trained on "
            f"{run.info.channels} channels and {', '.join(run.info.class_names)}. Choose a data set of the same kind."
        )
    check_dtype(f"--data {info.name}", dataset.split(split)[0]["image"], run)


def print_scores(title: str, scores: dict[str, Any], confusion: np.ndarray, baselines: dict[str, float]) -> None:
    """A table of the classes and one of the whole, on standard output."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    table = Table(title=escape(title))
    for column in ("class", "IoU", "Dice", "accuracy", "pixels"):
        table.add_column(column, justify="left" if column == "class" else "right")
    names = scores["class_names"]
    for i, name in enumerate(names):
        row = [scores[k][i] for k in ("iou", "dice", "class_accuracy")]
        table.add_row(escape(name), *[_number(v) for v in row], f"{confusion[i].sum():,}")
    table.add_section()
    table.add_row("mean", *[_number(scores[k]) for k in ("miou", "mean_dice", "mean_class_accuracy")], f"{confusion.sum():,}")
    console.print(table)
    for name, value in scores.items():
        if isinstance(value, float) and name not in ("miou", "mean_dice", "mean_class_accuracy"):
            console.print(f"{name}: {_number(value)}")
    for name, value in baselines.items():
        console.print(f"mean IoU of {name}, without training: {value:.4f}  (the model: {scores['miou']:.4f})")


def print_object_scores(title: str, scores: dict[str, Any]) -> None:
    """A table of the thresholds, and the scores of the whole set, on standard output."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    table = Table(title=escape(title))
    for column in ("IoU above", "AP", "found", "missed", "extra"):
        table.add_column(column, justify="right")
    for threshold, ap, found in zip(scores["thresholds"], scores["ap"], scores["matches"], strict=True):
        counts = found, scores["objects"] - found, scores["predicted"] - found
        table.add_row(f"{threshold:.2f}", _number(ap), *[f"{count:,}" for count in counts])
    table.add_section()
    table.add_row("mean", _number(scores["mean_ap"]))
    console.print(table)
    console.print(f"panoptic quality {_number(scores['pq'])} = {_number(scores['sq'])} (mean IoU found) x {_number(scores['rq'])} (found)")
    console.print(f"mean over the images of AP above 0.50: {_number(scores['image_ap50'])}")
    console.print(
        f"objects: {scores['objects']:,}, predicted {scores['predicted']:,}; "
        f"an image's count is wrong by {scores['count_error']:.2f} (mean), by {scores['count_bias']:+.2f} with its sign"
    )


def _number(value: float) -> str:
    return "absent" if np.isnan(value) else f"{value:.4f}"
