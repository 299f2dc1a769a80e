"""What exports where: every model, narrow, and every upsampler in a U-Net, as StableHLO and safetensors, compared with the model itself.

    python benchmarks/export_table.py --out export.md

For each: the sizes that the StableHLO program leaves open, its bytes without weights, the largest difference of its logits from the
model's over five shapes (five batches where the size is fixed), relative to the largest logit, on the device that this runs on; and
whether the run comes back from safetensors bit by bit. Random weights, no training and no data. Ten seconds a row on 2 cores.
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
from jaxseg.export import from_safetensors, to_safetensors, to_stablehlo
from jaxseg.models import MODELS, UNet
from jaxseg.pictures import default_colours
from jaxseg.progress import progress
from jaxseg.run_folder import Run
from jaxseg.upsample import UPSAMPLERS

CONFIG = Path(__file__).parent.parent / "configs" / "cells_models.py"
CLASSES, CHANNELS = 3, 1
SHAPES = ((1, 1, 1), (2, 1, 2), (3, 2, 1), (1, 3, 2), (5, 1, 1))
"""Batch, height and width, these in multiples of the program's step of 16 pixels or more."""
SIDE = {"deconvnet": 224}
"""Pixels of the image where the program needs a number; 64 elsewhere."""
HEAD = "| model | StableHLO: image | bytes | largest difference | safetensors |\n| --- | --- | --: | --: | --- |"


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
    rows = []
    with progress("exporting", len(only or networks)) as advance:
        for name in only or networks:
            advance(1, note=name)
            rows.append(row(name, networks[name]()))
    device = jax.devices()[0]
    lines = [f"{device.platform} ({device.device_kind}), jax {jax.__version__}", "", HEAD, *rows]
    out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def row(name: str, network: nn.Module) -> str:
    """A line of the table."""
    side = SIDE.get(name, 64)
    run = random_run(network, side)
    model = loaded(run)
    try:
        exported = to_stablehlo(model, inside=False)
        step = next(k for k in (1 << i for i in range(10)) if str(exported.in_avals[-1].shape[1]) in ("h", f"{k}*h"))
        unit = 17 if step == 1 else max(step, 16)  # odd sides where they are open
        shapes = [(n, h * unit, w * unit) for n, h, w in SHAPES]
    except InputError:
        exported = to_stablehlo(model, inside=False, size=(side, side))
        shapes = [(n, side, side) for n, *_ in SHAPES]
    worst = max(difference(model, exported, shape) for shape in shapes)
    image = ", ".join(map(str, exported.in_avals[-1].shape))
    return f"| {name} | [{image}] | {len(exported.mlir_module_serialized):,} | {worst:.1e} | {safetensors(run)} |"


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
    return "exact" if same and again.meta.model == run.model else "differs"


if __name__ == "__main__":
    script(main)
