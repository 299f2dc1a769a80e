"""The `jaxseg` command."""

import importlib
import logging
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jaxseg.errors import InputError
from jaxseg.host_memory import with_huge_pages

USAGE = """\
jaxseg: image segmentation for JAX.

  jaxseg data list|prepare|check|show ...                        data sets: see, prepare, verify, look at them
  jaxseg train CONFIG.py [--option value ...] --workdir DIR      train; the same command goes on after an interruption
  jaxseg evaluate WORKDIR [--split S]                            score a trained model on a split
  jaxseg predict WORKDIR FILE_OR_FOLDER... --out DIR             segment images
  jaxseg segment METHOD FILE_OR_FOLDER... --out DIR              segment images without training: clusters, superpixels, regions
  jaxseg heatmaps WORKDIR FILE_OR_FOLDER... --out DIR            what the network sees: heat maps, receptive fields, a page to click on
  jaxseg export RUN --format FORMAT --out FILE                   a trained model for programs without jaxseg
  jaxseg weights list|import|export ...                          other people's weights: see layouts, take a file, give a run
  jaxseg models [NAME...]                                        the models: paper, parameters, FLOPs, stride, receptive field
  jaxseg benchmark upsampling --out DIR                          what each upsampling method and operator costs on this machine
  jaxseg benchmark models --out DIR                              what each model costs, inference and training

Each has --help. From nothing to a trained model:

  jaxseg data prepare cells --data-dir data
  jaxseg train configs/cells_unet.py --data-dir data --workdir runs/cells
"""


def program() -> int:
    """`main` as a program of its own, which begins anew where huge pages would make it faster. The benchmark does not: what it measures
    is told with its environment."""
    environment = with_huge_pages(os.environ)
    if environment and sys.argv[1:2] != ["benchmark"]:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    return main()


def main(argv: list[str] | None = None) -> int:
    """Runs one command; bad input is one line on standard error and exit code 2."""
    command, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if command == "--version":
        print(f"jaxseg {version('jaxseg')}")
        return 0
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        try:
            return _run(command, rest)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read has stopped, as `| head` does; what is left goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (InputError, OSError) as error:
        print(f"jaxseg {command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"jaxseg {command}: interrupted", file=sys.stderr)
        return 130


def script(function: Callable[..., Any]) -> None:
    """Runs a program of its own, such as those in benchmarks/, by the command line of its function; bad input ends it as `main` does."""
    import tyro

    try:
        sys.exit(tyro.cli(function))
    except InputError as error:
        print(f"{Path(sys.argv[0]).stem}: error: {error}", file=sys.stderr)
        sys.exit(2)


COMMANDS = {  # where each is; a `main` reads its words itself, the others are functions for tyro
    "data": ("data.commands", "main"),
    "train": ("train", "main"),
    "evaluate": ("evaluate", "evaluate"),
    "predict": ("predict", "predict"),
    "segment": ("segment", "main"),
    "heatmaps": ("heatmaps.command", "heatmaps"),
    "export": ("export", "export"),
    "weights": ("weights.commands", "main"),
    "models": ("model_table", "models"),
    "benchmark": ("benchmark.upsampling", "main"),
}


def _run(command: str, rest: list[str]) -> int:
    if command not in COMMANDS:
        raise InputError(f"no such command; there are {', '.join(COMMANDS)}. See jaxseg --help. Got {command!r}")
    module, name = COMMANDS[command]
    function = getattr(importlib.import_module(f"jaxseg.{module}"), name)
    if name == "main":
        return function(rest)
    import tyro

    return tyro.cli(function, args=rest, prog=f"jaxseg {command}")


if __name__ == "__main__":
    sys.exit(program())
