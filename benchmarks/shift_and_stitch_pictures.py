"""Ways from a coarse heat map to pixels, and their cost: `python benchmarks/shift_and_stitch_pictures.py docs/images/shift_and_stitch.png`.

`DirectHeatmap` (stride 8) learns for a minute to name the class at the middle of its field, one pixel in 64 of each crop of generated
cells. With the same weights a picture it has not seen is then segmented by the coarse map alone, by enlarging it, by shift-and-stitch and
by the dilated net, the last two of the mirrored picture and moved to the middle of the field. Over each way stand the mean IoU on 8 unseen
pictures, and milliseconds, FLOPs and memory for one. The rows are the probability of a nucleus, the classes, and a detail of them.
"""

import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from jaxseg.benchmark.measure import alternate, compile_program, stepper
from jaxseg.data import cells
from jaxseg.inference.shift_and_stitch import shift_and_stitch
from jaxseg.losses import cross_entropy
from jaxseg.metrics import confusion_matrix, scores
from jaxseg.models.heatmap import DirectHeatmap, PlainEncoder
from jaxseg.pictures import colourise
from jaxseg.progress import progress
from jaxseg.receptive_field import receptive_field

STRIDE, STEPS, CROP, TRAIN, UNSEEN = 8, 600, 120, 40, 8
DETAIL = np.s_[176:248, 168:240]


def main(path: str) -> None:
    pairs = [cells.generate(np.random.default_rng(i)) for i in range(TRAIN + UNSEEN)]
    images = np.stack([image for image, _ in pairs])[..., None].astype(np.float32) / 255
    labels = np.stack([cells.border_label(instances) for _, instances in pairs])
    net = DirectHeatmap(3, partial(PlainEncoder, norm="batch"), enlarge=None)
    field = receptive_field(lambda x: net.init_with_output(jax.random.key(0), x)[0], (1, 96, 96, 1))[0]
    middle = field.offset + field.size // 2  # of an output's field, from the output's own pixel
    margin = -(-field.size // STRIDE) * STRIDE
    print(f"field {field}, its middle {middle} pixels on")
    variables = _trained(net, images[:TRAIN], labels[:TRAIN], middle)
    image, label = images[TRAIN:], labels[TRAIN:]

    def apply(x, **choices) -> Any:
        return net.clone(**choices).apply(variables, x)

    def dense(way, x):
        """Of the mirrored image, so that no output sees a border, and moved to the middle of the field."""
        y = way(jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode="reflect"))
        return y[:, margin - middle :, margin - middle :][:, : x.shape[1], : x.shape[2]]

    ways = {
        "coarse map": apply,
        "nearest": partial(apply, enlarge="nearest"),
        "bilinear": partial(apply, enlarge="bilinear"),
        "shift-and-stitch": partial(dense, lambda x: shift_and_stitch(apply, x, STRIDE)),
        "à trous": partial(dense, partial(apply, encoder=partial(PlainEncoder, norm="batch", dilated=True))),
    }
    programs = {name: compile_program(way, image[:1]) for name, way in ways.items()}
    timings = alternate({name: stepper(partial(program.call, image[:1])) for name, program in programs.items()}, budget_s=6)

    figure = Figure(figsize=(2.5 * (len(ways) + 1), 8.4), layout="constrained", dpi=110)
    rows = figure.subplots(3, len(ways) + 1)
    for axes in rows.flat:
        axes.set_axis_off()
    rows[0, 0].imshow(image[0, ..., 0], cmap="gray")
    rows[0, 0].set_title("unseen picture\n\n", fontsize=11)
    rows[1, 0].imshow(colourise(label[0], cells.INFO.colours))
    rows[2, 0].imshow(colourise(label[0][DETAIL], cells.INFO.colours))
    stitched, atrous = (np.asarray(programs[name].call(image[:1])) for name in ("shift-and-stitch", "à trous"))
    print(f"shift-and-stitch and à trous differ by at most {abs(stitched - atrous).max():.1e} in logits up to {abs(atrous).max():.0f}")
    for (name, program), (top, centre, bottom) in zip(programs.items(), rows[:, 1:].T, strict=True):
        logits = np.concatenate([program.call(picture[None]) for picture in image])
        step = label.shape[1] // logits.shape[1]
        truth = label[:, middle::step, middle::step] if step > 1 else label
        iou = scores(np.asarray(confusion_matrix(jnp.asarray(truth), jnp.asarray(logits.argmax(-1)), num_classes=3)))["miou"]
        cost = f"{timings[name].step_ms:.1f} ms, {program.flops / 1e9:.2f} GFLOP, {program.peak_bytes / 2**20:.0f} MiB"
        print(f"{name:17} mIoU {iou:.3f}, {cost}")
        top.imshow(np.asarray(jax.nn.softmax(logits[0]))[..., 1], cmap="inferno", vmin=0, vmax=1, interpolation="nearest")
        top.set_title(f"{name}: mIoU {iou:.2f}\n{cost.replace(', ', chr(10), 1)}", fontsize=11)
        classes = colourise(logits[0].argmax(-1), cells.INFO.colours)
        centre.imshow(classes, interpolation="nearest")
        bottom.imshow(classes[tuple(slice(s.start // step, s.stop // step) for s in DETAIL)], interpolation="nearest")
    figure.savefig(path)


def _trained(net: DirectHeatmap, images: np.ndarray, labels: np.ndarray, middle: int):
    """Variables after `STEPS` steps of 8 crops, whose places differ so that every pixel comes to be the middle of a field."""
    variables = jax.jit(net.init)(jax.random.key(0), images[:1, :CROP, :CROP])
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, STEPS))

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(variables, state, image, label):
        def loss(params):
            logits, updated = net.apply({**variables, "params": params}, image, train=True, mutable=["batch_stats"])
            return cross_entropy(logits, label[:, middle::STRIDE, middle::STRIDE]), updated

        (value, updated), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        updates, state = optimizer.update(gradient, state, variables["params"])
        return {"params": optax.apply_updates(variables["params"], updates), **updated}, state, value

    state, r = optimizer.init(variables["params"]), np.random.default_rng(0)
    with progress("training", STEPS) as advance:
        for _ in range(STEPS):
            places = zip(r.integers(len(images), size=8), *r.integers(images.shape[1] - CROP, size=(2, 8)), strict=True)
            crops = [(i, slice(y, y + CROP), slice(x, x + CROP)) for i, y, x in places]
            variables, state, value = step(variables, state, *(np.stack([a[crop] for crop in crops]) for a in (images, labels)))
            advance(1, f"loss {float(value):.3f}")
    return variables


if __name__ == "__main__":
    main(*sys.argv[1:])
