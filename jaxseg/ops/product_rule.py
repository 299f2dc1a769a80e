"""How the derivative of a bilinear function is written, apart from the function."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

Bilinear = Callable[..., Array]


def product_rule(x: Bilinear, kernel: Bilinear) -> Callable[[Bilinear], Bilinear]:
    """Decorates f(x, kernel, *static), linear in x and linear in kernel: d f = x(dx, kernel, *static) + kernel(x, dkernel, *static).

    The transpose of a linear function is lowered as the function was written. The three are equal in value, and each is written for
    what is made of it: f for itself, the others for their transposes, which are the gradients. They are ordinary JAX functions, so
    forward mode, reverse mode, vmap, higher derivatives and shard_map work as for f.
    """

    def decorate(f: Bilinear) -> Bilinear:
        static = tuple(range(2, f.__code__.co_argcount))
        g = jax.custom_jvp(f, nondiff_argnums=static)

        def rule(*arguments: Any) -> tuple[Array, Array]:
            *how, primals, (dx, dkernel) = arguments
            parts = []
            if not isinstance(dx, SymbolicZero):
                parts.append(x(dx, primals[1], *how))
            if not isinstance(dkernel, SymbolicZero):
                if parts and jax.default_backend() == "cpu":
                    # The transpose: dkernel's gradient first, dx's when it is there. Side by side they take each other's caches.
                    parts[0], dkernel = jax.lax.optimization_barrier((parts[0], dkernel))
                parts.append(kernel(primals[0], dkernel, *how))
            return g(*primals, *how), parts[0] if len(parts) == 1 else jnp.add(*parts)

        g.defjvp(rule, symbolic_zeros=True)
        return g

    return decorate
