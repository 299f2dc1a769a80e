"""What the models share below the level of their figures: normalisation and dropout that do not see how a batch is split, recomputation."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float


def normalise(model: Any, x: Float[Array, "n h w c"], name: str, train: bool) -> Float[Array, "n h w c"]:
    """`model.norm` of x: None, "batch" (momentum and epsilon as torch's) or "group" (groups of 8 channels where they divide)."""
    if model.norm == "batch":
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            use_fast_variance=False,  # E[x^2] - E[x]^2 is negative on raw 16-bit images
            dtype=model.dtype,
            axis_name=model.axis_name,
            name=name,
        )(x)
    if model.norm == "group":
        return nn.GroupNorm(num_groups=math.gcd(x.shape[-1], max(x.shape[-1] // 8, 1)), epsilon=1e-5, dtype=model.dtype, name=name)(x)
    return x


class Dropout(nn.Module):
    """Dropout with one key an example, so that one device, a sharded batch and a pmapped one drop the same units.

    Reads the rng collection "dropout" when `train` and rate > 0.
    """

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], *, train: bool = False) -> Float[Array, "n h w c"]:
        if not train or self.rate == 0:
            return x
        n = x.shape[0]
        first = 0 if self.axis_name is None or self.is_initializing() else jax.lax.axis_index(self.axis_name) * n
        key = self.make_rng("dropout")

        def keep(i):
            return jax.random.bernoulli(jax.random.fold_in(key, i), 1 - self.rate, x.shape[1:])

        kept = jax.vmap(keep)(first + jax.numpy.arange(n))
        return jax.numpy.where(kept, x / (1 - self.rate), 0).astype(x.dtype)


def recomputed(block: Callable[..., Array]) -> Callable[..., Array]:
    """A model's method `block(self, x, ...)`: where `self.remat`, what lies inside is not kept for the gradient but computed again.

    Source: Chen, Xu, Zhang & Guestrin 2016, Training Deep Nets with Sublinear Memory Cost, arXiv 1604.06174.
    """

    @functools.wraps(block)
    def run(self: Any, x: Array, *rest: Any, **options: Any) -> Array:
        if not self.remat:
            return block(self, x, *rest, **options)
        return nn.remat(lambda self, x: block(self, x, *rest, **options))(self, x)  # the rest is not traced

    return run
