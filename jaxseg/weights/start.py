"""Where training begins: functions (model, fresh variables) -> variables, for a config's `start`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from jaxseg.errors import InputError
from jaxseg.models.fcn import FCN, continue_from
from jaxseg.run_folder import load_run
from jaxseg.weights.files import read_weights
from jaxseg.weights.layouts import Part, bring_in, layout_of

Start = Callable[[Any, Any], Any]


def from_file(layout: str, file: Path, part: Part = "all") -> Start:
    """Begins with a foreign file: a whole network, or the encoder of a classifier's; what it has no weights for stays fresh.

    The first convolution is fitted to the images' channels and the head to the classes, by the rules of `jaxseg.weights.adapt`. Training
    should standardise images as the weights were trained: `LAYOUTS[layout].mean` and `.std`. The file is read when training begins.

    Args:
      layout: a name of `LAYOUTS`.
      file: .safetensors, torch's .pt and .pth, or .h5.
      part: "encoder" takes only the file's encoder, for a model with another decoder.

    Raises:
      InputError: no such layout; when called, what is wrong with the file, or it does not fit the model.
    """
    layout_of(layout)
    return lambda model, variables: bring_in(layout, read_weights(Path(file).expanduser()), model, variables, part)


def from_run(folder: Path) -> Start:
    """Begins with the best checkpoint of a run folder of the same model; FCN also of its next coarser variant, by `continue_from`.

    Raises:
      InputError: when called: no run there, or the model is another.
    """

    def start(model: Any, variables: Any) -> Any:
        run = load_run(Path(folder).expanduser())
        if isinstance(model, FCN) and isinstance(run.model, FCN) and run.model.variant != model.variant:
            return continue_from(variables, run.variables)
        have, want = _shapes(run.variables), _shapes(variables)
        differ = sorted(k for k in have | want if have.get(k) != want.get(k))
        wrong = [f"{k}: {have.get(k, 'missing')}, required {want.get(k, 'none')}" for k in differ]
        if wrong:
            raise InputError(
                f"{folder}: its {type(run.model).__name__} does not begin this {type(model).__name__}: {'; '.join(wrong[:5])}"
                f"{f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''}. Give the run of an equal model, or change the model's options."
            )
        return run.variables

    return start


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    flat: dict[tuple[str, ...], Any] = flatten_dict(tree)
    return {"/".join(path): tuple(leaf.shape) for path, leaf in flat.items()}
