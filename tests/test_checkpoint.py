"""Checkpoints: exact, few, guarded by digests, and never of another model."""

import gc
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg.checkpoint import Checkpoints, digest
from jaxseg.errors import InputError
from jaxseg.train_state import TrainState

# Orbax leaves the other reads of a checkpoint with a failed one to the garbage collector, which finds their event loop closed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def make_state(step: int, *, ema: bool = True, features: int = 24, dtype=jnp.float32) -> TrainState:
    rng = np.random.default_rng(step)
    params = {
        "conv": {"kernel": jnp.asarray(rng.normal(size=(3, 3, 8, features)), dtype), "bias": jnp.asarray(rng.normal(size=features), dtype)},
        "half": jnp.asarray(rng.normal(size=7), jnp.bfloat16),
    }
    stats = {"norm": {"mean": jnp.asarray(rng.normal(size=features), jnp.float32)}}
    return TrainState(
        step=jnp.asarray(step, jnp.int32),
        params=params,
        batch_stats=stats,
        opt_state=optax.adam(0.1).init(params),
        ema=jax.tree.map(lambda x: x + 1, {"params": params, "batch_stats": stats}) if ema else None,
        rng=jnp.asarray([step, 2**32 - 1], jnp.uint32),
    )


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture
def stored(tmp_path):
    made = Checkpoints(tmp_path / "checkpoints", "miou")
    yield made
    made.close()
    gc.collect()


def test_what_is_saved_comes_back_exactly(stored):
    assert stored.restore_latest(make_state(0)) is None
    assert (stored.steps(), stored.best_step(), stored.best_metric()) == ([], None, None)
    state = make_state(3)
    params = {**state.params, "half": state.params["half"].at[:3].set(jnp.array([jnp.nan, jnp.inf, -0.0], jnp.bfloat16))}
    state = state.replace(params=params)
    stored.save(state)
    assert stored.steps() == [3]
    assert_same(stored.restore(3, make_state(0)), state)
    assert_same(stored.restore_latest(jax.eval_shape(lambda: make_state(0))), state)


def test_the_latest_two_and_the_best_are_kept(stored):
    scores = {1: 0.2, 2: None, 3: 0.9, 4: 0.5, 5: None, 6: 0.7, 7: 0.1}
    for step, miou in scores.items():
        stored.save(make_state(step), None if miou is None else {"miou": miou, "pixel_accuracy": 1 - miou})
    assert stored.steps() == [3, 6, 7]
    assert (stored.best_step(), stored.best_metric()) == (3, 0.9)
    assert sorted(p.name for p in stored.folder.iterdir()) == ["3", "6", "7"]
    assert_same(stored.restore_latest(make_state(0)), make_state(7))
    again = Checkpoints(stored.folder, "miou", read_only=True)  # as the next process sees it
    assert (again.steps(), again.best_step()) == ([3, 6, 7], 3)
    again.close()


def test_of_equal_scores_the_later_is_best(stored):
    for step in (1, 2, 3):
        stored.save(make_state(step), {"miou": 0.5})
    assert stored.best_step() == 3


def test_a_step_is_not_written_twice(stored):
    stored.save(make_state(1))
    stored.save(make_state(1).replace(rng=jnp.zeros(2, jnp.uint32)))
    assert_same(stored.restore(1, make_state(0)), make_state(1))


def array_files(folder):
    """All files that hold arrays, largest first."""
    return sorted((p for p in folder.glob("state/**/d/*") if p.is_file()), key=lambda p: -p.stat().st_size)


def test_a_flipped_bit_in_any_array_file_is_refused(stored, tmp_path):
    """Or else, in the few bytes that mean nothing, the arrays are those that were written. Orbax alone notices few of them."""
    state = make_state(5)
    stored.save(state)
    files = array_files(stored.folder / "5")
    assert files[0].stat().st_size > 4 * 9 * 8 * 24  # the kernel
    messages = {}
    for file in files:
        good = file.read_bytes()
        for place in (0.25, 0.5, 0.8):
            bad = bytearray(good)
            bad[int(place * len(bad))] ^= 1 << 4
            file.write_bytes(bad)
            fresh = Checkpoints(stored.folder, "miou", read_only=True)
            try:
                assert_same(fresh.restore(5, make_state(0)), state)
            except InputError as error:
                messages[file] = str(error)
            fresh.close()
        file.write_bytes(good)
    assert len(messages) >= 2  # the arrays and their index; the others are left over from writing
    assert files[0] in messages
    assert all(f"checkpoint 5 in {stored.folder}" in text and "Remove its folder" in text for text in messages.values())
    assert_same(stored.restore(5, make_state(0)), state)


def test_a_damaged_checkpoint_is_passed_over_for_the_older(stored, caplog):
    for step in (1, 2):
        stored.save(make_state(step))
    file = array_files(stored.folder / "2")[0]
    bad = bytearray(file.read_bytes())
    bad[len(bad) // 2] ^= 1
    file.write_bytes(bad)
    with caplog.at_level(logging.WARNING, logger="jaxseg"):
        assert_same(stored.restore_latest(make_state(0)), make_state(1))
    assert "checkpoint 2" in caplog.text
    assert stored.steps() == [1]
    assert (stored.folder / "2.damaged").is_dir()
    stored.save(make_state(2))  # which Orbax would leave out if the damaged one were still there
    assert_same(stored.restore_latest(make_state(0)), make_state(2))
    shutil.rmtree(stored.folder / "1" / "state")
    shutil.rmtree(stored.folder / "2" / "state")
    with pytest.raises(InputError, match="checkpoint 2"), caplog.at_level(logging.CRITICAL):
        stored.restore_latest(make_state(0))
    assert stored.steps() == [1, 2]  # nothing is put aside where there is nothing to go on from


@pytest.mark.parametrize("part", ["state", "state/_METADATA", "state/manifest.ocdbt", "_CHECKPOINT_METADATA"])
def test_missing_parts_are_an_input_error(stored, part):
    stored.save(make_state(1))
    path = stored.folder / "1" / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    fresh = Checkpoints(stored.folder, "miou", read_only=True)
    for restore in (fresh.restore, fresh.restore_variables):
        with pytest.raises(InputError, match="checkpoint 1"):
            restore(1, make_state(0))
    fresh.close()


def test_half_written_folders_are_removed_but_not_by_readers(stored):
    stored.save(make_state(1))
    half = stored.folder / "2.orbax-checkpoint-tmp"
    shutil.copytree(stored.folder / "1", half)
    reader = Checkpoints(stored.folder, "miou", read_only=True)
    assert reader.steps() == [1]
    reader.close()
    assert half.is_dir()
    writer = Checkpoints(stored.folder, "miou")
    assert writer.steps() == [1]
    assert_same(writer.restore_latest(make_state(0)), make_state(1))
    writer.close()
    assert not half.exists()


@pytest.mark.parametrize(
    ("like", "words"),
    [
        ({"features": 16}, ["params/conv/kernel: is ((3, 3, 8, 24)", "required ((3, 3, 8, 16)"]),
        ({"dtype": jnp.bfloat16}, ["params/conv/bias", "float32", "bfloat16"]),
        ({"ema": False}, ["ema/params/conv/bias: not in this model", "ema/batch_stats"]),
    ],
)
def test_another_model_is_refused_naming_its_leaves(stored, like, words):
    stored.save(make_state(1))
    with pytest.raises(InputError) as error:
        stored.restore(1, make_state(0, **like))
    assert all(word in str(error.value) for word in [*words, "checkpoint 1", "--workdir"])


def test_a_missing_leaf_is_named(stored):
    stored.save(make_state(1))
    like = make_state(0)
    with pytest.raises(InputError, match="params/extra: missing"):
        stored.restore(1, like.replace(params={**like.params, "extra": jnp.zeros(2)}))
    with pytest.raises(InputError, match="params/extra: missing"):
        stored.restore_variables(1, {"params": {**like.params, "extra": jnp.zeros(2)}, "batch_stats": like.batch_stats})


@pytest.mark.parametrize("ema", [True, False])
def test_predictions_use_the_averaged_weights_where_there_are_any(stored, ema):
    state = make_state(4, ema=ema)
    stored.save(state)
    like = {"params": state.params, "batch_stats": state.batch_stats}
    assert_same(stored.restore_variables(4, jax.eval_shape(lambda: like)), state.ema if ema else like)


def test_a_state_is_placed_as_asked(stored):
    """More devices: tests/test_parallel.py."""
    from jaxseg.parallel import data_mesh, replicated

    stored.save(make_state(1))
    sharding = replicated(data_mesh())
    state = stored.restore(1, make_state(0), sharding)
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(state))
    assert_same(state, make_state(1))


def test_the_digest_sees_names_types_shapes_and_bytes():
    trees = [
        {"a": np.zeros(4, np.float32)},
        {"b": np.zeros(4, np.float32)},
        {"a": np.zeros(4, np.int32)},
        {"a": np.zeros((2, 2), np.float32)},
        {"a": np.float32([0, 0, 0, -0.0])},
        {"a": {"a": np.zeros(4, np.float32)}},
        {"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32)},
    ]
    assert len({digest(tree) for tree in trees}) == len(trees)
    assert digest(trees[0]) == digest({"a": jnp.zeros(4)})
