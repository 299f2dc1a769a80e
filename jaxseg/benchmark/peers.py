"""The other framework in a process of its own: starts torch_peer.py, asks it to build, to check and to time."""

import contextlib
import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg.benchmark.measure import Steps
from jaxseg.errors import InputError

WORKER = Path(__file__).with_name("torch_peer.py")


class PeerError(Exception):
    """What the worker could not do, in its words."""


class TorchPeer:
    """A running torch_peer.py. `info` holds its versions and threads, and whether torch.compile has a compiler."""

    def __init__(self, process: subprocess.Popen, folder: Path):
        self._process, self._folder = process, folder
        self.info = self.ask("hello", timeout_s=120)

    def ask(self, do: str, *, timeout_s: float = 600.0, **request: Any) -> dict[str, Any]:
        """One request, one answer.

        Raises:
          PeerError: it failed, died or took longer than `timeout_s`.
        """
        assert self._process.stdin
        assert self._process.stdout
        timer = threading.Timer(timeout_s, self._process.kill)
        timer.start()
        begun = time.monotonic()
        try:
            self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            tail = " ".join((self._folder / "stderr").read_text(errors="replace").splitlines()[-3:])
            silence = f"no answer in {timeout_s:.0f} s" if time.monotonic() - begun >= timeout_s else "no answer"
            raise PeerError(f"the torch process ended during {do!r}: {tail or silence}")
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise PeerError(f"it answered {do!r} by {line.strip()!r} and is no Python") from error
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer

    def build(self, do: str, arrays: Mapping[str, np.ndarray], **request: Any) -> dict[str, float]:
        """Builds an "operator" or a "unet" of these arrays; returns its relative errors against the results among them."""
        file = self._folder / "case.npz"
        np.savez(file, allow_pickle=False, **arrays)
        return self.ask(do, file=str(file), **request)["errors"]

    def steps(self, key: str, mode: str) -> Steps:
        """`mode` ("eager", "compiled") of `key`, a phase of the case that was built, as a contestant of `alternate`."""

        def steps(n: int) -> list[float]:
            return self.ask("run", key=key, mode=mode, steps=n)["seconds"]

        return steps

    def contestants(self, key: str, modes: tuple[str, ...]) -> tuple[dict[str, Steps], dict[str, float], list[str]]:
        """({"torch eager": steps, ...}, seconds of each one's first step, what failed): the first step of "compiled" compiles."""
        found, first, failed = {}, {}, []
        for mode in modes:
            steps = self.steps(key, mode)
            try:
                first[f"torch {mode}"] = steps(1)[0]
                found[f"torch {mode}"] = steps
            except PeerError as error:
                failed.append(f"torch {mode}, {key}: {error}")
        return found, first, failed

    @property
    def modes(self) -> tuple[str, ...]:
        return ("eager", "compiled") if self.info["compile"] else ("eager",)


@contextlib.contextmanager
def torch_peer(python: Path | None, environment: Mapping[str, str] | None = None) -> Iterator[TorchPeer | None]:
    """The worker, run by `python` in `environment`, or in this process's; None where no `python` is given.

    Raises:
      InputError: no such interpreter, or it has no torch.
    """
    if python is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="jaxseg-peer-") as folder, (Path(folder) / "stderr").open("w") as stderr:
        try:
            process = subprocess.Popen(
                [str(python.expanduser().absolute()), str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=folder,
                env=environment,
            )
        except OSError as error:
            raise InputError(
                f"--torch-python {python}: cannot be run ({error.strerror}). Give the path of a Python that has torch."
            ) from error
        try:
            try:
                peer = TorchPeer(process, Path(folder))
            except PeerError as error:
                raise InputError(
                    f"--torch-python {python}: {error}. Give a Python that has torch (pip install 'jaxseg[parity]')."
                ) from error
            yield peer
        finally:
            process.kill()
            process.communicate()
