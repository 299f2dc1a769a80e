"""`jaxseg export`: a trained model for programs without jaxseg: as StableHLO, as ONNX, or as a safetensors file that describes itself."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxseg.checkpoint import digest, same_tree
from jaxseg.embed import Loaded, loaded
from jaxseg.errors import InputError
from jaxseg.export_onnx import to_onnx
from jaxseg.model_json import info_to_json, model_to_json
from jaxseg.run_folder import Run, described, load_run
from jaxseg.weights.files import LIMIT

FORMATS = ("stablehlo", "onnx", "safetensors")
PLATFORMS = ("cpu", "cuda", "tpu")
STEPS = (1, 2, 4, 8, 16, 32, 64)
LEAST = 224
OPEN = (*((step, step) for step in STEPS), *((step, LEAST) for step in STEPS))
"""(step, least): height and width are left open as least, least + step, ... pixels of the first pair with which the model can be traced."""
KEY = "jaxseg"
"""Of the safetensors header's metadata: the model as JSON."""
_HEADER = 1 << 22  # bytes of the largest safetensors header that is read
_PARTS = {"model": dict, "data": dict, "preprocess": dict, "example_size": list, "step": int, "sha256": str}


def export(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    format: Annotated[str, tyro.conf.arg(metavar="stablehlo|onnx|safetensors")],
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")],
    size: Annotated[tuple[int, int] | None, tyro.conf.arg(metavar="H W")] = None,
    labels: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    weights: Annotated[str, tyro.conf.arg(metavar="inside|apart")] = "inside",
) -> int:
    """Write a trained model for other programs: StableHLO that JAX runs without jaxseg, ONNX, or its weights with what describes them.

    For example: `jaxseg export runs/cells --format stablehlo --out cells.stablehlo`, and in a program with nothing but JAX
    `jax.export.deserialize(bytearray(Path("cells.stablehlo").read_bytes())).call(image)`

    Args:
      run: a run folder.
      format: stablehlo for cpu, cuda and tpu, of any batch, the preprocessing inside; onnx likewise, of one --size, written only if
        onnxruntime computes what JAX does; safetensors for `jaxseg.export.from_safetensors`.
      out: the file to write; one that exists is refused.
      size: height and width of the images, for models whose program needs them; by default both are left open. ONNX needs them.
      labels: give class numbers, int32 [N, H, W], not logits.
      weights: apart writes them to FILE.safetensors, and the program takes them as its first argument.
    """
    run, out = run.expanduser(), out.expanduser()
    if format not in FORMATS:
        raise InputError(f"--format: got {format!r}; required one of {', '.join(FORMATS)}.")
    if weights not in ("inside", "apart"):
        raise InputError(f"--weights: got {weights!r}; required inside or apart.")
    if format == "safetensors" and (size or labels):
        raise InputError("--size, --labels: are not of --format safetensors. Leave them out.")
    if format != "stablehlo" and weights == "apart":
        raise InputError("--weights apart: is of --format stablehlo alone. Leave it out.")
    if format == "onnx" and size is None:
        raise InputError("--format onnx: got no size; required is --size H W, such as --size 256 256.")
    if size and not all(1 <= side <= 65536 for side in size):
        raise InputError(f"--size: got {size[0]} {size[1]}; required are two numbers from 1 to 65536, such as 256 256.")
    beside = out.with_name(f"{out.name}.safetensors")
    with _new_files(out, *[beside] * (weights == "apart")) as parts:
        trained = load_run(run)
        if labels and trained.route is not None:
            raise InputError(f"--labels: {run} separates objects, and its largest output is no class. Leave it out, and decode the logits.")
        if format == "safetensors":
            to_safetensors(trained, parts[0])
            print(f"{len(jax.tree.leaves(trained.variables))} arrays and their description: {out}")
            return 0
        if format == "onnx" and size is not None:
            parts[0].write_bytes(to_onnx(loaded(trained), size=size, labels=labels))
            print(f"image float32 [b, {size[0]}, {size[1]}, {trained.info.channels}] in 0..1 -> {'labels' if labels else 'logits'}: {out}")
            return 0
        exported = to_stablehlo(loaded(trained), size=size, labels=labels, inside=weights == "inside")
        parts[0].write_bytes(_serialized(exported))
        if weights == "apart":
            save_file(_flat(trained.variables), parts[1])
    print(signature(exported))
    print(f"{', '.join(PLATFORMS)}: {out}" + (f", weights: {beside}" if weights == "apart" else ""))
    return 0


def to_stablehlo(model: Loaded, *, size: tuple[int, int] | None = None, labels: bool = False, inside: bool = True) -> jax.export.Exported:
    """The model as one program for `PLATFORMS`: image float32 [b, h, w, C] in 0..1 -> logits [b, h, w, K].

    The batch is open. So are height and width, in steps as small as the model allows (`OPEN`), unless `size` gives them. With the batch
    open, wide convolutions take no Winograd form, which is chosen for CPUs by sizes: the program is the same for all platforms.

    Args:
      labels: int32 [b, h, w] instead of logits.
      inside: False makes the weights, {"params/...": array}, the first argument.

    Raises:
      InputError: the model's program needs a size and none is given, or it does not take this one.
    """
    apply, variables, meta = model

    def answer(weights: dict[str, Any], image: Any) -> Any:
        logits = apply(unflatten_dict(weights, sep="/"), image)
        return jnp.argmax(logits, -1).astype(jnp.int32) if labels else logits

    weights = _flat(variables)
    if inside:
        function, fixed = jax.jit(lambda image: answer(weights, image)), ()
    else:
        function, fixed = jax.jit(answer), (jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), weights),)
    if size is not None:
        return _export(function, fixed, f"b, {size[0]}, {size[1]}, {meta.channels}")
    refused: Exception | None = None
    for step, least in OPEN:
        try:
            return _export(function, fixed, f"b, {step}*h + {least - step}, {step}*w + {least - step}, {meta.channels}")
        except Exception as error:  # whatever a model says to a symbol where it needs a number
            refused = error
    name = type(meta.model).__name__
    raise InputError(f"{name}: its program needs a height and a width; required is --size H W, such as --size 256 256.") from refused


def _export(function: Any, fixed: tuple[Any, ...], shape: str) -> jax.export.Exported:
    image = jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape), jnp.float32)
    return jax.export.export(function, platforms=PLATFORMS)(*fixed, image)


def signature(exported: jax.export.Exported) -> str:
    """What a program takes and gives, in a line."""
    image, result = exported.in_avals[-1], exported.out_avals[0]
    kind = "logits float32" if result.ndim == 4 else "labels int32"
    return f"image float32 [{_dims(image)}] in 0..1 -> {kind} [{_dims(result)}]"


def to_safetensors(run: Run, path: Path) -> None:
    """The variables of a run, {"params/...": array}, with model, classes, preprocessing and a digest in the header's metadata."""
    description = {
        "model": model_to_json(run.model),
        "data": info_to_json(run.info),
        "instances": run.description.get("instances"),
        "preprocess": run.description["preprocess"],
        "example_size": run.description["example_size"],
        "step": run.step,
        "sha256": digest(jax.device_get(run.variables)),
    }
    save_file(_flat(run.variables), path, metadata={KEY: json.dumps(description)})


def from_safetensors(file: str | Path) -> Loaded:
    """What `jaxseg export --format safetensors` wrote, exactly, as `jaxseg.load` gives it: apply, variables, meta. Nothing is executed.

    Raises:
      InputError: it is missing, too large, damaged, or its description is not of jaxseg or not of these arrays.
    """
    file = Path(file)
    advice = "Export it again: jaxseg export RUN --format safetensors --out FILE."
    if not file.is_file():
        raise InputError(f"{file}: no such file. Give one that `jaxseg export --format safetensors` wrote.")
    with file.open("rb") as content:
        header = int.from_bytes(content.read(8), "little")
    if header > _HEADER or file.stat().st_size > LIMIT:
        raise InputError(
            f"{file}: {file.stat().st_size} bytes with a header of {header}; at most {LIMIT} and {_HEADER} are read. "
            "This was not written by jaxseg."
        )
    try:
        with safe_open(file, "np") as content:
            metadata = content.metadata() or {}
            description = json.loads(metadata.get(KEY, "null"), parse_constant=_refuse)
            arrays = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{file}: no safetensors file that can be read ({error}). {advice}") from error
    if not isinstance(description, dict) or not all(isinstance(description.get(k), kind) for k, kind in _PARTS.items()):
        raise InputError(f"{file}: its header has no description of a jaxseg model. {advice}")
    try:
        run = _described(description)
    except InputError as error:
        raise InputError(f"{file}: its header does not describe a model ({error!s}). {advice}") from error
    like, variables = run.variables, unflatten_dict(arrays, sep="/")
    same_tree(str(file), variables, like)
    if digest(variables) != description["sha256"]:
        raise InputError(f"{file}: its arrays do not have the digest they were written with. {advice}")
    return loaded(Run(run.model, variables, run.info, run.step, run.description))


def _described(description: dict[str, Any]) -> Run:
    """A run with the shapes of its variables, checked as those of a run.json are."""
    model, info, like = described(description)
    if type(description["step"]) is not int or not 0 <= description["step"] < 1 << 40:
        raise InputError(f"step: got {str(description['step'])[:80]}; required a number of optimizer steps")
    return Run(model, like, info, description["step"], description)


@contextlib.contextmanager
def _new_files(*paths: Path) -> Iterator[list[Path]]:
    """Files to write beside their places, put there when all is done; nothing is left of them otherwise."""
    for path in paths:
        if path.exists():
            raise InputError(f"--out: {path} exists, and would be lost. Give another path, or remove it.")
        if not path.parent.is_dir():
            raise InputError(f"--out {path}: there is no folder {path.parent}. Make it, or give another path.")
    parts = [path.with_name(f"{path.name}.part") for path in paths]
    try:
        yield parts
        for part, path in zip(parts, paths, strict=True):
            os.replace(part, path)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


def _serialized(exported: jax.export.Exported) -> bytearray:
    try:
        return exported.serialize()
    except ImportError as error:
        raise InputError("--format stablehlo: needs flatbuffers. `pip install 'jaxseg[export]'`.") from error


def _flat(variables: Any) -> dict[str, np.ndarray]:
    return {key: np.asarray(leaf, order="C") for key, leaf in flatten_dict(jax.device_get(variables), sep="/").items()}


def _dims(aval: Any) -> str:
    return ", ".join(map(str, aval.shape))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")
