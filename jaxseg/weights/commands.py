"""`jaxseg weights`: list the foreign layouts, import a file, export a run."""

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from jaxseg.errors import InputError
from jaxseg.weights.layouts import LAYOUTS
from jaxseg.weights.runs import export_weights, import_weights

EXAMPLE = """Other people's weights: see which layouts there are, make a run folder of a file, write a run for others.

For example, torchvision's trained network on your pictures:
`jaxseg weights import torchvision_fcn fcn_resnet50_coco-1167a1af.pth --out runs/fcn`, then
`jaxseg predict runs/fcn my_images/ --out predictions`."""

Layout = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="LAYOUT")]


def list_layouts() -> int:
    """The layouts that there are: the file of each, its licence, what it becomes, its options and the images it wants.

    For example: `jaxseg weights list`
    """
    console = Console(highlight=False)
    for name, entry in LAYOUTS.items():
        models = [" ".join([model, *(f"{k}={v}" for k, v in fixed.items())]) for model, fixed in entry.models.items()]
        lines = {
            "reads": entry.reads,
            "becomes": " or ".join(models) + ("" if entry.head else ", in part: a start for training"),
            "options": entry.options,
            "images": f"RGB in 0..1, less {_three(entry.mean)}, over {_three(entry.std)}",
            "classes": ", ".join(entry.class_names),
        }
        console.print(f"[bold]{name}[/bold]")
        for what, text in lines.items():
            if text:
                console.print(f"  {what:8} {text}", soft_wrap=True, markup=False)
    console.print("\nimport: jaxseg weights import LAYOUT FILE --out DIR", soft_wrap=True, markup=False)
    console.print("export: jaxseg weights export RUN LAYOUT --out FILE.safetensors", soft_wrap=True, markup=False)
    return 0


def import_(
    layout: Layout,
    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")],
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")],
    model: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None,
    classes: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    class_names: Annotated[str, tyro.conf.arg(metavar="A,B,...")] = "",
    channels: Annotated[int | None, tyro.conf.arg(metavar="C")] = None,
    options: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE...")] = (),
    seed: int = 0,
) -> int:
    """Make a run folder of a foreign file of weights, for `jaxseg predict`. Every key that does not fit is named, and nothing is written.

    For example: `jaxseg weights import torchvision_fcn fcn_resnet101.pth --out runs/fcn --options encoder=resnet101`, or, a classifier
    as encoder: `jaxseg weights import torchvision_resnet resnet34.pth --out runs/start --classes 5`

    Args:
      layout: as `jaxseg weights list` names it.
      file: .safetensors, .pt, .pth, .bin (these need torch) or .h5 (needs jaxseg[hdf5]). Nothing in it is executed.
      out: the run folder, made when missing. One that holds a run is refused.
      model: what a classifier becomes the encoder of, where there is a choice.
      classes: their number, where not the file's. The head is then new, to be trained; but of one class, two make background and it.
      class_names: one a class, separated by commas.
      channels: of your images, where not the file's: one gets the sum of the first convolution's kernel over its channels; others get the
        channels over and over, scaled so that equal channels give the same answer. Mean and std follow likewise.
      options: fields of the model, as the file was made: encoder=resnet50, variant=8s, bilinear=true, features=32,64,128,256,512.
      seed: of the weights that the file does not have.
    """
    names = tuple(class_names.split(",")) if class_names else ()
    network, new = import_weights(
        layout,
        file.expanduser(),
        out.expanduser(),
        model=model,
        classes=classes,
        class_names=names,
        channels=channels,
        options=dict(_option(text) for text in options),
        seed=seed,
    )
    fields: Any = network
    print(f"{layout}: {file.name} is now a {type(network).__name__} of {fields.num_classes} classes in {out}")
    if new:
        print(f"a start for training, not a trained model: the file has no weights for {', '.join(new)}, which are new, of seed {seed}")
    else:
        print(f"next: jaxseg predict {shlex.quote(str(out))} IMAGE_OR_FOLDER --out predictions")
    return 0


def export(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    layout: Layout,
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.safetensors")],
) -> int:
    """Write a run's weights in a foreign layout; of a classifier's layout, those of the encoder.

    A binary head of one class became two on import, and is written as two.

    For example: `jaxseg weights export runs/unet milesial_unet --out unet.safetensors`, and in torch
    `net.load_state_dict(safetensors.torch.load_file("unet.safetensors"), strict=False)`

    Args:
      run: a run folder.
      layout: as `jaxseg weights list` names it.
      out: the file to write.
    """
    number = export_weights(run.expanduser(), layout, out.expanduser())
    print(f"{layout}: {number} arrays in {out}")
    return 0


def main(argv: list[str]) -> int:
    """Runs `jaxseg weights ARGV` and returns the exit code; InputErrors pass through."""
    app = tyro.extras.SubcommandApp()
    app.command(name="list")(list_layouts)
    app.command(name="import")(import_)
    app.command(export)
    return app.cli(prog="jaxseg weights", description=EXAMPLE, args=argv)


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise InputError(f"--options {text}: required is NAME=VALUE, such as encoder=resnet50.")
    return name, [_value(part) for part in value.split(",")] if "," in value else _value(value)


def _value(text: str) -> Any:
    """Numbers, true, false and null are meant as such, the rest is text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _three(numbers: tuple[float, ...]) -> str:
    return ", ".join(f"{x:.4g}" for x in numbers)
