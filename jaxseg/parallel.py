"""One train step on all devices: `jit` over a mesh with the batch sharded, or a real `pmap`. Both give one device's result."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxseg.errors import InputError

AXIS = "data"
Parallel = Literal["jit", "pmap"]


def data_mesh(devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """A mesh with one axis, "data", over all devices."""
    devices = list(devices or jax.devices())
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def check_batch(batch_size: int, num_devices: int) -> None:
    """Raises InputError where a batch does not split evenly."""
    if batch_size < 1 or batch_size % num_devices:
        low = batch_size // num_devices * num_devices
        near = f"{low} or {low + num_devices}" if low else f"{num_devices}"
        raise InputError(
            f"--batch-size: got {batch_size} for {num_devices} devices; required a positive multiple of {num_devices}. Choose {near}, "
            "or fewer devices (CUDA_VISIBLE_DEVICES, JAX_NUM_CPU_DEVICES)."
        )


def parallel_step(
    step: Callable[..., tuple[Any, Any]], how: Parallel = "jit", devices: Sequence[Any] | None = None
) -> Callable[[Any, dict[str, np.ndarray]], tuple[Any, Any]]:
    """`step(state, batch, axis_name=...) -> (state, metrics)` over all devices; takes and returns the state whole, its memory donated.

    Args:
      step: a pure function; under pmap it is given `axis_name="data"` and this device's share of the batch.
      how: "jit" lets the compiler split the sharded batch; "pmap" runs one copy of the step a device.
    """
    devices = list(devices or jax.devices())
    if how == "pmap":
        mapped = jax.pmap(
            lambda state, batch: step(state, batch, axis_name=AXIS),
            axis_name=AXIS,
            in_axes=(None, 0),  # type: ignore[arg-type]
            out_axes=(None, None),  # type: ignore[arg-type]
            donate_argnums=(0,),
            devices=devices,
        )

        def pmapped(state, batch):
            check_batch(len(batch["image"]), len(devices))
            return mapped(state, {k: v.reshape(len(devices), -1, *v.shape[1:]) for k, v in batch.items()})

        return pmapped

    mesh = data_mesh(devices)
    sharded = NamedSharding(mesh, PartitionSpec(AXIS))
    jitted = jax.jit(
        step, in_shardings=(replicated(mesh), sharded), out_shardings=(replicated(mesh), replicated(mesh)), donate_argnums=(0,)
    )

    def sharded_step(state, batch):
        check_batch(len(batch["image"]), len(devices))
        return jitted(state, jax.device_put(batch, sharded))

    return sharded_step
