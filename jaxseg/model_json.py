"""Models and data sets as plain JSON values, and back: types and ranges are checked, only known classes are made, nothing is executed."""

import contextlib
import dataclasses
import functools
import types
import typing
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from jaxseg.data.listing import DataInfo
from jaxseg.errors import InputError
from jaxseg.inference.whole import check_percentiles
from jaxseg.models import ENCODERS, MODELS
from jaxseg.upsample import UPSAMPLERS

MIN_STD = 1e-6
_CLASSES: dict[str, dict[str, Any]] = {"upsample": UPSAMPLERS, "encoder": ENCODERS}
"""Fields of a model that may hold a class or a partial, and those known."""
_TRAINING = frozenset({"axis_name", "remat"})
"""Fields that the training sets: trained weights do not depend on them."""
_COUNT = 1 << 16  # largest whole number in a description: channels, classes, pixels


def model_to_json(model: nn.Module) -> dict[str, Any]:
    """A model of `MODELS` as data.

    >>> from jaxseg.models import UNet
    >>> model_to_json(UNet(2))["fields"]["upsample"]
    {'name': 'transposed', 'fields': {}}
    """
    names: dict[Any, str] = {cls: name for name, cls in MODELS.items()}
    if type(model) not in names:
        raise InputError(f"{type(model).__name__}: not in jaxseg.models.MODELS, so a run folder cannot describe it. Add it there.")
    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name not in ("parent", "name", *_TRAINING)}
    for field, known in _CLASSES.items():
        if callable(fields.get(field)):
            fields[field] = _class_to_json(field, fields[field], known)
    fields["dtype"] = _name_of(fields["dtype"])
    return {"name": names[type(model)], "fields": fields}


def model_from_json(description: dict[str, Any]) -> nn.Module:
    """The inverse of `model_to_json`; only classes of `MODELS`, `UPSAMPLERS` and `ENCODERS` and plain values are made.

    Raises:
      InputError: an unknown class or field, or a value that is not of its field's type.
    """
    cls, fields = _named(description, MODELS)
    missing = [name for name in _CLASSES if name in {f.name for f in dataclasses.fields(cls)} - fields.keys()]
    if missing:
        raise InputError(f"{description['name']}: {', '.join(missing)} missing.")
    described = {name: fields.pop(name) for name in _CLASSES if isinstance(fields.get(name), dict)}
    fields = _plain_fields(cls, fields)
    for name, value in described.items():
        inside, options = _named(value, _CLASSES[name])
        fields[name] = functools.partial(inside, **_plain_fields(inside, options)) if options else inside
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
    if info.ignore_index != 255:
        raise InputError(f"data: got ignore_index {info.ignore_index}; required is 255.")
    return info


def check_preprocess(preprocess: dict[str, Any], channels: int) -> None:
    if set(preprocess) - {"percentiles"} != {"mean", "std", "resize"}:
        raise InputError(f"preprocess: got {', '.join(preprocess)[:200]}; required mean, std, resize and perhaps percentiles.")
    check_percentiles(plain(preprocess.get("percentiles"), tuple[float, float] | None, "percentiles"))
    mean, std = (plain(preprocess[k], tuple[float, ...], k) for k in ("mean", "std"))
    if not len(mean) == len(std) == channels or min(std) < MIN_STD or not 0 < plain(preprocess["resize"], float, "resize") <= 4:
        raise InputError(
            f"preprocess: got {str(preprocess)[:200]}; required {channels} means, {channels} std from {MIN_STD}, and resize in 0..4."
        )


def _plain_fields(cls: Any, fields: dict[str, Any], low: int = 1) -> dict[str, Any]:
    """`fields` of the class as plain values of the types that it is annotated with; a dtype by its name."""
    hints = typing.get_type_hints(cls) | {"dtype": Literal["float32", "bfloat16", "float16"] | None}
    values = {k: plain(v, hints[k], f"{cls.__name__}.{k}", low) for k, v in fields.items()}
    if isinstance(values.get("dtype"), str):
        values["dtype"] = jnp.dtype(values["dtype"])
    return values


def plain(value: Any, hint: Any, what: str, low: int = 1) -> Any:
    """The JSON value as the type: int (low..65536), finite float, str, None, Literal, tuple (of 256 at most), or a union of them."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal and any(type(value) is type(x) and value == x for x in inside):
        return value
    if origin in (typing.Union, types.UnionType):
        for one in inside:
            with contextlib.suppress(InputError):
                return plain(value, one, what, low)
    if origin is tuple and isinstance(value, list) and len(value) <= 256:
        each = (inside[0],) * len(value) if inside[1:] == (...,) else inside
        if len(each) == len(value):
            return tuple(plain(v, one, what, low) for v, one in zip(value, each, strict=True))
    if hint is float and isinstance(value, int | float) and type(value) is not bool and abs(value) <= 1e30:
        return float(value)
    if hint is int and type(value) is int and low <= value <= _COUNT:
        return value
    if hint in (str, bool, type(None)) and type(value) is hint:
        return value
    raise InputError(f"{what}: got {str(value)[:80]!r}; required {getattr(hint, '__name__', hint)}.")


def _name_of(dtype: Any) -> str | None:
    return None if dtype is None else jnp.dtype(dtype).name


def _class_to_json(field: str, value: Any, known: dict[str, Any]) -> dict[str, Any]:
    options = {}
    if isinstance(value, functools.partial):
        if value.args:
            raise InputError(f"{value}: has positional arguments, which a run folder cannot describe. Give them by name.")
        value, options = value.func, {k: _name_of(v) if k == "dtype" else v for k, v in value.keywords.items()}
    names = {cls: name for name, cls in known.items()}
    if value not in names:
        raise InputError(f"{field}={value}: none of {', '.join(known)}, so a run folder cannot describe it. Add it there.")
    return {"name": names[value], "fields": dict(options)}


def _named(description: Any, known: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    if not isinstance(description, dict) or set(description) != {"name", "fields"} or not isinstance(description["fields"], dict):
        raise InputError(f"got {str(description)[:80]}; required an object of name and fields.")
    cls = known.get(description["name"]) if isinstance(description["name"], str) else None
    if cls is None:
        raise InputError(f"unknown {str(description['name'])[:80]!r}; known are {', '.join(known)}.")
    ours = (
        {"features"} if known is UPSAMPLERS else {"dtype", *_TRAINING} if known is ENCODERS else {*_TRAINING}
    )  # what the model, or the script, gives itself
    allowed = {f.name for f in dataclasses.fields(cls)} - {"parent", "name"} - ours
    unknown = set(description["fields"]) - allowed
    if unknown:
        raise InputError(f"{description['name']}: unknown fields {', '.join(sorted(unknown))[:200]}.")
    return cls, dict(description["fields"])
