"""One device, a sharded batch and pmap give the same training; any number of devices the same evaluation. On 8 simulated devices."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxseg import parallel
from jaxseg.errors import InputError

STEPS = 5
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"  # compiling is what takes the time here


def batch_of(step: int, n: int = 16) -> dict[str, np.ndarray]:
    """Noise with as many ignored pixels as the images differ: none in the last, all of the first two, which are a device's whole share."""
    rng = np.random.default_rng(step)
    label = rng.integers(0, 3, (n, 8, 8)).astype(np.int32)
    label[rng.random(label.shape) < np.linspace(1, 0, n)[:, None, None]] = 255
    label[:2] = 255
    image = (0.3 * np.where(label == 255, 1, label)[..., None] + rng.random((n, 8, 8, 2))).astype(np.float32)
    return {"image": image, "label": label, "weight": rng.uniform(0.1, 3, label.shape).astype(np.float32)}


def records() -> list[dict]:
    """21 images in rows of one size: 11, 3, 7. None is a multiple of 8."""
    rng = np.random.default_rng(9)
    sizes = [(6, 8)] * 11 + [(9, 5)] * 3 + [(6, 8)] * 7
    made = [{"name": str(i), "image": rng.integers(0, 256, (*s, 1), np.uint8), "label": rng.integers(0, 4, s)} for i, s in enumerate(sizes)]
    for record in made:
        record["label"][record["label"] == 3] = 255
    return made


def predict(variables, image):
    """Not quite pointwise: 3 classes of a pixel and its neighbour."""
    import jax.numpy as jnp

    return jnp.sin((image + 0.5 * jnp.roll(image, 1, 2)) * variables)


VARIABLES = np.float32([3.0, 5.0, 9.0])


def on_eight_devices(out: Path) -> None:
    """What the child process does: everything that needs more than one device, results into `out`."""
    import jax
    import optax

    from jaxseg import losses
    from jaxseg.checkpoint import Checkpoints
    from jaxseg.data import augment
    from jaxseg.evaluate import predictions
    from jaxseg.models import UNet
    from jaxseg.train_state import init_state, train_step

    assert jax.device_count() == 8
    optimizer = optax.sgd(0.1)  # Adam would hide a gradient that is too large by a factor
    model = UNet(3, features=(2, 4), padding="same", norm="batch", dropout=0.3)
    start = jax.device_get(jax.jit(functools.partial(init_state, model, optimizer, (16, 8, 8, 2), ema=True))())

    def step(state, batch, axis_name=None):
        return train_step(
            state,
            batch,
            model=model.clone(axis_name=axis_name),
            axis_name=axis_name,
            optimizer=optimizer,
            loss=losses.cross_entropy,
            mean=np.float32([0.5, 0.4]),
            std=np.float32([0.3, 0.2]),
            augment=(augment.flip, augment.brightness),
            ema_decay=0.9,
        )

    refused = {}
    for name, how, devices in (("one", "jit", jax.devices()[:1]), ("jit", "jit", None), ("pmap", "pmap", None)):
        run = parallel.parallel_step(step, how, devices)
        state, metrics, deltas = start, [], None
        for i in range(STEPS):
            state, numbers = run(state, batch_of(i))
            metrics.append([float(numbers["loss"]), float(numbers["grad_norm"])])
            if i == 0:  # the gradient, up to the learning rate
                deltas = [
                    np.asarray(new) - old for new, old in zip(jax.tree.leaves(state.params), jax.tree.leaves(start.params), strict=True)
                ]
        leaves = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(state))}
        np.savez(out / f"{name}.npz", metrics=np.array(metrics), gradient=np.concatenate([d.ravel() for d in deltas or ()]), **leaves)
        if name != "one":
            try:
                run(start, batch_of(0, 12))
            except InputError as error:
                refused[name] = str(error)
        if name == "jit":
            stored = Checkpoints(out / "checkpoints", "miou")
            stored.save(state)
            back = stored.restore(STEPS, start, parallel.replicated(parallel.data_mesh()))
            stored.close()
            assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(back))
            assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True))
            state, _ = run(back, batch_of(STEPS))  # and training goes on from there

    found = [(matrix.tolist(), p.record["name"], p.logits.tolist()) for matrix, p in predictions(predict, VARIABLES, records())]
    (out / "result.json").write_text(json.dumps({"refused": refused, "evaluation": found}))


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    out = tmp_path_factory.mktemp("eight")
    env = {**os.environ, "XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu"}
    code = f"import sys, pathlib; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_parallel as t; "
    code += f"t.on_eight_devices(pathlib.Path({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("how", ["jit", "pmap"])
def test_eight_devices_train_as_one(eight, how):
    """Float32 rounding apart: batch normalisation, dropout, augmentation, weights, unevenly ignored pixels, SGD."""
    one, many = np.load(eight / "one.npz"), np.load(eight / f"{how}.npz")
    assert set(one) == set(many)
    moved = 0
    for name in one:
        np.testing.assert_allclose(many[name], one[name], rtol=1e-5, atol=1e-5, err_msg=name)
        moved += np.abs(one[name]).max() > 1e-3
    assert moved > 20
    assert np.abs(one["gradient"]).max() > 1e-2


def test_a_batch_that_does_not_divide_is_refused(eight):
    refused = json.loads((eight / "result.json").read_text())["refused"]
    assert set(refused) == {"jit", "pmap"}
    for message in refused.values():
        assert "got 12 for 8 devices" in message
        assert "Choose 8 or 16" in message


def test_evaluation_is_that_of_one_device_exactly(eight):
    """Every record once and in order; the copies that fill the last batches up count nowhere."""
    found = json.loads((eight / "result.json").read_text())["evaluation"]
    assert [name for _, name, _ in found] == [r["name"] for r in records()]
    for (matrix, _, logits), record in zip(found, records(), strict=True):
        image = record["image"].astype(np.float32) / 255
        want = np.sin((image + 0.5 * np.roll(image, 1, 1)) * VARIABLES)
        np.testing.assert_allclose(logits, want, atol=1e-5)
        counts = np.zeros((3, 3), int)
        valid = record["label"] != 255
        np.add.at(counts, (record["label"][valid], want.argmax(-1)[valid]), 1)
        assert matrix == counts.tolist()


def test_a_checkpoint_of_eight_devices_is_read_on_one(eight):
    import jax
    import optax

    from jaxseg.checkpoint import Checkpoints
    from jaxseg.models import UNet
    from jaxseg.train_state import init_state

    model = UNet(3, features=(2, 4), padding="same", norm="batch", dropout=0.3)
    like = jax.eval_shape(functools.partial(init_state, model, optax.sgd(0.1), (16, 8, 8, 2), ema=True))
    stored = Checkpoints(eight / "checkpoints", "miou", read_only=True)
    state = stored.restore_latest(like)
    stored.close()
    wanted = np.load(eight / "jit.npz")
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        assert len(leaf.sharding.device_set) == 1
        np.testing.assert_array_equal(leaf, wanted[jax.tree_util.keystr(path)])


@pytest.mark.parametrize(
    ("batch", "devices", "near"), [(10, 8, "8 or 16"), (3, 8, "Choose 8,"), (0, 1, "Choose 1,"), (-8, 8, "Choose"), (9, 2, "8 or 10")]
)
def test_the_nearest_batches_are_named(batch, devices, near):
    with pytest.raises(InputError, match=rf"--batch-size: got {batch} for {devices} devices.*{near}"):
        parallel.check_batch(batch, devices)
