"""`jaxseg predict` of an image larger than memory: `python benchmarks/huge_image.py --run RUN --folder /tmp/huge`.

The image is made of generated cells, written as a tiled, compressed BigTIFF. It is predicted by the command itself in a process of its
own, whose largest resident memory, time and processor time are printed; beside them what the model alone takes for tiles in memory: the
command is stopped every 15 s while that is measured, since a machine's speed changes within minutes. RUN is a run folder of one channel,
such as that of

    jaxseg train configs/cells_unet.py --features 4 8 --steps 300 --data-dir data --workdir runs/small
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter, process_time, sleep

import jax
import numpy as np
import tifffile

import jaxseg
from jaxseg.cli import script
from jaxseg.data import cells
from jaxseg.predict import tiles_at_once

EVERY = 15.0  # seconds after which the model alone takes a turn
MAKING = 256  # side of the file's tiles, and of a generated picture


def main(run: Path, folder: Path, side: tuple[int, ...] = (30000,), tile: int = 2016) -> None:
    """Memory, time and throughput of predicting images of these sides.

    Args:
      run: a run folder.
      folder: where images and predictions are written, 2 bytes a pixel.
      side: of the square images, pixels.
      tile: side of the tiles.
    """
    apply, variables, _ = jaxseg.load(run)
    step = jax.jit(apply)
    folder.mkdir(parents=True, exist_ok=True)
    for length in side:
        image = folder / f"cells{length}.tif"
        if not image.exists():
            _write(image, length)
        argv = [sys.executable, "-m", "jaxseg.cli", "predict", str(run), str(image), "--out", str(folder / "out"), "--tile", str(tile)]
        alone = [_resident(step, variables, tile)]
        start, stopped = perf_counter(), 0.0
        process = subprocess.Popen(argv)
        due = start + EVERY
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            sleep(0.1)
            if perf_counter() > due:
                process.send_signal(signal.SIGSTOP)
                begin = perf_counter()
                alone.append(_resident(step, variables, tile))
                process.send_signal(signal.SIGCONT)
                stopped += perf_counter() - begin
                due = perf_counter() + EVERY
        _, status, used = ended
        seconds = perf_counter() - start - stopped
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(process.returncode)
        memory, processors = used.ru_maxrss / 2**20, used.ru_utime + used.ru_stime
        own, busy = np.mean(alone, 0)
        print(
            f"{length} x {length} pixels: largest resident {memory:.2f} GiB. A million pixels take {seconds / length**2 * 1e6:.3f} s "
            f"and {processors / length**2 * 1e6:.3f} s of processors; in the model alone {own * 1e6:.3f} and {busy * 1e6:.3f}. "
            f"In all {seconds:.0f} s.",
            flush=True,
        )


def _write(path: Path, side: int) -> None:
    pictures = [cells.generate(np.random.default_rng(i))[0] for i in range(32)]
    rng = np.random.default_rng(0)

    def tiles() -> Iterator[np.ndarray]:
        for _ in range((-(-side // MAKING)) ** 2):
            yield np.rot90(pictures[rng.integers(len(pictures))], int(rng.integers(4)))

    options = {"bigtiff": True, "tile": (MAKING, MAKING), "compression": "zlib", "photometric": "minisblack"}
    tifffile.imwrite(path, tiles(), shape=(side, side), dtype=np.uint8, **options)


def _resident(step, variables, tile: int) -> tuple[float, float]:
    """Seconds, and seconds of processors, a pixel; medians of a few, of as many tiles as the command predicts at a time."""
    image = jax.device_put(np.random.default_rng(0).uniform(size=(tiles_at_once(tile), tile, tile, 1)).astype(np.float32))
    step(variables, image).block_until_ready()
    times, busy = [], []
    for _ in range(3):
        start, begin = perf_counter(), process_time()
        step(variables, image).block_until_ready()
        times.append(perf_counter() - start)
        busy.append(process_time() - begin)
    return median(times) / image.size, median(busy) / image.size


if __name__ == "__main__":
    script(main)
