"""`jaxseg train`: one experiment, from its config file to its report."""

import contextlib
import functools
import json
import math
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxseg import parallel, run_folder
from jaxseg.config import Config, load_get_config, with_options
from jaxseg.data import Dataset, Split, channel_statistics, open_dataset, to_float, train_batches
from jaxseg.data.listing import Record
from jaxseg.errors import InputError
from jaxseg.evaluate import evaluate_objects, evaluate_split, true_objects
from jaxseg.host_memory import keep_freed_memory
from jaxseg.inference.whole import predict_whole, stretched
from jaxseg.instances.routes import find_route
from jaxseg.model_json import MIN_STD, info_to_json, model_to_json
from jaxseg.progress import progress
from jaxseg.report_run import report_run
from jaxseg.run_log import RunLog
from jaxseg.train_state import begin_with, init_state, train_step

HELP = """jaxseg train CONFIG.py [--option value ...] [--data-dir DIR] --workdir DIR

CONFIG.py is a Python file with a typed function get_config(...) -> Config; its parameters are options, which
`jaxseg train CONFIG.py --help` shows. The same command goes on where an interrupted one has stopped.

For example: jaxseg train configs/cells_unet.py --data-dir data --workdir runs/cells --steps 500"""


def main(argv: list[str]) -> int:
    """The command line: a config file, then its own options and these."""
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP)
        return 0 if argv else 2
    file = Path(argv[0])

    def script(
        config: Config,
        options: dict[str, Any],
        *,
        workdir: Annotated[Path, tyro.conf.arg(metavar="DIR")],
        data_dir: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("data"),
        parallel: parallel.Parallel = "jit",
    ) -> int:
        """Train.

        Args:
          workdir: the run folder: checkpoints, metrics.jsonl, report.html.
          data_dir: where `jaxseg data prepare` has put the data set.
          parallel: how the batch is split over devices: jit over a sharded mesh, or pmap.
        """
        data_dir = data_dir.expanduser().absolute()
        if jax.default_backend() == "cpu":
            keep_freed_memory()
        with run_folder.only_training(workdir := workdir.expanduser()):
            return train(config, {"config": file.name, **options}, workdir=workdir, data_dir=data_dir, how=parallel, command=argv)

    return tyro.cli(with_options(script, load_get_config(file)), args=argv[1:], prog=f"jaxseg train {file}")


def train(
    config: Config,
    options: dict[str, Any],
    *,
    workdir: Path,
    data_dir: Path,
    how: parallel.Parallel = "jit",
    command: list[str] | None = None,
) -> int:
    """Train `config`, or go on with it, in `workdir`; returns the exit code.

    Args:
      options: what the config was made of, to be kept in run.json: going on with other options is refused.
    """
    # ---- Data and model ----------------------------------------------------------------------------------------------
    dataset = open_dataset(config.data, data_dir)
    _check_splits(config, dataset)
    parallel.check_batch(config.batch_size, len(jax.devices()))
    info = dataset.info
    route = None if config.instances is None else find_route(config.instances)
    model = config.model(num_classes=info.num_classes if route is None else route.channels)
    description = _describe(config, options, model, dataset, workdir, data_dir, command or [])
    mean, std = (np.asarray(description["preprocess"][k], np.float32) for k in ("mean", "std"))

    # ---- State ---------------------------------------------------------------------------------------------------------
    shape = (config.batch_size, *config.size, info.channels)
    init = functools.partial(init_state, model, config.optimizer, shape, seed=config.seed, ema=config.ema_decay > 0)
    init = jax.jit(init, compiler_options={"xla_backend_optimization_level": 0})  # runs once: optimised it compiles 7 times as long
    state = init()
    if config.start is not None and not run_folder.has_checkpoint(workdir):
        state = begin_with(state, config.start(model, state.variables))
    run_folder.write_description(workdir, description)
    checkpoints = run_folder.checkpoints(workdir, objects=route is not None)
    sharding = parallel.replicated(parallel.data_mesh()) if how == "jit" else None
    state = checkpoints.restore_latest(state, sharding) or (state if sharding is None else jax.device_put(state, sharding))
    step = int(state.step)
    log = RunLog(workdir, step)
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    print(f"{config.data}: {type(model).__name__}, {parameters:,} parameters, {len(jax.devices())} x {jax.devices()[0].device_kind}")
    if step:
        print(f"going on at step {step} of {config.steps}")

    # ---- The two functions ---------------------------------------------------------------------------------------------
    run_step = parallel.parallel_step(
        functools.partial(
            _step,
            model=model.clone(remat=config.remat),
            optimizer=config.optimizer,
            loss=config.loss if route is None else route.loss,
            mean=mean,
            std=std,
            augment=config.augment,
            ema_decay=config.ema_decay,
            accumulate=config.accumulate,
        ),
        how,
    )
    predict = functools.partial(predict_whole, model, mean=mean, std=std, resize=config.resize, percentiles=config.percentiles)

    def evaluate_now(state: Any) -> dict[str, float]:
        assert config.eval_split is not None
        if route is not None:
            scores = evaluate_objects(predict, state.variables, dataset, config.eval_split, route)
            return {name: scores[name] for name in (run_folder.OBJECT_METRIC, "mean_ap", "pq")}
        shown: list[Any] = []
        see = lambda p: shown.append(p) if len(shown) < 4 else None  # noqa: E731
        scores, _ = evaluate_split(predict, state.variables, dataset, config.eval_split, see=see)
        log.pictures(step, shown, info.colours)
        return {run_folder.METRIC: scores["miou"], "pixel_accuracy": scores["pixel_accuracy"]}

    # ---- Steps -----------------------------------------------------------------------------------------------------------
    batches = train_batches(
        Split(_training_images(config, dataset), _instances_as_label) if route is not None else _training_images(config, dataset),
        batch_size=config.batch_size,
        size=config.size,
        seed=config.seed,
        start_step=step,
        resize=config.resize,
        weight_map=config.weight_map,
        ignored=info.ignore_index if route is None else -1,
    )
    with (
        contextlib.closing(checkpoints),
        contextlib.closing(log),
        _stop_requested() as stop,
        progress("training", config.steps, step) as advance,
    ):
        since, begun = step, time.monotonic()
        while step < config.steps:
            state, metrics = run_step(state, next(batches))
            step += 1
            evaluating = config.eval_split is not None and (step % config.eval_every == 0 or step == config.steps)
            stopping = stop()
            saving = evaluating or step % config.save_every == 0 or step == config.steps or bool(stopping)
            note = None
            if step % config.log_every == 0 or saving:
                values = {k: float(v) for k, v in metrics.items()}
                if not all(map(math.isfinite, values.values())):
                    raise InputError(
                        f"step {step}: the loss is {values['loss']}, the gradient's norm {values['grad_norm']}; "
                        "nothing was saved since the last checkpoint. "
                        f"Lower --learning-rate, and see `jaxseg data check {config.data} --data-dir {data_dir}` for labels out of range."
                    )
                rate = (step - since) * config.batch_size / (time.monotonic() - begun)
                log.write(step, **values, images_per_s=rate)
                note = f"loss {values['loss']:.4f}, {rate:.1f} images/s"
                since, begun = step, time.monotonic()
            advance(1, note=note)
            if saving:
                scores = evaluate_now(state) if evaluating else None
                checkpoints.save(state, scores)
                if scores:
                    log.write(step, **{f"val_{k}": v for k, v in scores.items()})
                since, begun = step, time.monotonic()
            if stopping and step < config.steps:
                print(f"stopped at step {step}, saved; the same command goes on from there")
                return 130 if stopping == signal.SIGINT else 0

    # ---- Report ----------------------------------------------------------------------------------------------------------
    report_run(workdir, dataset)
    return 0


def _step(state: Any, batch: Any, axis_name: str | None = None, *, model: Any, **rest: Any) -> Any:
    return train_step(state, batch, model=model.clone(axis_name=axis_name), axis_name=axis_name, **rest)


def _training_images(config: Config, dataset: Dataset) -> Sequence[Record]:
    """The training split, of stretched images where the config says so: as whole images, before they are cut."""
    split = dataset.split("train")
    if config.percentiles is None:
        return split
    percentiles = config.percentiles
    return Split(split, lambda record: {**record, "image": stretched(to_float(record["image"])[None], percentiles)[0]})


def _instances_as_label(record: Record) -> Record:
    return {**record, "label": true_objects(record)}


def _check_splits(config: Config, dataset: Dataset) -> None:
    for role, split in {"train": "train", "eval_split": config.eval_split, "test_split": config.test_split}.items():
        if split is not None and not dataset.splits.get(split):
            there = ", ".join(f"{name} ({number})" for name, number in dataset.splits.items())
            raise InputError(
                f"{role}: {config.data} has no images in a split {split!r}; it has {there}. Change the config or the split files."
            )
        if split is not None and config.instances is not None and "instances" not in dataset.split(split)[0]:
            raise InputError(
                f"instances: {config.data} has no instance maps, which route {config.instances} learns from. Leave `instances` out of the "
                "config, or take a data set with instances, such as cells or dsb2018."
            )


def _describe(
    config: Config, options: dict[str, Any], model: Any, dataset: Dataset, workdir: Path, data_dir: Path, command: list[str]
) -> dict[str, Any]:
    """What run.json says; that of an interrupted run must say the same."""
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *config.size, dataset.info.channels)))  # an illegal size is found here
    description = {
        "jaxseg": _version(),
        "jax": jax.__version__,
        "command": shlex.join(["jaxseg", "train", *command]),
        "options": json.loads(json.dumps(options, default=str)),
        "model": model_to_json(model),
        "instances": config.instances,
        "data": json.loads(json.dumps(info_to_json(dataset.info))),
        "data_dir": str(data_dir),
        "data_digest": dataset.digest,
        "image_dtype": str(dataset.split("train")[0]["image"].dtype),
        "splits": {"eval": config.eval_split, "test": config.test_split},
        "example_size": list(config.size),
        "steps": config.steps,
    }
    preprocess: dict[str, Any] = {"resize": config.resize}
    if config.percentiles is not None:
        preprocess["percentiles"] = list(config.percentiles)
    if run_folder.has_checkpoint(workdir):
        old = run_folder.read_description(workdir)
        before, now = old.get("options", {}), description["options"]
        changed = [f"{k} (was {before.get(k)!r}, got {now.get(k)!r})" for k in sorted({*before, *now}) if before.get(k) != now.get(k)]
        parts = {
            "model": "the model",
            "instances": "the route to objects",
            "data": "the data set's classes, channels or colours",
            "data_digest": "the images or labels",
        }
        changed = changed or [what for k, what in parts.items() if old.get(k) != json.loads(json.dumps(description[k]))]
        before, now = ({k: v for k, v in p.items() if k not in ("mean", "std")} for p in (old["preprocess"], preprocess))
        changed = changed or [f"resize or percentiles (was {before}, got {now})"] * (before != now)
        if changed:
            raise InputError(
                f"--workdir {workdir}: was begun with others: {'; '.join(changed)}. Give the same command, or another --workdir."
            )
        return {**description, "preprocess": old["preprocess"]}
    mean, std = map(np.asarray, config.mean_std or channel_statistics(_training_images(config, dataset)))
    if not mean.shape == std.shape == (dataset.info.channels,):
        raise InputError(
            f"mean_std: got {mean.size} means and {std.size} deviations; the images of {config.data} have {dataset.info.channels} "
            "channels. Give one of each a channel, or None to measure them."
        )
    return {**description, "preprocess": {"mean": mean.tolist(), "std": np.maximum(std, MIN_STD).tolist(), **preprocess}}


def _version() -> str:
    from importlib.metadata import version

    return version("jaxseg")


@contextlib.contextmanager
def _stop_requested() -> Iterator[Callable[[], int]]:
    """The signal, SIGTERM or that of Ctrl-C, which has asked for a stop at the next step, or 0; a second Ctrl-C stops at once."""
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)
        print("stopping after this step ...", file=sys.stderr)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    old = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: asked[0] if asked else 0
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
