"""Foreign weights as run folders, and run folders as foreign weights."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

from jaxseg import run_folder
from jaxseg.data.listing import DataInfo
from jaxseg.errors import InputError
from jaxseg.model_json import model_from_json, model_to_json
from jaxseg.models import MODELS
from jaxseg.pictures import default_colours
from jaxseg.weights.files import read_weights
from jaxseg.weights.layouts import bring_in, channels_and_classes, layout_of, preprocess, table_for, take_out

SIZE = (64, 64)
"""Of the image that a model is initialised with; its weights serve any."""


def import_weights(
    layout: str,
    file: Path,
    out: Path,
    *,
    model: str | None = None,
    classes: int | None = None,
    class_names: Sequence[str] = (),
    channels: int | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
    seed: int = 0,
) -> tuple[nn.Module, list[str]]:
    """Makes a run folder `out` of a foreign file, which `jaxseg predict` takes as it is.

    Channels and classes are the file's; for others the first convolution and the head are fitted by `jaxseg.weights.adapt`, FCN's
    upscoring becoming bilinear again. A file of one class, made for a sigmoid, becomes one of background and foreground.

    Args:
      layout: a name of `LAYOUTS`.
      model: a name of `MODELS`, where the layout's file can become several.
      classes: their number.
      class_names: one a class; else those of the layout's usual data, or numbers.
      channels: of the images.
      options: fields of the model, as JSON has them.
      seed: of the weights that the file does not have.

    Returns:
      the model, and its layers that the file has no weights for, which are to be trained.

    Raises:
      InputError: an argument is out of its range, there is a run in `out`, or what is wrong with the file. Nothing is written then.
    """
    entry = layout_of(layout)
    run_folder.need_new(out, f"--out {out}")
    kind = model or next(iter(entry.models))
    if kind not in entry.models:
        raise InputError(f"--model {kind}: {layout} becomes {' or '.join(entry.models)}. Choose one of them.")
    if channels is not None and not 1 <= channels <= 256:
        raise InputError(f"--channels: got {channels}; required from 1 to 256.")
    state = read_weights(file)
    table = table_for(layout, _model(kind, 2, {**entry.models[kind], **options}))
    file_channels, file_classes = channels_and_classes(layout, state, table)
    names = _names(entry.class_names, max(file_classes or 2, 2), classes, class_names)
    channels = channels or file_channels

    network: Any = _model(kind, len(names), {**entry.models[kind], **options})
    image = jax.ShapeDtypeStruct((1, *SIZE, channels), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), image)
    variables: dict[tuple[str, ...], Any] = flatten_dict(bring_in(layout, state, network, shapes))
    new = [path for path, leaf in variables.items() if isinstance(leaf, jax.ShapeDtypeStruct)]
    variables |= _drawn(network, new, seed, image.shape)

    mean, std = preprocess(layout, channels)
    info = DataInfo(layout, tuple(names), channels, default_colours(len(names)), entry.reads)
    with file.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    run_folder.save_run(
        out,
        network,
        unflatten_dict(variables),
        info,
        mean=mean,
        std=std,
        example_size=SIZE,
        options={"layout": layout, "file": file.name, "sha256": sha256},
    )
    return network, sorted({path[1] for path in new})


def export_weights(run: Path, layout: str, out: Path) -> int:
    """Writes a run's best checkpoint as safetensors in a foreign layout and returns the number of arrays; of a classifier's, the encoder.

    torch loads it by `model.load_state_dict(safetensors.torch.load_file(FILE), strict=False)`: batch norm's counters are left out.

    Raises:
      InputError: `out` does not end in .safetensors, there is no run, or the layout is not of its model.
    """
    layout_of(layout)
    if out.suffix != ".safetensors" or out.is_dir():
        raise InputError(f"--out {out}: required is the path of a file that ends in .safetensors.")
    loaded = run_folder.load_run(run)
    arrays = take_out(layout, loaded.model, loaded.variables)
    part = out.with_suffix(".safetensors.part")
    save_file(arrays, part)
    os.replace(part, out)
    return len(arrays)


def _model(kind: str, num_classes: int, options: dict[str, Any]) -> nn.Module:
    """Of `MODELS`, its options checked as those of a run folder are."""
    if "num_classes" in options:
        raise InputError("--options num_classes: the number of classes is given by --classes or --class-names.")
    description = model_to_json(MODELS[kind](num_classes))
    return model_from_json({**description, "fields": json.loads(json.dumps({**description["fields"], **options}))})


def _drawn(model: nn.Module, paths: list[tuple[str, ...]], seed: int, shape: tuple[int, ...]) -> dict[tuple[str, ...], Any]:
    """The variables of these paths, initialised; the others are not computed."""

    def some(key: Any) -> dict[str, Any]:
        variables = flatten_dict(model.init(key, jnp.zeros(shape)), sep="/")
        return {"/".join(path): variables["/".join(path)] for path in paths}

    once = {"xla_backend_optimization_level": 0}  # it runs but once, so that compiling it well takes the longest
    drawn = jax.jit(some, compiler_options=once)(jax.random.key(seed)) if paths else {}
    return {path: drawn["/".join(path)] for path in paths}


def _names(usual: Sequence[str], in_file: int, classes: int | None, given: Sequence[str]) -> tuple[str, ...]:
    if given and classes not in (None, len(given)):
        raise InputError(f"--classes: got {classes}, and {len(given)} --class-names ({', '.join(given)}). Give one name a class.")
    number = len(given) or (in_file if classes is None else classes)
    if not 1 <= number <= 255:
        raise InputError(f"--classes: got {number}; required from 1 to 255.")
    if given:
        names = tuple(name.strip() for name in given)
        if "" in names or len(set(names)) < number:
            raise InputError(f"--class-names: got {', '.join(given)}; each class needs a name of its own.")
        return names
    if len(usual) == number:
        return tuple(usual)
    return ("background", "foreground") if number == 2 else tuple(f"class{i}" for i in range(number))
