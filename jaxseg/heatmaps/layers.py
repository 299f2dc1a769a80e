"""The maps of a network's layers, by name, of any function that applies Linen modules."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.errors import InputError

OUTPUT = "output"
"""The name of what the whole function gives."""


def layers(apply: Callable[..., Any]) -> Callable[..., OrderedDict[str, Float[Array, "n h w k"]]]:
    """A function of the same arguments that gives all maps {name: [N,H,W,K]} in the order of computation, the last of them the output.

    A name is the path of the module, "encoder/conv1_1", followed by the place where the module gives several maps: "encoder/0/pooled". What
    the function gives is "output". What a convolution or a norm gives is seen before the ReLU that follows it, for that is no module in our
    models. Under `jax.jit` what is not used is not computed; `jax.eval_shape` gives names and shapes alone.

    Args:
      apply: such as `model.apply`, or `run.predict` of a `Run`, whose preprocessing is then part of it.

    >>> model, image = nn.Sequential([nn.Dense(3), nn.relu, nn.Dense(2)]), jnp.ones((1, 4, 5, 2))
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), image)
    >>> {name: x.shape for name, x in jax.eval_shape(layers(model.apply), variables, image).items()}
    {'layers_0': (1, 4, 5, 3), 'layers_2': (1, 4, 5, 2), 'output': (1, 4, 5, 2)}
    """

    def run(*args: Any) -> OrderedDict[str, Array]:
        found = OrderedDict()

        def keep(name: str, x: Array) -> Array:
            found[name] = x
            return x

        visit(apply, keep)(*args)
        return found

    return run


def layer_map(apply: Callable[..., Any], name: str) -> Callable[..., Float[Array, "n h w k"]]:
    """A function of the same arguments that gives one layer's map.

    Raises:
      InputError: there is no such layer; the message lists those there are. Raised when the function is traced.
    """

    def run(*args: Any) -> Array:
        found = layers(apply)(*args)
        check_layer(name, found)
        return found[name]

    return run


def check_layer(name: str, known: Mapping[str, Any]) -> None:
    """Raises InputError, listing the layers there are and their sizes, where `name` is none of them."""
    if name not in known:
        there = ", ".join(f"{each} ({' x '.join(map(str, x.shape[1:]))})" for each, x in known.items())
        raise InputError(f"heatmaps: got the layer {name!r}; there are {there}. Choose one of them.")


def visit(apply: Callable[..., Any], see: Callable[[str, Array], Array]) -> Callable[..., Any]:
    """`apply` with every map handed to `see(name, map)`; the network goes on with what it returns."""

    def run(*args: Any) -> Any:
        calls = Counter()

        def intercept(call: Callable[..., Any], inputs: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
            value = call(*inputs, **options)
            if context.method_name != "__call__" or not context.module.path:  # the outermost module is the output, or short of it
                return value
            path = "/".join(context.module.path)
            calls[path] += 1
            if calls[path] > 1:
                path += f"#{calls[path]}"  # a module that is used again
            return seen(path, value)

        def seen(path: str, value: Any) -> Any:
            def each(keys: Any, x: Any) -> Any:
                if not (isinstance(x, jax.Array) and x.ndim == 4 and jnp.issubdtype(x.dtype, jnp.floating)):
                    return x
                return see("/".join([path, *(jax.tree_util.keystr((key,), simple=True) for key in keys)]), x)

            return jax.tree_util.tree_map_with_path(each, value)

        with nn.intercept_methods(intercept):
            value = apply(*args)
        return seen(OUTPUT, value)

    return run
