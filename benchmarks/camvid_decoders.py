"""SegNet's table 1 as an experiment: eight decoders behind one encoder, CamVid, two ways to weigh the classes, beside the paper's numbers.

    jaxseg data prepare camvid --source FOLDER --data-dir data
    python benchmarks/camvid_decoders.py runs/decoders --data-dir data --scale small

As in the paper (Badrinarayanan et al. 2017, section 3.2 and 3.3): He's initialisation, SGD of rate 0.1 and momentum 0.9, weight decay 5e-4,
12 pictures a step, no augmentation, the local response normalisation of the release; of all evaluations that with the best global accuracy
on the validation set is tested. Before every evaluation the batch-norm statistics are recomputed by a pass over the training set, as the
authors' compute_bn_statistics.py does. Scores are those of the pictures' full size at every scale. The loss is divided by the sum of the
class weights; the authors' is by the number of pixels, about twice that for median-frequency weights.

Each run leaves NAME.json and NAME.png, and those that are there are not run again, so the same command goes on where it was interrupted, at
the beginning of a run. table.md is written after every run.
"""

import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from camvid_decoders_table import PAPER, table
from scipy import ndimage

from jaxseg import losses, metrics
from jaxseg.cli import script
from jaxseg.data import Dataset, open_dataset, to_float, train_batches
from jaxseg.data.listing import Record
from jaxseg.data.pipeline import resize_record
from jaxseg.errors import InputError
from jaxseg.evaluate import Prediction, predictions
from jaxseg.inference.whole import predict_whole, standardise
from jaxseg.models.segnet import Decoder, SegNetBasic
from jaxseg.plots import curves
from jaxseg.progress import progress
from jaxseg.train_state import init_state, train_step

Balancing = Literal["median", "natural"]
TO_255: dict[str, Any] = {"mean": np.zeros(3, np.float32), "std": np.full(3, 1 / 255, np.float32)}  # what the response normalisation is for
MOMENTUM = 0.9  # of `models.layers.normalise`


@dataclasses.dataclass(frozen=True)
class Scale:
    """Factor for the 480 x 360 pictures, channels of the maps; with `every` n only every n-th picture of each split is used."""

    resize: float
    features: int
    batch_size: int
    steps: int
    eval_every: int
    every: int = 1


SCALES = {
    "smoke": Scale(1 / 8, 8, 4, 30, 15, every=12),  # a few minutes on 2 cores
    "small": Scale(1 / 4, 32, 12, 500, 125),  # about two hours on 2 cores
    "half": Scale(1 / 2, 64, 12, 4000, 500),
    "paper": Scale(1, 64, 12, 10_000, 1000),
}

CLASS_WEIGHTS = {
    # median(f) / f of the training labels, what `jaxseg data check camvid` prints ...
    "recomputed": (0.2793, 0.2017, 4.7865, 0.149, 1.0, 0.4217, 3.8467, 1.9736, 0.7889, 6.3747, 8.8587),
    # ... and those of the authors' segnet_basic_train.prototxt, which do not follow from these labels.
    "published": (0.2595, 0.1826, 4.5640, 0.1417, 0.9051, 0.3826, 9.6446, 1.8418, 0.6823, 6.2478, 7.3614),
}


def main(
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    data_dir: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("data"),
    scale: Literal["smoke", "small", "half", "paper"] = "smoke",
    only: tuple[Decoder, ...] = (),
    balancing: tuple[Balancing, ...] = ("median", "natural"),
    weights: Literal["recomputed", "published"] = "recomputed",
    steps: int | None = None,
    seed: int = 0,
) -> None:
    """Train and test the decoders of SegNet's table 1 and write the table.

    Args:
      out: folder for the results; what is there already is not run again.
      data_dir: where `jaxseg data prepare camvid` has put the set.
      scale: size of the pictures and of the network, and number of steps.
      only: these decoders; all by default.
      balancing: median-frequency weights, natural ones (none), or both.
      weights: median-frequency weights of the training labels, or those in the authors' release.
      steps: fewer or more than the scale's.
      seed: of the initial weights and of the order of pictures.
    """
    size = dataclasses.replace(SCALES[scale], **({} if steps is None else {"steps": steps}))
    dataset = open_dataset("camvid", data_dir)
    kept = {split: [source[i] for i in range(0, len(source), size.every)] for split, source in dataset.sources.items()}
    dataset = dataclasses.replace(dataset, sources=kept)
    small = [resize_record(record, size.resize) for record in dataset.split("train")]
    out.mkdir(parents=True, exist_ok=True)
    common = {**dataclasses.asdict(size), "seed": seed, "data": dataset.digest}
    settings = {"median": {**common, "class_weights": weights}, "natural": {**common, "class_weights": None}}
    for file in out.glob("*-*.json"):
        there = json.loads(file.read_text())
        if there["settings"] != settings[there["balancing"]]:
            raise InputError(f"{file}: was run with {there['settings']}, not with {common}. Give the same options, or another folder.")

    runs: list[tuple[Any, Balancing]] = [(decoder, b) for b in balancing for decoder in only or PAPER]
    for number, (decoder, b) in enumerate(runs, 1):
        file, title = out / f"{decoder}-{b}.json", f"{number} of {len(runs)}: {decoder}, {b} frequencies"
        if file.exists():
            print(f"{title}: there already")
            continue
        model = SegNetBasic(dataset.info.num_classes, decoder, features=size.features)
        loss = functools.partial(losses.cross_entropy, class_weights=CLASS_WEIGHTS[weights] if b == "median" else None)
        begun = time.monotonic()
        history, scores, parameters = run(model, loss, size, small, dataset, seed=seed, title=title)
        record = {
            "decoder": decoder,
            "balancing": b,
            "settings": settings[b],
            "parameters": parameters,
            "device": jax.devices()[0].device_kind,
        }
        record |= {"seconds": round(time.monotonic() - begun), "scores": scores, "history": history}
        if plot := curves(history):
            file.with_suffix(".png").write_bytes(plot[0])
        _write(file, json.dumps(record, indent=1))
        _write(out / "table.md", table(out, scale))
    _write(out / "table.md", table(out, scale))
    print(table(out, scale))


def run(
    model: SegNetBasic, loss: Any, size: Scale, small: list[Record], dataset: Dataset, *, seed: int, title: str
) -> tuple[list[dict[str, float]], dict[str, float] | None, int]:
    """(history, scores of the chosen evaluation or None where the loss diverged before, number of parameters)."""

    def kernels(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)

    optimizer = optax.chain(optax.add_decayed_weights(5e-4, kernels), optax.sgd(0.1, momentum=0.9))
    height, width, channels = small[0]["image"].shape
    state = jax.jit(functools.partial(init_state, model, optimizer, (1, height, width, channels), seed=seed))()
    step_fn = jax.jit(functools.partial(train_step, model=model, optimizer=optimizer, loss=loss, **TO_255), donate_argnums=0)
    predict = functools.partial(predict_whole, model, resize=size.resize, **TO_255)
    statistics = statistics_of_batch(model)
    batches = train_batches(small, batch_size=size.batch_size, size=(height, width), seed=seed)
    history: list[dict[str, float]] = []
    best: tuple[float, Any] = (-1.0, None)
    with progress(title, size.steps) as advance:
        for step in range(1, size.steps + 1):
            state, values = step_fn(state, next(batches))
            evaluating = step % size.eval_every == 0 or step == size.steps
            if evaluating or step % 10 == 0:
                history.append({"step": step, "loss": float(values["loss"])})
                if not np.isfinite(history[-1]["loss"]):
                    break
            advance(1, note=f"loss {history[-1]['loss']:.3f}" if history else "")
            if evaluating:
                variables = {"params": state.params, "batch_stats": mean_statistics(statistics, state.params, small, size.batch_size)}
                scores = score(predict, variables, dataset.split("val"), "validating")
                history[-1] |= {f"val_{name}": value for name, value in scores.items()}
                if scores["global"] > best[0]:
                    best = scores["global"], jax.device_get(variables)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    if best[1] is None:
        return history, None, parameters
    scores = score(predict, best[1], dataset.split("test"), "testing", boundaries=True)
    scores |= {f"train_{name}": value for name, value in score(predict, best[1], dataset.split("train"), "training set").items()}
    return history, scores, parameters


def statistics_of_batch(model: SegNetBasic) -> Callable[[Any, Any], Any]:
    """(params, images in 0..1) -> the batch-norm statistics of that batch."""

    @jax.jit
    def statistics(params: Any, image: Any) -> Any:
        shapes = jax.eval_shape(model.init, jax.random.key(0), image)["batch_stats"]
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        image = standardise(image, **TO_255)
        _, state = model.apply({"params": params, "batch_stats": zeros}, image, train=True, mutable=["batch_stats"])
        return jax.tree.map(lambda s: s / (1 - MOMENTUM), state["batch_stats"])  # of 0 and the batch's, the running average keeps this

    return statistics


def mean_statistics(statistics: Callable[[Any, Any], Any], params: Any, records: Sequence[Record], batch_size: int) -> Any:
    """The mean over batches of all records, the last one filled up with records of the one before."""
    firsts = [max(min(first, len(records) - batch_size), 0) for first in range(0, len(records), batch_size)]
    images = (np.stack([to_float(r["image"]) for r in records[first : first + batch_size]]) for first in firsts)
    return jax.tree.map(lambda *s: sum(s) / len(s), *[statistics(params, image) for image in images])


def score(predict: Any, variables: Any, records: Sequence[Record], title: str, boundaries: bool = False) -> dict[str, float]:
    """Global accuracy, class average, mean IoU and, with `boundaries`, BF, in per cent."""
    total, bf = np.zeros((), np.int64), []
    for matrix, prediction in predictions(predict, variables, records, title=title):
        total = total + matrix
        if boundaries:
            bf.append(boundary_f1(prediction))
    scores = metrics.scores(total)
    result = {"global": scores["pixel_accuracy"], "class": scores["mean_class_accuracy"], "miou": scores["miou"]}
    result |= {"bf": float(np.nanmean(bf))} if boundaries else {}
    return {name: 100 * value for name, value in result.items()}


def boundary_f1(prediction: Prediction, tolerance: float = 0.0075, ignore_index: int = 255) -> float:
    """Mean over the classes of the label of the F1 of its contour (paper, section 3.3): pixels within `tolerance` diagonals agree.

    A contour is that between labelled pixels; what lies beside void is none. A class whose contour is missing on one side has 0.
    """
    label, guess = prediction.label, np.argmax(prediction.logits, -1)
    valid, reach = label != ignore_index, tolerance * float(np.hypot(*label.shape))

    def contour(classes: np.ndarray, c: int) -> np.ndarray:
        return (classes == c) & valid & ndimage.binary_dilation((classes != c) & valid)

    def near(pixels: np.ndarray, others: np.ndarray) -> float:
        return float((np.asarray(ndimage.distance_transform_edt(~others))[pixels] <= reach).mean())

    values = []
    for c in np.unique(label[valid]):
        true, found = contour(label, c), contour(guess, c)
        if not true.any():
            continue
        if not found.any():
            values.append(0.0)
            continue
        precision, recall = near(found, true), near(true, found)
        values.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return float(np.mean(values)) if values else float("nan")


def _write(file: Path, text: str) -> None:
    part = file.with_suffix(file.suffix + ".part")
    part.write_text(text)
    os.replace(part, file)


if __name__ == "__main__":
    script(main)
