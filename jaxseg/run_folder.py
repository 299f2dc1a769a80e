"""A run folder: run.json describes the model and its data as data, checkpoints/ holds the arrays. Nothing in it is executed."""

import contextlib
import dataclasses
import functools
import json
import os
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.checkpoint import Checkpoints
from jaxseg.data.listing import DataInfo
from jaxseg.errors import InputError
from jaxseg.inference.whole import predict_whole
from jaxseg.models import MODELS
from jaxseg.upsample import UPSAMPLERS

METRIC = "miou"
_LIMIT = 1 << 20  # bytes of a run.json


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model: `predict(variables, image [N,H,W,C] in 0..1) -> logits [N,H,W,K]`."""

    model: nn.Module
    variables: Any
    info: DataInfo
    step: int
    description: dict[str, Any]

    @property
    def predict(self):
        return functools.partial(_predict, self.model, **self.description["preprocess"])


def _predict(model, variables, image, *, mean, std, resize):
    return predict_whole(model, variables, image, mean=mean, std=std, resize=resize)


def checkpoints(workdir: Path, *, read_only: bool = False) -> Checkpoints:
    return Checkpoints(workdir / "checkpoints", METRIC, read_only=read_only)


def load_run(workdir: Path) -> Run:
    """The best checkpoint of a run folder by validation mIoU, or the latest where none was evaluated.

    Raises:
      InputError: no run there, or it is damaged or of another model.
    """
    description = read_description(workdir)
    try:
        model = model_from_json(description["model"])
        info = info_from_json(description["data"])
        channels, preprocess = info.channels, description["preprocess"]
        if set(preprocess) != {"mean", "std", "resize"}:
            raise InputError(f"preprocess: got {sorted(preprocess)}; required mean, std and resize.")
    except (KeyError, TypeError, InputError) as error:
        raise InputError(f"{workdir / 'run.json'}: does not describe a model ({error!s}). Restore it, or train again.") from error
    stored = checkpoints(workdir, read_only=True)
    try:
        best = stored.best_step()
        order = ([best] if best is not None else []) + [s for s in reversed(stored.steps()) if s != best]
        if not order:
            raise InputError(f"{workdir}: has no finished checkpoint yet. Run its training command until it has saved one.")
        side = description["example_size"]
        like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *side, channels)))
        step = order[0]
        return Run(model, stored.restore_variables(step, like), info, step, description)
    finally:
        stored.close()


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
        description = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}). Restore it, or train again.") from error
    if not isinstance(description, dict):
        raise InputError(f"{path}: required a JSON object, got {type(description).__name__}. Restore it, or train again.")
    return description


def write_description(workdir: Path, description: dict[str, Any]) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    part = workdir / "run.json.part"
    part.write_text(json.dumps(description, indent=2, default=str) + "\n")
    os.replace(part, workdir / "run.json")


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last one cut short by a kill is left out."""
    lines = []
    with contextlib.suppress(FileNotFoundError):
        for line in (workdir / "metrics.jsonl").read_text().splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(line))
    return lines


def model_to_json(model: nn.Module) -> dict[str, Any]:
    """A model of `MODELS` as data.

    >>> from jaxseg.models import UNet
    >>> model_to_json(UNet(2))["fields"]["upsample"]
    {'name': 'transposed', 'fields': {}}
    """
    names = {cls: name for name, cls in MODELS.items()}
    if type(model) not in names:
        raise InputError(f"{type(model).__name__}: not in jaxseg.models.MODELS, so a run folder cannot describe it. Add it there.")
    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name not in ("parent", "name", "axis_name")}
    fields["upsample"] = _upsample_to_json(fields["upsample"])
    fields["dtype"] = None if model.dtype is None else jnp.dtype(model.dtype).name  # type: ignore[attr-defined]
    return {"name": names[type(model)], "fields": fields}


def model_from_json(description: dict[str, Any]) -> nn.Module:
    """The inverse of `model_to_json`; only classes of `MODELS` and `UPSAMPLERS` and plain values are made.

    Raises:
      InputError: an unknown class or field.
    """
    cls, fields = _named(description, MODELS)
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    upsampler, options = _named(fields["upsample"], UPSAMPLERS)
    fields["upsample"] = functools.partial(upsampler, **options) if options else upsampler
    if fields["dtype"] not in (None, "float32", "bfloat16", "float16"):
        raise InputError(f"dtype: got {fields['dtype']!r}; required null, float32, bfloat16 or float16.")
    fields["dtype"] = None if fields["dtype"] is None else jnp.dtype(fields["dtype"])
    return cls(**fields)


def info_to_json(info: DataInfo) -> dict[str, Any]:
    return dataclasses.asdict(info)


def info_from_json(fields: dict[str, Any]) -> DataInfo:
    return DataInfo(**{**fields, "class_names": tuple(fields["class_names"]), "colours": tuple(tuple(c) for c in fields["colours"])})


def _upsample_to_json(upsample: Any) -> dict[str, Any]:
    options = {}
    if isinstance(upsample, functools.partial):
        upsample, options = upsample.func, upsample.keywords
    names = {cls: name for name, cls in UPSAMPLERS.items()}
    if upsample not in names:
        raise InputError(f"{upsample}: not in jaxseg.upsample.UPSAMPLERS, so a run folder cannot describe it. Add it there.")
    return {"name": names[upsample], "fields": dict(options)}


def _named(description: Any, known: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    if not isinstance(description, dict) or set(description) != {"name", "fields"} or not isinstance(description["fields"], dict):
        raise InputError(f"got {str(description)[:80]}; required an object of name and fields.")
    cls = known.get(description["name"]) if isinstance(description["name"], str) else None
    if cls is None:
        raise InputError(f"unknown {str(description['name'])[:80]!r}; known are {', '.join(known)}.")
    allowed = {f.name for f in dataclasses.fields(cls)} - {"parent", "name"}
    unknown = set(description["fields"]) - allowed
    if unknown:
        raise InputError(f"{description['name']}: unknown fields {', '.join(sorted(map(str, unknown)))}.")
    return cls, dict(description["fields"])
