"""A run folder: run.json describes the model and its data as data, checkpoints/ holds the arrays. Nothing in it is executed."""

import contextlib
import dataclasses
import functools
import json
import os
import types
import typing
from pathlib import Path
from typing import Any, Literal

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
_PARTS = {"options": dict, "model": dict, "data": dict, "data_dir": str, "splits": dict, "preprocess": dict, "example_size": list}
_COUNT = 1 << 16  # largest whole number in a description: channels, classes, pixels


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
        model, info = model_from_json(description["model"]), info_from_json(description["data"])
        if model.num_classes != info.num_classes:  # type: ignore[attr-defined]
            raise InputError(f"the model has {model.num_classes} classes, its data {info.num_classes}")  # type: ignore[attr-defined]
        _check_preprocess(description["preprocess"], info.channels)
        size = _plain(description["example_size"], tuple[int, int], "example_size")
        like = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *size, info.channels), jnp.float32))
    except InputError as error:
        raise InputError(f"{workdir / 'run.json'}: does not describe a model ({error!s}). Restore it, or train again.") from error
    stored = checkpoints(workdir, read_only=True)
    try:
        best = stored.best_step()
        order = ([best] if best is not None else []) + [s for s in reversed(stored.steps()) if s != best]
        if not order:
            raise InputError(f"{workdir}: has no finished checkpoint yet. Run its training command until it has saved one.")
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
        description = json.loads(path.read_text("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}). Restore it, or train again.") from error
    if not isinstance(description, dict):
        raise InputError(f"{path}: required a JSON object, got {type(description).__name__}. Restore it, or train again.")
    wrong = [k for k, kind in _PARTS.items() if not isinstance(description.get(k), kind)]
    if wrong:
        raise InputError(f"{path}: {', '.join(wrong)} missing or of the wrong type. Restore it, or train again.")
    return description


def write_description(workdir: Path, description: dict[str, Any]) -> None:
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir {workdir}: is a file; required is a folder, made when missing. Give another path.")
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
    names: dict[Any, str] = {cls: name for name, cls in MODELS.items()}
    if type(model) not in names:
        raise InputError(f"{type(model).__name__}: not in jaxseg.models.MODELS, so a run folder cannot describe it. Add it there.")
    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name not in ("parent", "name", "axis_name")}
    fields["upsample"] = _upsample_to_json(fields["upsample"])
    fields["dtype"] = _name_of(fields["dtype"])
    return {"name": names[type(model)], "fields": fields}


def model_from_json(description: dict[str, Any]) -> nn.Module:
    """The inverse of `model_to_json`; only classes of `MODELS` and `UPSAMPLERS` and plain values are made.

    Raises:
      InputError: an unknown class or field, or a value that is not of its field's type.
    """
    cls, fields = _named(description, MODELS)
    upsampler, options = _named(fields.pop("upsample", None), UPSAMPLERS)
    fields = _plain_fields(cls, fields)
    fields["upsample"] = functools.partial(upsampler, **_plain_fields(upsampler, options)) if options else upsampler
    try:
        return cls(**fields)
    except TypeError as error:  # a field without default is missing
        raise InputError(f"{description['name']}: {error}.") from error


def info_to_json(info: DataInfo) -> dict[str, Any]:
    return dataclasses.asdict(info)


def info_from_json(fields: dict[str, Any]) -> DataInfo:
    """Raises InputError where a field is missing, unknown or of the wrong type."""
    if set(fields) != {f.name for f in dataclasses.fields(DataInfo)}:
        raise InputError(f"data: got the fields {', '.join(fields)[:200]}; required are those of DataInfo.")
    info = DataInfo(**_plain_fields(DataInfo, fields, low=0))
    if not info.channels or len(info.colours) != info.num_classes or any(max(c) > 255 for c in info.colours):
        raise InputError("data: required are at least 1 channel, and one colour of 0..255 for each class.")
    return info


def _check_preprocess(preprocess: dict[str, Any], channels: int) -> None:
    if set(preprocess) != {"mean", "std", "resize"}:
        raise InputError(f"preprocess: got {', '.join(preprocess)[:200]}; required mean, std and resize.")
    mean, std = (_plain(preprocess[k], tuple[float, ...], k) for k in ("mean", "std"))
    if not len(mean) == len(std) == channels or min(std) <= 0 or not 0 < _plain(preprocess["resize"], float, "resize") <= 4:
        raise InputError(f"preprocess: got {str(preprocess)[:200]}; required {channels} means, {channels} std above 0, and resize in 0..4.")


def _plain_fields(cls: Any, fields: dict[str, Any], low: int = 1) -> dict[str, Any]:
    """`fields` of the class as plain values of the types that it is annotated with; a dtype by its name."""
    hints = typing.get_type_hints(cls) | {"dtype": Literal["float32", "bfloat16", "float16"] | None}
    plain = {k: _plain(v, hints[k], f"{cls.__name__}.{k}", low) for k, v in fields.items()}
    if isinstance(plain.get("dtype"), str):
        plain["dtype"] = jnp.dtype(plain["dtype"])
    return plain


def _plain(value: Any, hint: Any, what: str, low: int = 1) -> Any:
    """The JSON value as the type: int (low..65536), finite float, str, None, Literal, tuple (of 256 at most), or a union of them."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal and any(type(value) is type(x) and value == x for x in inside):
        return value
    if origin in (typing.Union, types.UnionType):
        for one in inside:
            with contextlib.suppress(InputError):
                return _plain(value, one, what, low)
    if origin is tuple and isinstance(value, list) and len(value) <= 256:
        each = (inside[0],) * len(value) if inside[1:] == (...,) else inside
        if len(each) == len(value):
            return tuple(_plain(v, one, what, low) for v, one in zip(value, each, strict=True))
    if hint is float and isinstance(value, int | float) and type(value) is not bool and abs(value) <= 1e30:
        return float(value)
    if hint is int and type(value) is int and low <= value <= _COUNT:
        return value
    if hint in (str, bool, type(None)) and type(value) is hint:
        return value
    raise InputError(f"{what}: got {str(value)[:80]!r}; required {getattr(hint, '__name__', hint)}.")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _name_of(dtype: Any) -> str | None:
    return None if dtype is None else jnp.dtype(dtype).name


def _upsample_to_json(upsample: Any) -> dict[str, Any]:
    options = {}
    if isinstance(upsample, functools.partial):
        if upsample.args:
            raise InputError(f"{upsample}: has positional arguments, which a run folder cannot describe. Give them by name.")
        upsample, options = upsample.func, {k: _name_of(v) if k == "dtype" else v for k, v in upsample.keywords.items()}
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
    allowed = {f.name for f in dataclasses.fields(cls)} - {"parent", "name", "axis_name"}
    unknown = set(description["fields"]) - allowed
    if unknown:
        raise InputError(f"{description['name']}: unknown fields {', '.join(sorted(unknown))[:200]}.")
    return cls, dict(description["fields"])
