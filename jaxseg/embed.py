"""A trained model in other programs: a pure function, its arrays, and what they mean."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.inference.whole import Predict
from jaxseg.run_folder import Run, load_run


class Meta(NamedTuple):
    """What a trained model is of.

    Attributes:
      class_names, colours: one name, and one RGB triple (0..255), a class.
      channels: of an image.
      preprocess: mean and std of the channels, the factor by which images are resampled and, where there are any, the percentiles brought
        to 0 and 1: what `apply` does before the network.
      step: the optimizer step of the weights.
      model: the network alone, a Linen module that takes preprocessed images.
      instances: where the model separates objects, the route whose outputs `apply` gives in place of logits of the classes:
        `jaxseg.instances.routes.find_route(instances).decode(logits [H,W,K])` is the label map; else None.
    """

    class_names: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    channels: int
    preprocess: Mapping[str, Any]
    step: int
    model: nn.Module
    instances: str | None = None


class Loaded(NamedTuple):
    """`apply(variables, image [N,H,W,C] in 0..1) -> float32 logits [N,H,W,K]`, its variables, and what they mean.

    Of a model of volumes `apply` takes [N,D,H,W,C] and gives [N,D,H,W,K].
    """

    apply: Predict
    variables: Any
    meta: Meta


def load(run_folder: str | Path) -> Loaded:
    """The trained model of a run folder, to be used anywhere: `apply, variables, meta = jaxseg.load("runs/cells")`.

    `apply(variables, image [N,H,W,C] float in 0..1) -> float32 logits [N,H,W,K]` is pure, of any H and W, and preprocesses the image
    itself; jit, vmap, grad, scan and shard_map take it as it is. docs/embedding.md has an example of each.

    Args:
      run_folder: of `jaxseg train` or `jaxseg weights import`. Its best checkpoint is taken, or the latest where none was evaluated.

    Raises:
      InputError: no run there, or it is damaged or of another model.
    """
    return loaded(load_run(Path(run_folder), volumes=True))


def loaded(run: Run) -> Loaded:
    """A run as `load` gives it. Its arrays are bound to no device, so that a program over several takes them as they are."""
    info, said = run.info, run.description
    meta = Meta(info.class_names, info.colours, info.channels, said["preprocess"], run.step, run.model, said.get("instances"))
    return Loaded(run.predict, jax.tree.map(jnp.asarray, jax.device_get(run.variables)), meta)
