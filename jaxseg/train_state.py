"""The training state, arrays only, and the two pure functions that use it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, Int, UInt32

from jaxseg.data.augment import augment_batch
from jaxseg.errors import InputError
from jaxseg.inference.whole import standardise
from jaxseg.metrics import confusion_matrix
from jaxseg.upsample import center_crop

Batch = dict[str, Array]
Loss = Callable[..., Float[Array, ""]]


@flax.struct.dataclass
class TrainState:
    """All that a training step reads and writes.

    `ema` is the exponential moving average of `params` and `batch_stats` together as `{"params": ..., "batch_stats": ...}`, or None.
    `rng` is the raw data of a threefry key; a step folds its number in, so no state of a generator has to be kept.
    """

    step: Int[Array, ""]
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    rng: UInt32[Array, "2"]

    @property
    def variables(self) -> dict[str, Any]:
        """What to evaluate and predict with: the averaged weights where there are any."""
        return self.ema if self.ema is not None else _variables(self.params, self.batch_stats)


def init_state(
    model: nn.Module, optimizer: optax.GradientTransformation, image_shape: tuple[int, ...], *, seed: int = 0, ema: bool = False
) -> TrainState:
    """A fresh state for images [N,H,W,C] = `image_shape`; the same seed gives the same state."""
    rng = jax.random.key(seed)
    variables = model.init(jax.random.fold_in(rng, 0), jnp.zeros((1, *image_shape[1:]), jnp.float32))
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, _variables(params, batch_stats)) if ema else None,
        rng=jax.random.key_data(rng),
    )


def begin_with(state: TrainState, variables: Any) -> TrainState:
    """The fresh state with other weights: {"params", "batch_stats"?} of the same names and shapes.

    Raises:
      InputError: they are of another model; every name that differs is in the message.
    """
    shapes = [jax.tree.map(np.shape, tree) for tree in (_variables(state.params, state.batch_stats), variables)]
    have, got = (flatten_dict(tree, sep="/") for tree in shapes)
    wrong = [name for name in sorted({*have, *got}) if have.get(name) != got.get(name)]
    if wrong:
        raise InputError(f"weights: they do not fit the model in {', '.join(wrong)}. Give those of the same model and options.")
    variables = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), variables, _variables(state.params, state.batch_stats))
    ema = None if state.ema is None else jax.tree.map(jnp.copy, variables)
    return dataclasses.replace(state, params=variables["params"], batch_stats=variables.get("batch_stats", {}), ema=ema)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    mean: Float[Array, " c"],
    std: Float[Array, " c"],
    augment: tuple[Callable, ...] = (),
    ema_decay: float = 0.0,
    accumulate: int = 1,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One optimizer step on {"image": [N,H,W,C] in 0..1, "label": [N,H,W], "weight"?: [N,H,W]}; of volumes [N,D,H,W,C], not augmented.

    Where the model gives a tuple of logits in training (deep supervision, an auxiliary head), their losses are added with the weights
    `model.head_weights`; a head smaller than the first is compared with every so many pixels of the label.

    With `accumulate` the batch is taken in so many parts, one after the other, and the mean of their gradients is the step's: that of the
    whole batch where the loss is a mean over as many pixels in each part. Ignored pixels, weights and losses of the whole set (Dice) shift
    it. Batch norm normalises each part by its own statistics and updates the running ones once a part; dropout draws other units.

    Under pmap the batch is this device's share and `axis_name` its axis: augmentation and dropout draw what they would for the
    whole batch, the loss is that of the whole batch, and its gradient is averaged.

    Returns:
      the next state and {"loss", "grad_norm"}.

    Raises:
      InputError: the batch (under pmap, its share) does not divide into `accumulate` parts.
    """
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step + 1)
    augment_key, dropout_key = jax.random.split(key)
    n = batch["image"].shape[0]
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * n
    keys = jax.vmap(lambda i: jax.random.fold_in(augment_key, i))(first + jnp.arange(n))
    if accumulate < 1 or n % accumulate:
        raise InputError(f"accumulate: got {accumulate} parts for {n} images on a device; required a divisor of them, from 1.")
    batch = augment_batch(augment, keys, batch) if augment else batch
    batch = {**batch, "image": standardise(batch["image"], mean, std)}

    def loss_fn(params, batch_stats, part, dropout_key):
        logits, updates = model.apply(
            _variables(params, batch_stats), part["image"], train=True, mutable=["batch_stats"], rngs={"dropout": dropout_key}
        )
        heads, shares = (logits, model.head_weights) if isinstance(logits, tuple) else ((logits,), (1.0,))
        size = heads[0].shape[1:-1]  # unpadded convolutions lose a margin
        truth = {name: center_crop(part[name][..., None], *size)[..., 0] for name in ("label", "weight") if name in part}
        value = 0.0
        for head, share in zip(heads, shares, strict=True):
            small = {name: _nearest(pixels, head.shape[1:-1]) for name, pixels in truth.items()}
            value += share * loss(head, small["label"], weight=small.get("weight"), axis_name=axis_name)
        return value, updates.get("batch_stats", {})

    params, batch_stats, value = state.params, state.batch_stats, 0.0
    grads: Any = None
    for i in range(accumulate):  # not a scan: convolutions in a loop are slow on CPUs
        if accumulate > 1:  # every so many images, so that each device takes its own where the batch is sharded
            part = {name: x.reshape(n // accumulate, accumulate, *x.shape[1:])[:, i] for name, x in batch.items()}
            part_key = jax.random.fold_in(dropout_key, i)
        else:
            part, part_key = batch, dropout_key
        (part_value, batch_stats), part_grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch_stats, part, part_key)
        value += part_value / accumulate
        part_grads = jax.tree.map(lambda g: g / accumulate, part_grads)
        grads = part_grads if grads is None else jax.tree.map(jnp.add, grads, part_grads)
        if i + 1 < accumulate:  # no part begins before the last one's maps are gone
            params, grads = jax.lax.optimization_barrier((params, grads))
    if axis_name is not None:
        grads = jax.lax.pmean(grads, axis_name)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))  # a short memory at first
        ema = jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), ema, _variables(params, batch_stats))
    metrics = {"loss": value, "grad_norm": optax.tree.norm(grads)}
    return TrainState(state.step + 1, params, batch_stats, opt_state, ema, state.rng), metrics


def eval_step(
    variables: Any, batch: Batch, *, predict: Callable[[Any, Array], Float[Array, "n h w k"]], ignore_index: int = 255
) -> tuple[Int[Array, "n k k"], Float[Array, "n h w k"]]:
    """The confusion matrix of each of N whole images, and their logits. Pixels labelled `ignore_index` count nowhere.

    Args:
      predict: `(variables, image [N,H,W,C] in 0..1) -> logits [N,H,W,K]` of the label's size.
    """
    logits = predict(variables, batch["image"])
    one = functools.partial(confusion_matrix, num_classes=logits.shape[-1], ignore_index=ignore_index)
    return jax.vmap(one)(batch["label"][:, None], jnp.argmax(logits, -1)[:, None]), logits


def _nearest(pixels: Array, size: tuple[int, ...]) -> Array:
    """[N,H,W] -> [N,*size]: the pixels nearest to the centres."""
    for axis, (old, n) in enumerate(zip(pixels.shape[1:], size, strict=True), 1):
        if n != old:
            pixels = pixels.take(jnp.asarray((2 * np.arange(n) + 1) * old // (2 * n)), axis)
    return pixels


def _variables(params: Any, batch_stats: Any) -> dict[str, Any]:
    return {"params": params, "batch_stats": batch_stats} if batch_stats else {"params": params}
