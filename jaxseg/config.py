"""An experiment, made of the real objects. A config file's typed `get_config(...) -> Config` is its command line."""

import dataclasses
import functools
import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax

from jaxseg import losses
from jaxseg.data.listing import Record
from jaxseg.errors import InputError
from jaxseg.inference.whole import check_percentiles
from jaxseg.instances.routes import find_route
from jaxseg.upsample import UPSAMPLERS

UpsampleName = Literal[
    "transposed",
    "transposed_overlap",
    "zero_insert",
    "nearest",
    "bilinear",
    "bicubic",
    "bilinear_filter",
    "pixel_shuffle",
    "carafe",
    "max_unpool",
]
DtypeName = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class Config:
    """What `jaxseg train` runs.

    Args:
      data: name of a prepared data set.
      model: called with `num_classes=`; usually a partial of a class in `jaxseg.models.MODELS`.
      optimizer: optax, with its schedule and clipping.
      steps: optimizer steps.
      batch_size: images a step, over all devices.
      size: height and width of the training crops, in pixels after `resize`.
      loss: of `jaxseg.losses`; not used with `instances`, whose route has its own.
      instances: a route of `jaxseg.instances.routes.ROUTES`: the model learns to separate objects; None: classes of pixels.
      augment: functions of `jaxseg.data.augment`, applied in order.
      start: `start(model, variables)` gives the weights to begin with in place of fresh `variables`, e.g. of `jaxseg.weights.start`.
      mean_std: mean and standard deviation of each channel, 0..1, by which images are standardised, as the starting weights need them;
        None measures the training images.
      percentiles: two percentiles of each image that are brought to 0 and 1 before all else, such as (1, 99.8), where exposures differ from
        image to image; None leaves brightness as it is.
      resize: factor by which images are resampled before training and prediction; results are brought back.
      weight_map: weight of each pixel of a record, e.g. `jaxseg.weight_map.border_weight_map`.
      accumulate: parts in which a step takes its batch, for large ones; `train_state.train_step` says what changes.
      remat: compute the activations of blocks again in the backward pass instead of keeping them.
      ema_decay: of the averaged weights that are evaluated; 0 evaluates the last weights.
      eval_split: evaluated every `eval_every` steps to choose the best checkpoint; None keeps the last.
      test_split: what the report shows.
    """

    data: str
    model: Callable[..., nn.Module]
    optimizer: optax.GradientTransformation
    steps: int
    batch_size: int
    size: tuple[int, int]
    loss: Callable[..., Any] = losses.cross_entropy
    instances: str | None = None
    augment: tuple[Callable[..., Any], ...] = ()
    start: Callable[[nn.Module, Any], Any] | None = None
    mean_std: tuple[Sequence[float], Sequence[float]] | None = None
    percentiles: tuple[float, float] | None = None
    resize: float = 1.0
    weight_map: Callable[[Record], np.ndarray] | None = None
    accumulate: int = 1
    remat: bool = False
    ema_decay: float = 0.0
    eval_split: str | None = "val"
    test_split: str = "test"
    eval_every: int = 200
    save_every: int = 100
    log_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "eval_every", "save_every", "log_every"):
            if not 1 <= getattr(self, name) < 2**31:
                raise InputError(f"{name}: got {getattr(self, name)}; required from 1 to {2**31 - 1}.")
        if not 0 <= self.seed < 2**31:
            raise InputError(f"seed: got {self.seed}; required from 0 to {2**31 - 1}.")
        if min(self.size) < 1:
            raise InputError(f"size: got {self.size}; required at least 1 x 1 pixels.")
        if not 0 < self.resize <= 4:
            raise InputError(f"resize: got {self.resize}; required a factor above 0 and at most 4.")
        check_percentiles(self.percentiles)
        if self.instances is not None:
            find_route(self.instances)
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"ema_decay: got {self.ema_decay}; required from 0 (off) to less than 1.")


def adamw(learning_rate: float, steps: int, *, weight_decay: float = 1e-4, clip: float = 1.0) -> optax.GradientTransformation:
    """The configs' optimizer: AdamW, gradients clipped to norm `clip`, linear warm-up over 5% of the steps, then a cosine to 0."""
    if learning_rate <= 0:
        raise InputError(f"learning_rate: got {learning_rate}; required above 0.")
    warmup = max(1, steps // 20)
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup, max(steps, warmup + 1))
    return optax.chain(optax.clip_by_global_norm(clip), optax.adamw(schedule, weight_decay=weight_decay))


def rate_per_part(optimizer: optax.GradientTransformation, rates: Mapping[str, float]) -> optax.GradientTransformation:
    """`optimizer` with its learning rate multiplied for some parts of a model; 0 leaves a part as it is.

    Args:
      rates: factor for all parameters below a name at the top of the model's, such as {"encoder": 0.1}; others keep 1.
    """

    def scale(updates: Any, params: Any = None) -> Any:
        del params
        unknown = rates.keys() - updates.keys()
        if unknown:
            raise InputError(
                f"rate_per_part: got {', '.join(sorted(unknown))}; the model's parts are {', '.join(updates)}. Take from these."
            )
        return {part: optax.tree.scale(rates.get(part, 1.0), tree) for part, tree in updates.items()}

    return optax.chain(optimizer, optax.stateless(scale))


def unet_options(upsample: UpsampleName, dtype: DtypeName) -> dict[str, Any]:
    """The command line's names as the model's objects."""
    return {"upsample": UPSAMPLERS[upsample], "dtype": None if dtype == "float32" else jnp.bfloat16}


def load_get_config(path: Path) -> Callable[..., Config]:
    """The `get_config` of a config file that the user named. This executes the file; nothing else in jaxseg executes files.

    Raises:
      InputError: no such file, it does not run, or it has no function of that name.
    """
    example = "See configs/ for examples."
    if str(path).startswith("-"):
        raise InputError(f"{path}: the config file comes first, then the options: jaxseg train CONFIG.py {path} ... {example}")
    if not path.is_file():
        raise InputError(f"{path}: no such config file. Give the path of a Python file with get_config(). {example}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: a config is a Python file ending in .py with a function get_config(). {example}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InputError(f"{path}: does not run: {type(error).__name__}: {error}. Correct the file. {example}") from error
    get_config: Any = getattr(module, "get_config", None)
    if not inspect.isfunction(get_config):
        raise InputError(f"{path}: has no function get_config(). {example}")
    get_config.__doc__ = get_config.__doc__ or module.__doc__
    return get_config


def with_options(script: Callable[..., Any], get_config: Callable[..., Config]) -> Callable[..., Any]:
    """`script(config, options, **own)` as a function of its own keyword arguments and of get_config's parameters, for tyro.

    `options` is what get_config was called with.
    """
    ours = [p for name, p in inspect.signature(script).parameters.items() if name not in ("config", "options")]
    theirs = list(inspect.signature(get_config).parameters.values())
    clash = {p.name for p in ours} & {p.name for p in theirs}
    if clash:
        raise InputError(f"get_config: parameter {', '.join(sorted(clash))} is an option of the script itself. Rename it.")

    @functools.wraps(script)
    def run(**arguments: Any) -> Any:
        options = {p.name: arguments.pop(p.name) for p in theirs}
        try:
            config = get_config(**options)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"get_config: {type(error).__name__}: {error}. Change the option, or correct the config file.") from error
        if not isinstance(config, Config):
            raise InputError(f"get_config: returned {type(config).__name__}; required is a jaxseg.config.Config. Correct the config file.")
        return script(config, options, **arguments)

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in ours + theirs]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__doc__ = f"{inspect.getdoc(get_config) or ''}\n{_arguments(script)}"
    del run.__wrapped__  # type: ignore[attr-defined]
    return run


def _arguments(script: Callable[..., Any]) -> str:
    _, _, arguments = (inspect.getdoc(script) or "").partition("Args:\n")
    return arguments
