"""The U-Net as it is written by hand in Flax: nn.ConvTranspose, nn.max_pool, nn.BatchNorm as they come. Same layers, same sizes as ours."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from jaxseg.upsample import he_normal


class StockUNet(nn.Module):
    """[N, H, W, C] -> [N, H, W, num_classes]; its parts bear the names of `jaxseg.models.UNet(padding="same", norm="batch")`."""

    num_classes: int
    features: tuple[int, ...]
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n h w k"]:
        depth, skips = len(self.features) - 1, []
        for level in range(depth):
            x = self.convs(x, level, f"down{level}", train)
            skips.append(x)
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = self.convs(x, depth, f"down{depth}", train)
        for level in reversed(range(depth)):
            x = nn.ConvTranspose(self.features[level], (2, 2), strides=(2, 2), dtype=self.dtype, name=f"up{level}_sample")(x)
            x = self.convs(jnp.concatenate([skips[level], x], axis=-1), level, f"up{level}", train)
        return nn.Conv(self.num_classes, (1, 1), dtype=self.dtype, name="logits")(x).astype(jnp.float32)

    def convs(self, x: Array, level: int, name: str, train: bool) -> Array:
        for i in (1, 2):
            conv = nn.Conv(self.features[level], (3, 3), use_bias=False, kernel_init=he_normal, dtype=self.dtype, name=f"{name}_conv{i}")
            norm = nn.BatchNorm(use_running_average=not train, dtype=self.dtype, name=f"{name}_norm{i}")
            x = nn.relu(norm(conv(x)))
        return x


def stock_variables(variables: Any) -> Any:
    """Our variables as StockUNet's: nn.ConvTranspose turns its kernel by 180 degrees."""
    flat: Any = flatten_dict(variables)
    return unflatten_dict({k: v[::-1, ::-1] if k[-2].endswith("_sample") and k[-1] == "kernel" else v for k, v in flat.items()})


def stock_train_step(state: tuple, batch: dict[str, Array], *, model: nn.Module, optimizer: optax.GradientTransformation) -> tuple:
    """(params, batch_stats, opt_state), batch -> the next state and the mean cross-entropy."""
    params, batch_stats, opt_state = state

    def loss_fn(params):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updates = model.apply(variables, batch["image"], train=True, mutable=["batch_stats"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
        return loss, updates["batch_stats"]

    (loss, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), batch_stats, opt_state), loss


def stock_programs(variables: Any, *, num_classes: int, features: tuple[int, ...], dtype: Any, optimizer: optax.GradientTransformation):
    """(variables, state, infer, jitted step), to begin from our `variables`."""
    model = StockUNet(num_classes, features, dtype)
    variables = stock_variables(variables)
    state = variables["params"], variables["batch_stats"], optimizer.init(variables["params"])
    step = jax.jit(functools.partial(stock_train_step, model=model, optimizer=optimizer), donate_argnums=0)
    return variables, state, model.apply, step
