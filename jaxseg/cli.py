"""The `jaxseg` command."""

import logging
import os
import sys
from importlib.metadata import version

from jaxseg.errors import InputError

USAGE = """\
jaxseg: image segmentation for JAX.

  jaxseg data list|prepare|check|show ...                        data sets: see, prepare, verify, look at them
  jaxseg train CONFIG.py [--option value ...] --workdir DIR      train; the same command goes on after an interruption
  jaxseg evaluate WORKDIR [--split S]                            score a trained model on a split
  jaxseg predict WORKDIR FILE_OR_FOLDER... --out DIR             segment images
  jaxseg export RUN --format stablehlo|safetensors --out FILE    a trained model for programs without jaxseg
  jaxseg weights list|import|export ...                          other people's weights: see layouts, take a file, give a run
  jaxseg models [NAME...]                                        the models: paper, parameters, FLOPs, stride, receptive field
  jaxseg benchmark upsampling --out DIR                          what each upsampling method and operator costs on this machine
  jaxseg benchmark models --out DIR                              what each model costs, inference and training

Each has --help. From nothing to a trained model:

  jaxseg data prepare cells --data-dir data
  jaxseg train configs/cells_unet.py --data-dir data --workdir runs/cells
"""


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
        return _run(command, rest)
    except (InputError, OSError) as error:
        print(f"jaxseg {command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"jaxseg {command}: interrupted", file=sys.stderr)
        return 130


def _run(command: str, rest: list[str]) -> int:
    import tyro

    if command == "data":
        from jaxseg.data.commands import main as data

        return data(rest)
    if command == "weights":
        from jaxseg.weights.commands import main as weights

        return weights(rest)
    if command == "export":
        from jaxseg.export import export

        return tyro.cli(export, args=rest, prog="jaxseg export")
    if command == "models":
        from jaxseg.model_table import models

        return tyro.cli(models, args=rest, prog="jaxseg models")
    if command == "benchmark":
        from jaxseg.benchmark.upsampling import main as benchmark

        return benchmark(rest)
    if command == "train":
        from jaxseg.train import main as train

        return train(rest)
    if command == "evaluate":
        from jaxseg.evaluate import evaluate

        return tyro.cli(evaluate, args=rest, prog="jaxseg evaluate")
    if command == "predict":
        from jaxseg.predict import predict

        return tyro.cli(predict, args=rest, prog="jaxseg predict")
    raise InputError(
        "no such command; there are data, train, evaluate, predict, export, weights, models and benchmark. See jaxseg --help. "
        f"Got {command!r}"
    )


if __name__ == "__main__":
    sys.exit(main())
