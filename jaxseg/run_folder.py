"""A run folder: run.json describes the model and its data as data, checkpoints/ holds the arrays. Nothing in it is executed."""

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.checkpoint import Checkpoints
from jaxseg.data.listing import DataInfo
from jaxseg.errors import InputError
from jaxseg.inference.whole import Predict, predict_whole
from jaxseg.instances.routes import Route, find_route
from jaxseg.model_json import check_preprocess, info_from_json, info_to_json, model_from_json, model_to_json, plain
from jaxseg.train_state import TrainState, begin_with

DTYPES = ("uint8", "uint16", "float32")
"""That images may have."""
METRIC = "miou"
OBJECT_METRIC = "ap50"
_LIMIT = 1 << 20  # bytes of a run.json
_PARTS = {
    "options": dict,
    "model": dict,
    "data": dict,
    "data_dir": str,
    "splits": dict,
    "preprocess": dict,
    "example_size": list,
    "image_dtype": str,
}


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model: `predict(variables, image [N,H,W,C] in 0..1) -> logits [N,H,W,K]`, or of volumes [N,D,H,W,C]."""

    model: nn.Module
    variables: Any
    info: DataInfo
    step: int
    description: dict[str, Any]

    @property
    def predict(self) -> Predict:
        return functools.partial(predict_whole, self.model, **self.description["preprocess"])

    @property
    def takes_volumes(self) -> bool:
        return len(self.description["example_size"]) == 3

    @property
    def route(self) -> Route | None:
        """How the logits become objects; None where they are those of classes."""
        return route(self.description)


def checkpoints(workdir: Path, *, objects: bool = False, read_only: bool = False) -> Checkpoints:
    """The checkpoints of a run; the best one is that of the highest mIoU, or AP at IoU 0.5 of objects."""
    return Checkpoints(workdir / "checkpoints", OBJECT_METRIC if objects else METRIC, read_only=read_only)


def route(description: dict[str, Any]) -> Route | None:
    """The route of a run that separates objects, else None."""
    name = description.get("instances")
    return None if name is None else find_route(plain(name, str, "instances"))


def load_run(workdir: Path, *, volumes: bool = False) -> Run:
    """The best checkpoint of a run folder by its validation metric, or the latest where none was evaluated.

    Args:
      volumes: whether models of volumes are taken as well.

    Raises:
      InputError: no run there, or it is damaged or of another model.
    """
    description = read_description(workdir)
    try:
        model, info, like = described(description)
    except InputError as error:
        raise InputError(f"{workdir / 'run.json'}: does not describe a model ({error!s}). Restore it, or train again.") from error
    if len(description["example_size"]) == 3 and not volumes:
        raise InputError(f"{workdir}: its model takes volumes, which only `jaxseg predict` and `jaxseg.load` do. Give a run of images.")
    stored = checkpoints(workdir, objects=route(description) is not None, read_only=True)
    try:
        best = stored.best_step()
        order = ([best] if best is not None else []) + [s for s in reversed(stored.steps()) if s != best]
        if not order:
            raise InputError(f"{workdir}: has no finished checkpoint yet. Run its training command until it has saved one.")
        step = order[0]
        return Run(model, stored.restore_variables(step, like), info, step, description)
    finally:
        stored.close()


def described(description: dict[str, Any]) -> tuple[nn.Module, DataInfo, Any]:
    """The model, its data and the shapes of its variables. Of the description "model", "data", "preprocess", "example_size" and "instances"
    are checked.

    Raises:
      InputError: they describe no model.
    """
    model: Any = model_from_json(description["model"])
    info = info_from_json(description["data"])
    to_objects = route(description)
    required, of = (info.num_classes, "its data") if to_objects is None else (to_objects.channels, f"route {to_objects.name}")
    if model.num_classes != required:
        raise InputError(f"the model has {model.num_classes} classes, {of} {required}")
    check_preprocess(description["preprocess"], info.channels)
    size = plain(description["example_size"], tuple[int, int] | tuple[int, int, int], "example_size")
    if len(size) == 3 and description["preprocess"].get("percentiles") is not None:
        raise InputError("percentiles are of images, and the model takes volumes")
    if len(size) == 3 and to_objects is not None:
        raise InputError(f"route {to_objects.name} finds objects in images, and the model takes volumes")
    return model, info, jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *size, info.channels), jnp.float32))


def read_description(workdir: Path) -> dict[str, Any]:
    """run.json as a dict.

    Raises:
      InputError: the folder or the file is missing, too large or no JSON object.
    """
    path = workdir / "run.json"
    if not path.is_file():
        raise InputError(f"{workdir}: no run folder (run.json is missing). Give the --workdir of a `jaxseg train` command.")
    if path.stat().st_size > _LIMIT:
        raise InputError(f"{path}: {path.stat().st_size} bytes; at most {_LIMIT} are read. This was not written by jaxseg.")
    try:
        description = json.loads(path.read_text("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}). Restore it, or train again.") from error
    if not isinstance(description, dict):
        raise InputError(f"{path}: required a JSON object, got {type(description).__name__}. Restore it, or train again.")
    wrong = [k for k, kind in _PARTS.items() if not isinstance(description.get(k), kind)]
    wrong += ["splits"] if "splits" not in wrong and not isinstance(description["splits"].get("test"), str) else []
    if wrong:
        raise InputError(f"{path}: {', '.join(wrong)} missing or of the wrong type. Restore it, or train again.")
    return description


def save_run(
    folder: str | Path,
    model: nn.Module,
    variables: Mapping[str, Any],
    info: DataInfo,
    *,
    mean: Any,
    std: Any,
    example_size: Sequence[int],
    image_dtype: str = "uint8",
    options: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Makes a run folder of a model that was trained elsewhere: `jaxseg predict` and `jaxseg.load` take it as it is.

    Args:
      model: one of `MODELS`.
      variables: {"params", "batch_stats"?}.
      info: what the images show.
      mean, std: of each channel of images in 0..1, by which they were standardised.
      example_size: (H, W) that the model takes, or (D, H, W) of volumes; others are taken where the model does.
      image_dtype: of the images' files, "uint8", "uint16" or "float32".
      options: kept as they are, for the reader.

    Raises:
      InputError: there is a run in `folder`, or it would not be one: another number of classes, variables of other shapes or not finite,
        options that JSON does not have.
    """
    folder = Path(folder)
    need_new(folder, str(folder))
    if str(image_dtype) not in DTYPES:
        raise InputError(f"save_run: got image_dtype={image_dtype!r}; required one of {', '.join(DTYPES)}, of the images' files.")
    try:
        description = {
            "jax": jax.__version__,
            "options": dict(options),
            "model": model_to_json(model),
            "data": info_to_json(info),
            "data_dir": "",
            "image_dtype": str(image_dtype),
            "splits": {"eval": None, "test": "test"},
            "example_size": list(example_size),
            "steps": 0,
            "preprocess": {"mean": np.ravel(mean), "std": np.ravel(std), "resize": 1.0},
        }
        text = json.dumps(description, indent=2, allow_nan=False, default=lambda value: value.tolist())
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"save_run: {error}; required are what JSON has (finite numbers, texts, lists, dicts) for the options, mean and std, a size "
            "such as (64, 64), and a DataInfo."
        ) from error
    if len(text) >= _LIMIT:
        raise InputError(f"save_run: the options make run.json larger than {_LIMIT} bytes. Keep them elsewhere.")
    description = json.loads(text)
    _, _, like = described(description)
    rng = jax.random.key_data(jax.random.key(0))
    empty = TrainState(jnp.zeros((), jnp.int32), like["params"], like.get("batch_stats", {}), opt_state=(), ema=None, rng=rng)
    begun = begin_with(empty, variables)
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(begun.variables)):
        raise InputError("save_run: the variables hold nan or infinite numbers. Save those from before the training diverged.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made a folder ({error}). Give another path.") from error
    stored = checkpoints(folder)
    stored.save(begun)
    stored.close()
    write_description(folder, description)


def need_new(folder: Path, who: str) -> None:
    """Raises InputError where `folder` is a file or holds a run."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{who}: is a file; required is a folder, made when missing. Give another path.")
    if (folder / "run.json").exists() or has_checkpoint(folder):
        raise InputError(f"{who}: holds a run already, which would be lost. Give another folder, or remove it.")


def write_description(workdir: Path, description: dict[str, Any]) -> None:
    part = workdir / "run.json.part"
    part.write_text(json.dumps(description, indent=2, default=str) + "\n")
    os.replace(part, workdir / "run.json")


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last one cut short by a kill is left out."""
    lines = []
    with contextlib.suppress(FileNotFoundError):
        for line in (workdir / "metrics.jsonl").read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict) and isinstance(line.get("step"), int)]


def has_checkpoint(workdir: Path) -> bool:
    return any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))


@contextlib.contextmanager
def only_training(workdir: Path) -> Iterator[None]:
    """Raises InputError where another process trains in this run folder."""
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir {workdir}: is a file; required is a folder, made when missing. Give another path.")
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"--workdir {workdir}: another process trains there. Wait for it, or give another --workdir.") from error
        yield


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")
