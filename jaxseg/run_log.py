"""What a training run writes down as it goes: metrics.jsonl, and TensorBoard where it can be had."""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg.pictures import colourise, shrink, to_rgb
from jaxseg.run_folder import read_metrics


class RunLog:
    """metrics.jsonl, and TensorBoard where tensorboardX is installed. Lines of steps that will be done again are dropped."""

    def __init__(self, workdir: Path, step: int):
        path = workdir / "metrics.jsonl"
        kept = [line for line in read_metrics(workdir) if line["step"] <= step]
        part = path.with_suffix(".part")
        part.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(part, path)
        self._file = path.open("a")
        self._board = None
        if importlib.util.find_spec("tensorboardX"):
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, **values: float) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def pictures(self, step: int, predictions: list[Any], colours: Any) -> None:
        if self._board:
            for i, p in enumerate(predictions):
                parts = to_rgb(p.record["image"]), colourise(p.label, colours), colourise(np.argmax(p.logits, -1), colours)
                self._board.add_image(f"prediction/{i}", shrink(np.concatenate(parts, 1), 960), step, dataformats="HWC")

    def close(self) -> None:
        self._file.close()
        if self._board:
            self._board.close()
