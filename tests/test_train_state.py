"""The training step as a pure function: what it depends on, what it must not depend on."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg import losses
from jaxseg.data import augment
from jaxseg.errors import InputError
from jaxseg.models import UNet
from jaxseg.train_state import TrainState, eval_step, init_state, train_step

SHAPE = (4, 16, 16, 1)
STATISTICS = {"mean": np.full(1, 0.3, np.float32), "std": np.full(1, 0.25, np.float32)}
model = UNet(2, features=(4, 8), padding="same", norm="batch", dropout=0.2)
optimizer = optax.sgd(0.3, momentum=0.9)
EMA_DECAY = 0.25
QUICKLY = {"xla_backend_optimization_level": 0}  # for what compiles for many seconds, to run once


def batch_of(seed: int, shape: tuple[int, ...] = SHAPE) -> dict[str, np.ndarray]:
    """Noisy images of one bright rectangle each."""
    rng = np.random.default_rng(seed)
    label = np.zeros(shape[:3], np.int32)
    for one in label:
        y, x = rng.integers(0, 8, 2)
        one[y : y + 7, x : x + 6] = 1
    image = 0.2 + 0.6 * label[..., None] + rng.normal(0, 0.05, shape)
    return {"image": image.astype(np.float32), "label": label, "weight": rng.uniform(0.5, 2, shape[:3]).astype(np.float32)}


def make_step(model=model, optimizer=optimizer, **options):
    return jax.jit(functools.partial(train_step, model=model, optimizer=optimizer, loss=losses.cross_entropy, **STATISTICS, **options))


def make_state(model=model, optimizer=optimizer, seed=0, ema=False, shape=SHAPE) -> TrainState:
    return jax.jit(functools.partial(init_state, model, optimizer, shape, seed=seed, ema=ema), compiler_options=QUICKLY)()


@pytest.fixture(scope="module")
def step():
    """Traced once in this whole module, whatever the tests do with it."""
    chex.clear_trace_counter()
    options = {"augment": (augment.flip, augment.contrast), "ema_decay": EMA_DECAY}
    one = functools.partial(train_step, model=model, optimizer=optimizer, loss=losses.cross_entropy, **STATISTICS, **options)
    return jax.jit(chex.assert_max_traces(lambda state, batch: one(state, batch), 1))


@pytest.fixture(scope="module")
def start():
    return make_state(ema=True)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_several_steps_compile_once_and_count(step, start):
    state = start
    for i in range(3):
        assert int(state.step) == i
        state, metrics = step(state, batch_of(i))
        assert {k: v.shape for k, v in metrics.items()} == {"loss": (), "grad_norm": ()}
    assert step._cache_size() == 1


def test_the_state_holds_arrays_only(start):
    assert all(field.metadata.get("pytree_node", True) for field in dataclasses.fields(TrainState))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(start))
    assert start.rng.dtype == jnp.uint32
    leaves, structure = jax.tree.flatten(start)
    assert same(jax.tree.unflatten(structure, leaves), start)


def test_a_seed_and_a_step_decide_everything(step, start):
    first, again = step(start, batch_of(0)), step(start, batch_of(0))
    assert same(first, again)
    assert same(start, make_state(seed=0, ema=True))
    other = make_state(seed=1, ema=True)
    assert not same(start.params, other.params)
    redrawn = step(start.replace(rng=other.rng), batch_of(0))  # augmentation and dropout alone are drawn from it
    assert not same(first[0].params, redrawn[0].params)
    later = step(start.replace(step=start.step + 7), batch_of(0))
    assert not same(first[0].params, later[0].params)
    assert same(first[0].rng, start.rng)


def test_moving_average(step, start):
    old, state = start, start
    for i in range(3):
        state, _ = step(old, batch_of(i))
        decay = min(EMA_DECAY, (1 + i) / (10 + i))
        want = jax.tree.map(
            lambda a, b, d=decay: d * np.asarray(a) + (1 - d) * np.asarray(b),
            old.ema,
            {"params": state.params, "batch_stats": state.batch_stats},
        )
        chex.assert_trees_all_close(state.ema, want, atol=1e-6)
        old = state
    assert state.variables is state.ema
    plain = state.replace(ema=None)
    assert plain.variables["params"] is state.params
    assert plain.variables["batch_stats"] is state.batch_stats


def test_weights_of_ignored_pixels_do_not_matter(step, start):
    batch = batch_of(0)
    batch["label"][:, 3:9] = 255
    other = {**batch, "weight": np.where(batch["label"] == 255, 40.0, batch["weight"]).astype(np.float32)}
    assert same(step(start, batch), step(start, other))
    assert not same(step(start, batch), step(start, batch_of(0)))


def test_nothing_to_learn_from_leaves_the_parameters(step, start):
    batch = batch_of(0)
    batch["label"][:] = 255
    state, metrics = step(start, batch)
    assert metrics["loss"] == 0
    assert metrics["grad_norm"] == 0
    assert same(state.params, start.params)
    chex.assert_tree_all_finite(state)


def test_an_ignored_image_does_not_matter():
    """Without batch statistics an image that is ignored whole is as if it were not there."""
    plain, sgd = UNet(2, features=(2, 4), padding="same", dropout=0.0), optax.sgd(1.0)
    step, state = make_step(plain, sgd), make_state(plain, sgd)
    both = batch_of(0, (2, 8, 8, 1))
    both["label"][1] = 255
    with_it, _ = step(state, both)
    without, _ = step(state, {k: v[:1] for k, v in both.items()})
    assert not same(state.params, without.params)
    chex.assert_trees_all_close(with_it.params, without.params, atol=1e-6)


def test_the_margin_of_unpadded_convolutions_does_not_matter():
    """The loss is taken over the centre that the network has an output for, label and weight cropped alike."""
    valid = UNet(2, features=(2, 4), padding="valid", dropout=0.0)
    step, state = make_step(valid), make_state(valid, seed=3, shape=(1, 20, 20, 1))
    margin = (20 - jax.eval_shape(valid.apply, state.variables, jnp.zeros((1, 20, 20, 1))).shape[1]) // 2
    assert margin > 0
    batch = batch_of(0, (1, 20, 20, 1))
    inside = np.pad(np.ones((1, 20 - 2 * margin, 20 - 2 * margin), bool), ((0, 0), (margin, margin), (margin, margin)))
    framed = {"label": np.where(inside, batch["label"], 255), "weight": np.where(inside, batch["weight"], 9).astype(np.float32)}
    assert same(step(state, batch), step(state, {**batch, **framed}))
    other = {**batch, "label": 1 - batch["label"]}
    assert step(state, other)[1]["loss"] != step(state, batch)[1]["loss"]


def test_accumulated_gradients_are_those_of_the_whole_batch():
    """Every so many images are a part; batch norm sees but its part, so here is none."""
    plain, sgd = UNet(2, features=(2, 4), padding="same", dropout=0.0), optax.sgd(1.0)
    state, batch = make_state(plain, sgd), {k: v for k, v in batch_of(0).items() if k != "weight"}
    steps = (jax.jit(make_step(plain, sgd, augment=(augment.flip,), accumulate=n), compiler_options=QUICKLY) for n in (1, 4))
    whole, parted = (step(state, batch) for step in steps)
    chex.assert_trees_all_close(parted, whole, rtol=1e-5, atol=1e-6)
    assert not same(whole[0].params, state.params)


def test_batch_norm_takes_the_statistics_of_each_part_in_turn():
    """Two parts of the running mean's update are two updates, by every second image."""
    net = model.clone(dropout=0.0)
    state, batch = make_state(net), batch_of(0)
    got, _ = jax.jit(make_step(net, accumulate=2), compiler_options=QUICKLY)(state, batch)
    frozen = jax.jit(make_step(net, optax.set_to_zero()), compiler_options=QUICKLY)
    expected = state.replace(opt_state=optax.set_to_zero().init(state.params))
    for first in (0, 1):
        expected, _ = frozen(expected, {name: x[first::2] for name, x in batch.items()})
    chex.assert_trees_all_close(got.batch_stats, expected.batch_stats, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("parts", [0, 3])
def test_a_batch_that_does_not_divide_is_refused(parts, start):
    with pytest.raises(InputError, match=f"accumulate: got {parts} parts for 4 images"):
        jax.eval_shape(make_step(accumulate=parts), start, batch_of(0))


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_a_toy_problem_is_learnt(dtype):
    """Also where the model computes in bfloat16, with parameters and statistics in float32."""
    net = model.clone(dtype=dtype, dropout=0.0)
    step, state = make_step(net), make_state(net)
    values = []
    for i in range(30):
        state, metrics = step(state, batch_of(i))
        values.append(float(metrics["loss"]))
    assert np.mean(values[-5:]) < 0.3 * values[0]
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.batch_stats, state.opt_state))} == {jnp.dtype("float32")}
    assert metrics["loss"].dtype == jnp.float32


def test_evaluation_counts_pixels_and_leaves_the_ignored_out():
    label = np.array([[[0, 1, 1], [255, 0, 1]]], np.int32)
    image = np.array([[[[0.0], [1.0], [0.0]], [[1.0], [1.0], [1.0]]]], np.float32)
    matrix, logits = jax.jit(functools.partial(eval_step, predict=lambda v, x: jnp.concatenate([1 - x, x], -1) * v))(
        2.0, {"image": image, "label": label}
    )
    assert matrix.tolist() == [[[1, 1], [1, 2]]]
    assert logits.shape == (1, 2, 3, 2)
