"""Save and restore a training state: Orbax underneath, with a digest of every array, which Orbax does not check."""

import hashlib
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from jaxseg.errors import InputError

_REMOVE = "Remove its folder; an older one will be used."
_policies = ocp.training.preservation_policies


class Checkpoints:
    """The checkpoints of one run: the latest two, and the best by the named metric.

    Args:
      folder: made when missing; half-written checkpoints of a killed run are removed from it.
      metric: name of the number in `save(..., metrics)` by which the best is kept; larger is better.
      read_only: for evaluation: nothing is removed.
    """

    def __init__(self, folder: Path, metric: str, *, read_only: bool = False):
        self.folder, self.metric, self._read_only = folder, metric, read_only
        best = _policies.BestN(get_metric_fn=lambda m: m[metric], n=1, keep_checkpoints_without_metrics=False)
        checkpointer: Any = ocp.training.Checkpointer  # its annotations refuse what its documentation passes
        try:
            self._orbax = checkpointer(
                folder.absolute(),
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=_policies.AnyPreservationPolicy([_policies.LatestN(2), best]),
                cleanup_tmp_directories=not read_only,
            )
        except Exception as error:  # Orbax reads the metrics of all at once, and raises what their reader did
            raise InputError(f"{folder}: metrics are unreadable ({_first_line(error)}). Remove the folder of the damaged one.") from error

    def save(self, state: Any, metrics: dict[str, float] | None = None) -> None:
        """Write the state under its step, unless that step is there."""
        state = jax.device_get(state)
        step = int(state.step)
        if step not in self.steps():
            self._orbax.save(step, state, metrics=metrics, custom_metadata={"sha256": digest(state)})

    def steps(self) -> list[int]:
        return sorted(c.step for c in self._orbax.checkpoints)

    def best_step(self) -> int | None:
        """The step of the best metric, the later of equals; None before the first evaluation."""
        scored = [(c.metrics[self.metric], c.step) for c in self._orbax.checkpoints if c.metrics]
        return max(scored)[1] if scored else None

    def best_metric(self) -> float | None:
        return max((c.metrics[self.metric] for c in self._orbax.checkpoints if c.metrics), default=None)

    def restore(self, step: int, like: Any, sharding: jax.sharding.Sharding | None = None) -> Any:
        """The state of `step`, with the shapes and types of `like`, placed by `sharding`.

        Raises:
          InputError: it is unreadable, was written for another model, or its digest is wrong.
        """
        metadata = self._metadata(step)
        same_tree(self._where(step), metadata.metadata, like)
        return self._load(step, metadata, like, sharding)

    def restore_variables(self, step: int, like: Any) -> Any:
        """What to predict with, of the shapes of `like` ({"params", "batch_stats"?}): the averaged weights where there are any."""
        metadata = self._metadata(step)
        state = self._load(step, metadata, metadata.metadata)
        variables = state["ema"] or {k: state[k] for k in ("params", "batch_stats") if state[k]}
        same_tree(self._where(step), variables, like)
        return variables

    def _where(self, step: int) -> str:
        return f"checkpoint {step} in {self.folder}"

    def _metadata(self, step: int) -> Any:
        try:
            metadata = self._orbax.metadata(step)
        except Exception as error:  # Orbax raises whatever its storage raised
            raise InputError(f"{self._where(step)}: unreadable ({_first_line(error)}). {_REMOVE}") from error
        if metadata.metadata is None:  # or only logs it
            raise InputError(f"{self._where(step)}: the list of its arrays is unreadable. {_REMOVE}")
        return metadata

    def _load(self, step: int, metadata: Any, like: Any, sharding: jax.sharding.Sharding | None = None) -> Any:
        sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like)
        try:
            state = self._orbax.load(step, abstract)
        except Exception as error:
            raise InputError(f"{self._where(step)}: unreadable ({_first_line(error)}). {_REMOVE}") from error
        if digest(jax.device_get(state)) != (metadata.custom_metadata or {}).get("sha256"):
            raise InputError(f"{self._where(step)}: its arrays do not have the digest they were written with. {_REMOVE}")
        return state

    def restore_latest(self, like: Any, sharding: jax.sharding.Sharding | None = None) -> Any | None:
        """The newest state that is whole, or None where there is no checkpoint. A damaged one is passed over with a warning, and its folder
        renamed to STEP.damaged: Orbax writes no step before its latest, and none again.

        Raises:
          InputError: there are checkpoints and none can be read.
        """
        errors = {}
        for step in reversed(self.steps()):
            try:
                state = self.restore(step, like, sharding)
            except InputError as error:
                logging.getLogger("jaxseg").warning("%s", error)
                errors[step] = error
            else:
                if errors and not self._read_only:
                    self._set_aside(errors)
                return state
        for error in errors.values():
            raise error
        return None

    def _set_aside(self, steps: Iterable[int]) -> None:
        for step in steps:
            aside = self.folder / f"{step}.damaged"
            shutil.rmtree(aside, ignore_errors=True)
            (self.folder / str(step)).rename(aside)
        self._orbax.reload()

    def close(self) -> None:
        self._orbax.close()


def digest(tree: Any) -> str:
    """SHA-256 over the names, types, shapes and bytes of a tree's arrays."""
    total = hashlib.sha256()
    for name, leaf in sorted((_name(p), x) for p, x in jax.tree_util.tree_leaves_with_path(tree)):
        array = np.ascontiguousarray(leaf)
        total.update(f"{name} {array.dtype} {array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def same_tree(where: str, stored: Any, like: Any) -> None:
    """Raises InputError naming the leaves in which two trees of arrays (or of their metadata) differ in name, shape or type."""
    have = {_name(p): (tuple(m.shape), np.dtype(m.dtype)) for p, m in jax.tree_util.tree_leaves_with_path(stored)}
    want = {_name(p): (tuple(x.shape), np.dtype(x.dtype)) for p, x in jax.tree_util.tree_leaves_with_path(like)}
    wrong = [f"{k}: missing" for k in sorted(want.keys() - have.keys())]
    wrong += [f"{k}: not in this model" for k in sorted(have.keys() - want.keys())]
    wrong += [f"{k}: is {have[k]}, required {want[k]}" for k in sorted(have.keys() & want.keys()) if have[k] != want[k]]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise InputError(
            f"{where} is of another model or optimizer: {'; '.join(wrong[:5])}{more}. "
            "Use the run folder that it came with, or another --workdir."
        )


def _name(path: Any) -> str:
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
