"""What each upsampler does, as a picture: `python benchmarks/upsampler_pictures.py docs/images/upsamplers.png`.

Every upsampler of `jaxseg.upsample` is fitted, alone and from its own initial weights, to give generated pictures of cells back from
versions 4 times smaller (their maxima, so that max unpooling has positions to read): 300 steps of Adam on 8 pictures. The rows are the
response to one coarse pixel of 1 (less the response to none; red above, blue below 0), a picture not among the 8, and a detail of it.
"""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from jaxseg import ops
from jaxseg.data import cells
from jaxseg.progress import progress
from jaxseg.upsample import UPSAMPLERS

SCALE = 4
STEPS = 300
"""Enough for a few hundred weights; more would not change the picture."""


def main(path: str) -> None:
    fine = np.stack([cells.generate(np.random.default_rng(i))[0] for i in range(9)])[..., None].astype(np.float32) / 255
    fine = fine[:, 64:192, 64:192]
    coarse, positions = fine, []
    for _ in range(2):
        coarse, index = jax.jit(ops.max_pool_with_indices)(coarse)
        positions.insert(0, index)
    shown = []
    with progress("fitting", len(UPSAMPLERS)) as advance:
        for name in UPSAMPLERS:
            shown.append((name, *_fitted(name, coarse, positions, fine)))
            advance(1, name)

    figure = Figure(figsize=(2 * (len(shown) + 1), 6.4), layout="constrained", dpi=110)
    rows = figure.subplots(3, len(shown) + 1)
    for axes in rows.flat:
        axes.set_axis_off()
    picture = {"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
    detail = np.s_[48:80, 64:96]
    rows[1, 0].imshow(fine[8, ..., 0], **picture)
    rows[2, 0].imshow(fine[8, ..., 0][detail], **picture)
    rows[0, 0].text(0.5, 0.5, "one pixel of 1,\na picture from a\n4x smaller one,\nand a detail", ha="center", va="center", fontsize=11)
    rows[1, 0].set_title("original", fontsize=11)
    for (name, response, enlarged), (top, middle, bottom) in zip(shown, rows[:, 1:].T, strict=True):
        most = abs(response).max()
        top.imshow(response, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
        top.set_title(name, fontsize=11)
        middle.imshow(enlarged, **picture)
        bottom.imshow(enlarged[detail], **picture)
    figure.savefig(path)


def _fitted(name, coarse, positions, fine):
    """The response to a single pixel [28, 28], and the last picture enlarged."""
    module = UPSAMPLERS[name](features=1, scale=SCALE)
    indices = positions if name == "max_unpool" else []
    train, last = (jax.tree.map(lambda a, part=part: a[part], (coarse, indices)) for part in (np.s_[:8], np.s_[8:]))
    params = jax.jit(module.init)(jax.random.key(0), *train).get("params", {})
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-2, STEPS))

    def loss(params):
        return ((module.apply({"params": params}, *train) - fine[:8]) ** 2).mean()

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(STEPS if params else 0):
        params, state = step(params, state)
    apply = jax.jit(lambda x, i: module.apply({"params": params}, x, i)[0, ..., 0])
    one = jnp.zeros((1, 7, 7, 1)).at[0, 3, 3].set(1)
    places = [jnp.full((1, 7 * 2**i, 7 * 2**i, 1), 3, jnp.int8) for i in range(2)] if indices else []
    return np.asarray(apply(one, places) - apply(0 * one, places)), np.asarray(apply(*last))


if __name__ == "__main__":
    main(*sys.argv[1:])
