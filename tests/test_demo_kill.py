"""The demo's training, killed five times at random moments, ends bitwise where the uninterrupted one does."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxseg.checkpoint import Checkpoints
from jaxseg.run_folder import METRIC, read_metrics

CONFIG = Path(__file__).parent.parent / "configs" / "cells_unet.py"
STEPS = 60


def digest_of(workdir: Path) -> str:
    stored = Checkpoints(workdir / "checkpoints", METRIC, read_only=True)
    assert stored.steps()[-1] == STEPS
    metadata = stored._metadata(STEPS)
    stored.close()
    return metadata.custom_metadata["sha256"]


@pytest.mark.slow
def test_the_demo_killed_five_times_ends_bitwise_where_the_whole_one_does(tmp_path):
    def command(workdir: Path) -> list[str]:
        options = ["--steps", str(STEPS), "--data-dir", str(tmp_path / "data"), "--workdir", str(workdir)]
        return [sys.executable, "-m", "jaxseg.cli", "train", str(CONFIG), *options]

    subprocess.run([sys.executable, "-m", "jaxseg.cli", "data", "prepare", "cells", "--data-dir", str(tmp_path / "data")], check=True)
    subprocess.run(command(tmp_path / "whole"), check=True)

    seed = time.time_ns()
    moments = random.Random(seed)
    for number in range(5):
        workdir, step, delay_s = tmp_path / f"killed{number}", moments.randrange(0, STEPS - 15), moments.uniform(0, 3)
        process = subprocess.Popen(command(workdir))
        while process.poll() is None and max((row["step"] for row in read_metrics(workdir)), default=0) < step:
            time.sleep(0.1)
        time.sleep(delay_s)
        assert process.poll() is None, "it ended before it was killed"
        process.kill()
        process.wait()
        there = sorted(p.name for p in (workdir / "checkpoints").glob("*"))
        print(f"seed {seed}, kill {number}: {delay_s:.1f} s after step {step}, checkpoints {there}", flush=True)
        subprocess.run(command(workdir), check=True)
        assert digest_of(workdir) == digest_of(tmp_path / "whole")
