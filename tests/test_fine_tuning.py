"""Starting from other weights, frozen parts, rates of parts, and the losses of several heads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from op_laws import random_array
from random_variables import random_variables

from jaxseg import losses
from jaxseg.config import adamw, rate_per_part
from jaxseg.errors import InputError
from jaxseg.models import EncoderUNet, FCNResNet, NNUNet, UNet, UNetPlusPlus
from jaxseg.train_state import begin_with, init_state, train_step

SHAPE = (2, 33, 40, 3)
STATISTICS = {"mean": np.zeros(3, np.float32), "std": np.ones(3, np.float32)}
ENCODER = functools.partial(EncoderUNet, 2, "resnet18", (8, 8, 4, 4, 4), width=4)


def batch():
    r = np.random.default_rng(0)
    return {
        "image": r.random(SHAPE, np.float32),
        "label": r.integers(0, 2, SHAPE[:3]).astype(np.int32),
        "weight": r.uniform(0.5, 2, SHAPE[:3]).astype(np.float32),
    }


def step_of(model, optimizer, **options):
    state = jax.eval_shape(functools.partial(init_state, model, optimizer, SHAPE, **options))
    variables = random_variables(model, jnp.zeros(SHAPE))
    fresh = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)
    fresh = fresh.replace(params=variables["params"], batch_stats=variables.get("batch_stats", {}))
    quickly = {"xla_backend_optimization_level": 0}  # runs once or twice
    step = functools.partial(train_step, model=model, optimizer=optimizer, loss=losses.cross_entropy, **STATISTICS)
    return fresh, jax.jit(step, compiler_options=quickly)


def changed(before, after):
    return {name for name, leaf in flatten_dict(after, sep="/").items() if not np.array_equal(leaf, flatten_dict(before, sep="/")[name])}


@pytest.mark.parametrize("frozen", [None, "norm", "encoder"])
def test_frozen_parts_stay_and_all_others_learn(frozen):
    """Weight decay too must leave a part of rate 0 alone."""
    optimizer = rate_per_part(adamw(0.1, 10, weight_decay=0.1), {"encoder": 0.0} if frozen == "encoder" else {})
    start, step = step_of(ENCODER(frozen=frozen), optimizer)
    state = step(step(start, batch())[0], batch())[0]  # the first step's rate is 0
    params, stats = changed(start.params, state.params), changed(start.batch_stats, state.batch_stats)
    decoder = {name for name in flatten_dict(start.params, sep="/") if not name.startswith("encoder")}
    encoder = flatten_dict(start.params, sep="/").keys() - decoder
    assert params == (decoder if frozen == "encoder" else decoder | encoder)
    assert any(name.startswith("encoder") for name in stats) == (frozen is None)
    assert any(name.startswith("up0") for name in stats)


def test_a_frozen_encoder_normalises_by_its_running_statistics():
    image = random_array(*SHAPE)
    for model in (ENCODER(), FCNResNet(2, "resnet18", width=4, dropout=0.0, auxiliary=False)):
        variables = random_variables(model, image)
        train = {
            f: model.clone(frozen=f).apply(variables, image, train=True, mutable=["batch_stats"])[0] for f in (None, "norm", "encoder")
        }
        np.testing.assert_array_equal(train["norm"], train["encoder"])
        assert np.abs(train["norm"] - train[None]).max() > 1e-2


def test_no_gradient_is_computed_in_a_frozen_encoder():
    """Fewer operations in the program, not only zeros in its result. In bfloat16: float32 counts zeros beside narrow kernels, too."""
    image = random_array(*SHAPE)

    def flops(model):
        variables = random_variables(model, image)
        loss = lambda params: model.apply({**variables, "params": params}, image, train=True, mutable=["batch_stats"])[0].sum()  # noqa: E731
        return jax.jit(jax.grad(loss)).lower(variables["params"]).compile().cost_analysis()["flops"]

    assert flops(ENCODER(frozen="encoder", dtype=jnp.bfloat16)) < 0.8 * flops(ENCODER(frozen="norm", dtype=jnp.bfloat16))


def test_the_rate_of_a_part_multiplies_its_step_exactly():
    params = {"encoder": {"kernel": jnp.full(3, 2.0)}, "head": {"kernel": jnp.full(3, 2.0)}}
    grads = {"encoder": {"kernel": jnp.full(3, 3.0)}, "head": {"kernel": jnp.full(3, 4.0)}}
    plain, scaled = (rate_per_part(optax.sgd(0.5, momentum=0.9), rates) for rates in ({}, {"encoder": 0.1}))
    expected, _ = plain.update(grads, plain.init(params), params)
    got, _ = scaled.update(grads, scaled.init(params), params)
    np.testing.assert_array_equal(got["head"]["kernel"], expected["head"]["kernel"])
    np.testing.assert_allclose(got["encoder"]["kernel"], 0.1 * expected["encoder"]["kernel"], rtol=1e-6)


def test_an_unknown_part_is_refused_with_those_there_are():
    optimizer = rate_per_part(optax.sgd(0.5), {"encodr": 0.1})
    params = {"encoder": {"kernel": jnp.zeros(3)}}
    with pytest.raises(InputError, match="encodr; the model's parts are encoder"):
        optimizer.update(params, optimizer.init(params), params)


def test_a_state_begins_with_other_weights_and_its_average_too():
    model, optimizer = UNet(2, (2, 4), padding="same", norm="batch"), optax.adam(1e-3)
    state = jax.jit(functools.partial(init_state, model, optimizer, (1, 8, 8, 3), ema=True))()
    other = random_variables(model, jnp.zeros((1, 8, 8, 3)))
    begun = begin_with(state, other)
    for name, leaf in flatten_dict(other, sep="/").items():
        for tree in ({"params": begun.params, "batch_stats": begun.batch_stats}, begun.ema):
            np.testing.assert_array_equal(flatten_dict(tree, sep="/")[name], leaf)
    assert jax.tree.structure(begun) == jax.tree.structure(state)


def test_weights_of_another_model_are_refused_by_name():
    state = jax.jit(functools.partial(init_state, UNet(2, (2, 4)), optax.sgd(0.1), (1, 32, 32, 3)))()
    other = jax.eval_shape(UNet(3, (2, 4)).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    with pytest.raises(InputError, match="params/logits/bias, params/logits/kernel"):
        begin_with(state, jax.tree.map(lambda leaf: np.zeros(leaf.shape), other))


# ---- Several heads -----------------------------------------------------------------------------------------------------------


def heads_by_hand(model, variables, data):
    """The weighted sum of the losses, a smaller head against the pixels at the centres of its cells."""
    logits, _ = model.apply(variables, data["image"], train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)})
    total = 0.0
    for head, share in zip(logits, model.head_weights, strict=True):
        (h, w), (height, width) = head.shape[1:3], SHAPE[1:3]
        rows, columns = ([int((i + 0.5) * old / n) for i in range(n)] for old, n in ((height, h), (width, w)))
        label, weight = (data[name][:, rows][:, :, columns] for name in ("label", "weight"))
        total += share * losses.cross_entropy(head, label, weight=weight)
    return total, logits


HEADED = {
    "unet_plus_plus": (UNetPlusPlus(2, (2, 3, 4), deep_supervision=True), (0.5, 0.5)),
    "unet_plus_plus, pruned": (UNetPlusPlus(2, (2, 3, 4), deep_supervision=True, level=1), (1,)),
    "nnunet": (NNUNet(2, (2, 3, 4, 5), deep_supervision=True), (2 / 3, 1 / 3, 0)),
    "nnunet, two stages": (NNUNet(2, (2, 3), deep_supervision=True), (1,)),
    "fcn_resnet": (FCNResNet(2, "resnet18", width=4, dropout=0.0), (1, 0.5)),
}


@pytest.mark.parametrize("name", HEADED)
def test_every_head_has_its_share_of_the_loss(name):
    model, shares = HEADED[name]
    np.testing.assert_allclose(model.head_weights, shares, rtol=1e-6)
    start, step = step_of(model, optax.sgd(0.0))
    expected, logits = heads_by_hand(model, {"params": start.params, "batch_stats": start.batch_stats}, batch())
    assert len(logits) == len(shares)
    _, metrics = step(start, batch())
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
