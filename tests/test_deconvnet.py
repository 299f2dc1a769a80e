"""Laws of DeconvNet: the paper's count and sizes, positions reach the logits, equality with torch's transposed convolutions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from op_laws import needs_torch, random_array
from random_variables import random_variables
from test_segnet import OtherPositions, check_parity

from jaxseg.errors import InputError
from jaxseg.models.deconvnet import DeconvNet
from jaxseg.upsample import UPSAMPLERS, MaxUnpool

Tiny = partial(DeconvNet, num_classes=3, features=(2, 3, 4, 5, 6), middle=8)
SMALLEST, PAPER, LARGE = (1, 193, 193, 3), (1, 224, 224, 3), (1, 197, 229, 3)


def test_the_paper_has_251805653_parameters_and_its_sizes():
    def layers(image):
        return DeconvNet(21).init(jax.random.key(0), image, capture_intermediates=True, mutable=["params", "batch_stats", "intermediates"])

    state = jax.eval_shape(layers, jnp.zeros(PAPER))
    assert sum(leaf.size for leaf in jax.tree.leaves(state["params"])) == 251_805_653
    shapes = {name: layer["__call__"][0].shape for name, layer in state["intermediates"].items() if name not in ("__call__", "encoder")}
    expected = {"fc6": (1, 4096), "fc7": (1, 4096), "fc6_deconv": (7, 512), "up5_sample": (14, 512), "deconv5_1": (14, 512)}
    expected |= {"deconv4_3": (28, 512), "deconv4_1": (28, 256), "deconv3_1": (56, 128), "deconv2_1": (112, 64)}
    expected |= {"up1_sample": (224, 64), "deconv1_1": (224, 64), "logits": (224, 21)}
    for name, (side, channels) in expected.items():
        assert shapes[name] == (1, side, side, channels), name
    layers = {f"deconv{stage}_{i + 1}" for stage, convs in enumerate((2, 2, 3, 3, 3), 1) for i in range(convs)} | {
        "fc6",
        "fc7",
        "fc6_deconv",
    }
    assert set(state["params"]) == {"encoder", "logits"} | layers | {f"{name}_norm" for name in layers}  # checkpoints hold these names


@pytest.mark.parametrize("size", [(193, 193), (193, 224), (225, 257), (300, 321)])
def test_sides_from_193_give_their_own(size):
    logits, _ = jax.eval_shape(Tiny().init_with_output, jax.random.key(0), jnp.zeros((2, *size, 3)))
    assert logits.shape == (2, *size, 3)


@pytest.mark.parametrize("upsample", UPSAMPLERS)
def test_any_upsampler(upsample):
    model = Tiny(upsample=UPSAMPLERS[upsample])
    logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros(SMALLEST))
    assert logits.shape == SMALLEST


@pytest.mark.parametrize(
    ("model", "shape", "words"),
    [
        (Tiny(), (193, 193, 3), "got an image of shape (193, 193, 3); required [N, H, W, C]"),
        (Tiny(), (1, 192, 250, 3), "got an image of 192 x 250 pixels; its 7 x 7 layer requires sides from 193"),
        (Tiny(), (1, 192, 250, 3), "nearest legal size is 193 x 250, the paper's 224 x 224"),
        (Tiny(num_classes=0), PAPER, "got num_classes=0, middle=8; required at least 1"),
        (Tiny(middle=0), PAPER, "middle=0"),
    ],
)
def test_bad_input_is_named(model, shape, words):
    with pytest.raises(InputError) as error:
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
    assert words in str(error.value)


def test_every_class_has_a_score_from_the_start():
    """With a classifier that begins near 0 Adam makes all channels detectors of the commonest class, and the others never get a score."""
    image = random_array(2, 193, 193, 3)
    model = Tiny(features=(16, 16, 16, 16, 16))
    variables = jax.jit(model.init)(jax.random.key(0), image)
    logits, _ = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))(variables, image)
    assert np.all(np.std(logits, axis=(0, 1, 2)) > 0.3)


@pytest.mark.parametrize("stage", [1, 3, 5])
def test_the_positions_reach_the_logits(stage):
    def mirrored(features, *, name, **kwargs):
        return (OtherPositions if name == f"up{stage}_sample" else MaxUnpool)(features, name=name, **kwargs)

    image = random_array(*SMALLEST)
    variables = random_variables(Tiny(), image)
    logits = jax.jit(Tiny().apply)(variables, image)
    other = jax.jit(Tiny(upsample=mirrored).apply)(variables, image)
    assert np.max(np.abs(other - logits)) > 1e-3 * np.max(np.abs(logits))


def test_every_parameter_is_reached_and_training_moves_the_statistics_by_one_compilation():
    model, image = Tiny(), random_array(*LARGE)
    variables = random_variables(model, image)

    traces = []

    @jax.jit
    def gradients(variables, image):
        traces.append(image.shape)

        def loss(params):
            return (model.apply({**variables, "params": params}, image) ** 2).mean()

        return jax.grad(loss)(variables["params"]), model.apply(variables, image, train=True, mutable=["batch_stats"])[1]

    grads, state = gradients(variables, image)
    gradients(variables, image + 1)
    assert len(traces) == 1
    for path, leaf in flatten_dict(grads, sep="/").items():
        assert np.all(np.isfinite(leaf)), path
        assert np.any(np.asarray(leaf) != 0), path
    after = flatten_dict(state["batch_stats"], sep="/")
    for path, before in flatten_dict(variables["batch_stats"], sep="/").items():
        assert np.all(np.asarray(after[path]) != before), path


def test_bfloat16_gives_float32_logits():
    image = random_array(*SMALLEST)
    logits = jax.eval_shape(lambda: Tiny(dtype=jnp.bfloat16).init_with_output(jax.random.key(0), image)[0])
    assert logits.dtype == jnp.float32


def _torch_deconvnet(model, t, image):
    stages = t.vgg(image)
    x = t.norm(t.conv(stages[-1][1], "fc6"), "fc6_norm").relu()
    x = t.norm(t.conv(x, "fc7"), "fc7_norm").relu()
    x = t.norm(t.deconv(x, "fc6_deconv"), "fc6_deconv_norm").relu()
    for stage, convs in ((5, 3), (4, 3), (3, 3), (2, 2), (1, 2)):
        size, _, index = stages[stage - 1]
        x = t.unpool(x, index, size)
        for i in range(convs, 0, -1):
            name = f"deconv{stage}_{i}"
            kernel = t.arrays[f"{name}/kernel"].transpose(0, 1).flip(2, 3)  # a convolution's, as that of a transposed convolution
            x = t.functional.conv_transpose2d(x, kernel, t.arrays[f"{name}/bias"], padding=1)
            x = t.norm(x, f"{name}_norm").relu()
    return t.conv(x, "logits")


@needs_torch
@pytest.mark.parametrize("shape", [PAPER, LARGE, (1, 225, 193, 3)])
def test_logits_equal_those_of_torch(shape):
    check_parity(Tiny(), _torch_deconvnet, random_array(*shape))
