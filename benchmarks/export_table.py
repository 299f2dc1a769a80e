"""What exports where: every model, narrow, and every upsampler in a U-Net, as StableHLO, ONNX and safetensors, compared with the model.

    python benchmarks/export_table.py --out docs/export.md

For each: the sizes that the StableHLO program leaves open, its bytes without weights, the largest difference of its logits from the
model's over `SHAPES`, relative to the largest logit, on the device that this runs on; ONNX of one size, which is written where onnxruntime
agrees with JAX, and its bytes with weights; and whether the run comes back from safetensors bit by bit. Random weights, no training and no
data. Half a minute a row on 2 cores.
"""

import functools
import tempfile
from pathlib import Path
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxseg.cli import script
from jaxseg.config import load_get_config
from jaxseg.data.listing import DataInfo
from jaxseg.embed import Loaded, loaded
from jaxseg.errors import InputError
from jaxseg.export import OPEN, from_safetensors, to_safetensors, to_stablehlo
from jaxseg.export_onnx import to_onnx
from jaxseg.model_json import model_to_json
from jaxseg.models import MODELS, UNet
from jaxseg.pictures import default_colours
from jaxseg.progress import progress
from jaxseg.run_folder import Run
from jaxseg.upsample import UPSAMPLERS

CONFIG = Path(__file__).parent.parent / "configs" / "cells_models.py"
CLASSES, CHANNELS = 3, 1
SHAPES = ((1, 0, 0), (2, 1, 2))
"""Batch, and by how many of the program's steps height and width are above the least."""
LARGE = ("deconvnet", "unet, unpadded")
"""What needs more than 64 x 64 pixels."""
HEAD = "| model | StableHLO: image | bytes | difference | ONNX: bytes | safetensors |\n| --- | --- | --: | --: | --: | --- |"


def main(out: Annotated[Path, tyro.conf.arg(metavar="FILE.md")], only: tuple[str, ...] = ()) -> None:
    """Export every model and every upsampler, compare, and write the table.

    Args:
      out: the table, in Markdown.
      only: these models and upsamplers; all by default.
    """
    get_config = load_get_config(CONFIG)
    networks = {name: lambda name=name: get_config(model=name).model(num_classes=CLASSES) for name in MODELS}
    narrow = functools.partial(UNet, CLASSES, features=(16, 32, 64), padding="same", norm="batch")
    networks |= {f"unet, {name}": functools.partial(narrow, upsample=up) for name, up in UPSAMPLERS.items()}
    networks |= {"unet, unpadded": functools.partial(UNet, CLASSES, features=(16, 32, 64))}
    unknown = [name for name in only if name not in networks]
    if unknown:
        raise InputError(f"--only: got {', '.join(unknown)}; there are {'; '.join(networks)}.")
    title = "# What exports where\n\n`python benchmarks/export_table.py --out FILE.md`, which says what the columns are."
    lines = [title, f"{jax.devices()[0].platform}, jax {jax.__version__}, random weights.\n", HEAD]
    with progress("exporting", len(only or networks)) as advance:
        for name in only or networks:
            advance(1, note=name)
            lines.append(row(name, networks[name]()))
            out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def row(name: str, network: nn.Module) -> str:
    """A line of the table."""
    side = 224 if name in LARGE else 64
    run = random_run(network, side)
    model = loaded(run)
    exported = to_stablehlo(model, inside=False)
    image = ", ".join(map(str, exported.in_avals[-1].shape))
    step, least = next((s, n) for s, n in OPEN if image.split(", ")[1] == str(jax.export.symbolic_shape(f"{s}*h + {n - s}")[0]))
    worst = max(difference(model, exported, (n, least + h * step, least + w * step)) for n, h, w in SHAPES)
    try:
        onnx = f"{len(to_onnx(model, size=(side, side))):,}"
    except InputError as error:
        onnx = str(error)
    return f"| {name} | [{image}] | {len(exported.mlir_module_serialized):,} | {worst:.1e} | {onnx} | {safetensors(run)} |"


def random_run(network: nn.Module, side: int) -> Run:
    """Of random weights, and statistics of batch norm that matter."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, side, side, CHANNELS)))
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
        spread = np.sqrt(2 / np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.1
        return rng.normal(0, spread, leaf.shape).astype(leaf.dtype)

    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    info = DataInfo("random", tuple(f"class{i}" for i in range(CLASSES)), CHANNELS, default_colours(CLASSES))
    preprocess = {"mean": [0.5] * CHANNELS, "std": [0.25] * CHANNELS, "resize": 1.0}
    return Run(network, variables, info, 0, {"preprocess": preprocess, "example_size": [side, side]})


def difference(model: Loaded, exported: jax.export.Exported, shape: tuple[int, ...]) -> float:
    """The largest, relative to the largest logit."""
    image = np.random.default_rng(sum(shape)).random((*shape, CHANNELS), np.float32)
    weights = {"/".join(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(model.variables)}
    want = np.asarray(jax.jit(model.apply)(model.variables, image))
    return float(np.abs(np.asarray(exported.call(weights, image)) - want).max() / np.abs(want).max())


def safetensors(run: Run) -> str:
    with tempfile.TemporaryDirectory() as folder:
        to_safetensors(run, Path(folder) / "net.safetensors")
        again = from_safetensors(Path(folder) / "net.safetensors")
    same = jax.tree.all(jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), again.variables, run.variables))
    return "exact" if same and model_to_json(again.meta.model) == model_to_json(run.model) else "differs"


if __name__ == "__main__":
    script(main)
