"""Random parameters and statistics for a module, drawn with numpy: compiling the initialisers takes seconds, and they leave biases at 0."""

import math

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict


def random_variables(module, *args, seed=0):
    """What `module.init` would return, filled so that activations keep their size and no bias, scale or statistic is neutral."""
    r = np.random.default_rng(seed)

    def fill(path, leaf):
        if path[-1] in ("scale", "var"):
            return r.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
        spread = math.sqrt(2 / math.prod(leaf.shape[:-1])) if path[-1] == "kernel" else 0.1
        return (spread * r.normal(size=leaf.shape)).astype(leaf.dtype)

    flat = flatten_dict(jax.eval_shape(module.init, jax.random.key(0), *args))
    return unflatten_dict({path: fill(path, leaf) for path, leaf in flat.items()})
