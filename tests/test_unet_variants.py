"""Laws of UNet++, Attention U-Net, residual U-Net and nnU-Net: counts, skips, sizes, pruning, gates, volumes, equality with torch."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from model_laws import check_one_compilation
from op_laws import needs_torch
from random_variables import random_variables

from jaxseg.errors import InputError
from jaxseg.models.attention_unet import AttentionGate, AttentionUNet
from jaxseg.models.nnunet import NNUNet, ResidualEncoderUNet
from jaxseg.models.residual_unet import ResidualUNet
from jaxseg.models.unet_plus_plus import UNetPlusPlus
from jaxseg.upsample import UPSAMPLERS

F = (3, 4, 5)
TINY = {
    "unet_plus_plus": partial(UNetPlusPlus, 3, F, deep_supervision=True),
    "attention": partial(AttentionUNet, 3, F),
    "residual": partial(ResidualUNet, 3, F),
    "nnunet": partial(NNUNet, 3, F, deep_supervision=True),
    "nnunet_residual": partial(ResidualEncoderUNet, 3, F, residual_blocks=(1, 2, 1), deep_supervision=True),
}
EACH = pytest.mark.parametrize("name", TINY)
VOLUMES = pytest.mark.parametrize("blocks", [None, (1, 2, 1)])


def _image(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _count(model, *shape):
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))["params"]
    return {"/".join(path): leaf.size for path, leaf in flatten_dict(params).items()}


# The papers' numbers.


@pytest.mark.parametrize(("heads", "expected"), [(False, 9_041_601), (True, 9_041_700)])
def test_unet_plus_plus_has_the_papers_9_04_million_parameters(heads, expected):
    assert sum(_count(UNetPlusPlus(1, deep_supervision=heads), 1, 32, 32, 1).values()) == expected


def test_residual_unet_has_the_papers_15_convolutions_and_7_8_million_parameters():
    counts = _count(ResidualUNet(1), 1, 32, 32, 3)
    listed = {name: size for name, size in counts.items() if name.endswith("kernel") and "shortcut" not in name}
    assert len(listed) == 15
    assert sum(listed.values()) == 7_780_032 + 64
    assert sum(counts.values()) == 8_216_769


def test_attention_unet_has_2160109_parameters():
    assert sum(_count(AttentionUNet(2), 1, 32, 32, 3).values()) == 2_160_109


@pytest.mark.parametrize(
    ("model", "expected"),
    # dynamic-network-architectures 0.4.4: the same network, built and counted.
    [(NNUNet(2, deep_supervision=True), 46_324_558), (ResidualEncoderUNet(2, deep_supervision=True), 140_017_038)],
)
def test_nnunet_has_as_many_parameters_as_its_package(model, expected):
    assert sum(_count(model, 1, 512, 512, 1).values()) == expected


# What every one of them does.


@EACH
def test_any_size_gives_float32_logits_of_the_image_size_and_compiles_once(name):
    model = TINY[name]()
    variables = random_variables(model, jnp.zeros((1, 8, 8, 2)))
    for size, dtype in (((1, 1), None), ((5, 8), None), ((11, 17), jnp.bfloat16)):
        logits, made = jax.eval_shape(model.clone(dtype=dtype).init_with_output, jax.random.key(0), jnp.zeros((2, *size, 2)))
        assert (logits.shape, logits.dtype) == ((2, *size, 3), jnp.float32)
        assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}
    image = _image(2, 7, 10, 2)
    check_one_compilation(model, image)
    apply = jax.jit(model.apply)
    logits = np.asarray(apply(variables, image))
    assert np.all(np.isfinite(logits))
    np.testing.assert_allclose(apply(variables, image[::-1]), logits[::-1], rtol=1e-4, atol=1e-5)  # an image sees no other


@EACH
def test_gradients_reach_every_parameter_in_training(name):
    model, image = TINY[name](), _image(2, 9, 12, 2)
    variables = random_variables(model, image)

    @jax.jit
    def gradients(params):
        def energy(params):
            logits, state = model.apply({**variables, "params": params}, image, train=True, mutable=["batch_stats"])
            return sum((head**2).mean() for head in jax.tree.leaves(logits)), state.get("batch_stats", {})

        return jax.grad(energy, has_aux=True)(params)

    gradient, stats = gradients(variables["params"])
    for path, leaf in flatten_dict(gradient, sep="/").items():
        assert np.all(np.isfinite(leaf)), path
        # A norm subtracts the bias before it: up to rounding nothing is left of its gradient.
        if not (name.startswith("nnunet") and path.endswith("bias") and "norm" not in path and "logits" not in path):
            assert np.any(np.abs(leaf) > 1e-6), path
    for path, leaf in flatten_dict(stats, sep="/").items():
        assert np.any(leaf != flatten_dict(variables["batch_stats"], sep="/")[path]), path


def _skips(name):
    """The layers that take a skip, and where among their channels."""
    if name == "unet_plus_plus":
        return [({f"x{i}_{j}_conv1"}, slice(k * F[i], (k + 1) * F[i])) for j in (1, 2) for i in range(3 - j) for k in range(j)]
    if name.startswith("nnunet"):
        return [({f"up{level}_1"}, slice(F[level], None)) for level in (0, 1)]
    layers = ("norm1", "shortcut") if name == "residual" else ("conv1",)
    return [({f"up{level}_{layer}" for layer in layers}, slice(0, F[level])) for level in (0, 1)]


@EACH
def test_each_skip_reaches_the_logits(name):
    model, image, skips = TINY[name](), _image(1, 9, 12, 2), _skips(name)
    variables = random_variables(model, image)

    @jax.jit
    def apply(variables, image, more):
        def add(call, args, kwargs, context):
            for (layers, part), weight in zip(skips, more, strict=True):
                if context.module.name in layers:
                    args = (args[0].at[..., part].add(weight * args[0][..., part] ** 2),)
            return call(*args, **kwargs)

        with nn.intercept_methods(add):
            return model.apply(variables, image)

    logits = apply(variables, image, np.zeros(len(skips), np.float32))
    for skip, more in zip(skips, np.eye(len(skips), dtype=np.float32), strict=True):
        assert np.max(np.abs(apply(variables, image, more) - logits)) > 1e-3, skip


@pytest.mark.parametrize("name", ["unet_plus_plus", "attention", "residual"])
@pytest.mark.parametrize("upsampler", UPSAMPLERS)
def test_any_upsampler(name, upsampler):
    model = TINY[name](upsample=UPSAMPLERS[upsampler])
    if name == "residual" and upsampler == "max_unpool":  # it strides: no maxima whose positions could be kept
        with pytest.raises(InputError, match="got 0 stored pooling positions"):
            jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 2)))
        return
    logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, 9, 12, 2)))
    assert logits.shape == (1, 9, 12, 3)


@pytest.mark.parametrize("model", [*(make() for make in TINY.values())], ids=TINY)
def test_an_image_of_too_few_axes_is_refused(model):
    with pytest.raises(InputError, match=r"got an image of shape \(8, 8, 2\).*Add the missing axes"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((8, 8, 2)))


# UNet++: deep supervision and pruning.


@pytest.mark.parametrize("size", [(8, 12), (7, 10)])
def test_the_pruned_network_is_a_head_of_the_whole(size):
    whole = UNetPlusPlus(2, (2, 3, 4, 5), deep_supervision=True)
    image = _image(1, *size, 3)
    variables = random_variables(whole, image)
    heads = jax.jit(partial(whole.apply, train=True))(variables, image)
    assert [head.shape for head in heads] == [(1, *size, 2)] * 3
    np.testing.assert_allclose(jax.jit(whole.apply)(variables, image), heads[-1], rtol=1e-5, atol=1e-6)
    assert np.max(np.abs(heads[0] - heads[1])) > 1e-2
    seen = set(variables["params"])
    for level in (3, 2, 1):
        pruned = UNetPlusPlus(2, (2, 3, 4, 5), level=level)
        np.testing.assert_allclose(jax.jit(pruned.apply)(variables, image), heads[level - 1], rtol=1e-5, atol=1e-6)
        names = set(jax.eval_shape(pruned.init, jax.random.key(0), image)["params"])
        assert names < seen
        seen = names | {f"logits{level - 1}"}
        assert len(names) == sum(2 + (j > 0) for j in range(level + 1) for _ in range(level + 1 - j)) + 1


@pytest.mark.parametrize("level", [0, 3])
def test_a_column_that_is_not_there_is_refused(level):
    with pytest.raises(InputError, match=f"got level={level}, 3 features; required a column from 1 to 2"):
        jax.eval_shape(UNetPlusPlus(2, F, level=level).init, jax.random.key(0), jnp.zeros((1, 8, 8, 2)))


# Attention U-Net: the gates.


def test_the_skips_but_the_finest_pass_a_gate_of_coefficients_in_0_1():
    model, image = AttentionUNet(2, (3, 4, 5, 6)), _image(2, 11, 18, 2)
    variables = random_variables(model, image)

    @jax.jit
    def apply(variables, image):
        given = {}

        def keep(call, args, kwargs, context):
            if isinstance(context.module, AttentionGate | nn.Conv):
                given[context.module.name] = args
            return call(*args, **kwargs)

        with nn.intercept_methods(keep):
            _, state = model.apply(variables, image, capture_intermediates=True, mutable=["intermediates"])
        layers = {name: layer["__call__"][0] for name, layer in state["intermediates"].items() if name != "__call__"}
        return layers, given

    layers, given = apply(variables, image)
    assert {name for name in layers if name.startswith("gate")} == {"gate1", "gate2"}
    for level, width in ((0, 3), (1, 4), (2, 5)):
        encoder, skip = np.maximum(layers[f"down{level}_norm2"], 0), given[f"up{level}_conv1"][0][..., :width]
        if level == 0:
            np.testing.assert_allclose(skip, encoder, rtol=1e-5, atol=1e-6)
        else:
            gate = np.asarray(layers[f"gate{level}"])
            assert gate.shape == (*encoder.shape[:3], 1)
            assert np.all((gate > 0) & (gate < 1))
            assert np.std(gate) > 1e-3
            np.testing.assert_allclose(skip, encoder * gate, rtol=1e-5, atol=1e-6)
            below = "signal_norm" if level == 2 else f"up{level + 1}_norm2"
            np.testing.assert_allclose(given[f"gate{level}"][1], np.maximum(layers[below], 0), rtol=1e-5, atol=1e-6)


# nnU-Net: volumes, supervision, initialisation.


@VOLUMES
def test_a_volume_of_one_slice_is_an_image(blocks):
    image = _image(2, 9, 12, 2)
    flat = NNUNet(2, F, residual_blocks=blocks)
    volume = flat.clone(strides=(1, (1, 2, 2), (1, 2, 2)))
    variables = random_variables(volume, image[:, None])

    def slice_of(path, leaf):  # only the middle slice of a kernel meets the image, the others zeros
        return leaf[leaf.shape[0] // 2] if path[-1] == "kernel" else leaf

    middle = unflatten_dict({path: slice_of(path, leaf) for path, leaf in flatten_dict(variables).items()})
    logits = np.asarray(jax.jit(volume.apply)(variables, image[:, None]))
    assert logits.shape == (2, 1, 9, 12, 2)
    np.testing.assert_allclose(logits[:, 0], jax.jit(flat.apply)(middle, image), rtol=1e-4, atol=1e-5)


@VOLUMES
@pytest.mark.parametrize("order", [(2, 0, 1), (0, 2, 1)])
def test_turning_a_volume_turns_its_logits(blocks, order):
    volume = _image(1, 5, 8, 11, 2)
    strides, kernels = ((1, 1, 1), (1, 2, 2), (2, 2, 3)), ((1, 3, 3), (3, 1, 3), (3, 3, 3))
    upright = NNUNet(2, F, residual_blocks=blocks, strides=strides, kernels=kernels)

    def turned(each):
        return tuple(tuple(v[axis] for axis in order) for v in each)

    def turn(leaf, first):
        return np.transpose(leaf, (*range(first), *(first + axis for axis in order), *range(first + 3, leaf.ndim)))

    variables = random_variables(upright, volume)
    logits = np.asarray(jax.jit(upright.apply)(variables, volume))
    lying = upright.clone(strides=turned(strides), kernels=turned(kernels))
    variables = jax.tree.map(lambda leaf: turn(leaf, 0) if leaf.ndim == 5 else leaf, variables)
    np.testing.assert_allclose(jax.jit(lying.apply)(variables, turn(volume, 1)), turn(logits, 1), rtol=1e-4, atol=1e-5)


def test_deep_supervision_gives_a_head_a_stage_finest_first():
    model, image = NNUNet(2, (2, 3, 4, 5), deep_supervision=True), _image(1, 16, 24, 1)
    variables = random_variables(model, image)
    heads = jax.jit(partial(model.apply, train=True))(variables, image)
    assert [head.shape for head in heads] == [(1, 16, 24, 2), (1, 8, 12, 2), (1, 4, 6, 2)]
    finest = NNUNet(2, (2, 3, 4, 5))
    np.testing.assert_array_equal(jax.jit(finest.apply)(variables, image), jax.jit(model.apply)(variables, image))
    np.testing.assert_allclose(jax.jit(finest.apply)(variables, image), heads[0], rtol=1e-5, atol=1e-6)
    assert set(jax.eval_shape(finest.init, jax.random.key(0), image)["params"]) == set(variables["params"]) - {"logits1", "logits2"}


def test_nnunet_starts_as_its_package_does():
    model = NNUNet(2, (32, 64), residual_blocks=(1, 2))
    params = jax.jit(model.init)(jax.random.key(0, impl="rbg"), jnp.zeros((1, 8, 8, 16)))["params"]
    for path, leaf in flatten_dict(params, sep="/").items():
        if path.endswith("scale"):
            assert np.all(leaf == (0 if path.endswith("conv2_norm/scale") else 1)), path  # a block begins as its shortcut
        elif path.endswith("bias"):
            assert not np.any(leaf), path
        else:
            nodes = 4 * 32 if path == "up0_sample/kernel" else np.prod(leaf.shape[:-1])
            np.testing.assert_allclose(np.std(leaf), np.sqrt(2 / nodes), rtol=0.15 if "logits" in path else 0.06, err_msg=path)


@pytest.mark.parametrize(
    "wrong",
    [{"strides": (1, 2)}, {"kernels": (3, 2, 3)}, {"residual_blocks": (1, 1)}, {"strides": (1, 2, (2, 2, 2))}, {"strides": (1, 2, 0)}],
)
def test_a_plan_that_does_not_fit_is_refused(wrong):
    with pytest.raises(InputError, match=rf"got {next(iter(wrong))}=.* required one for each of at least 2 stages"):
        jax.eval_shape(NNUNet(2, F, **wrong).init, jax.random.key(0), jnp.zeros((1, 8, 8, 2)))


# Equality with torch's own layers.


class _Torch:
    """torch's functions with our variables, [N, C, *S]."""

    def __init__(self, variables):
        import torch

        self.torch, self.f, self.variables = torch, torch.nn.functional, variables

    def get(self, name, leaf, collection="params"):
        layer = self.variables[collection]
        for part in name.split("/"):
            layer = layer[part]
        return self.torch.tensor(np.asarray(layer[leaf])) if leaf in layer else None

    def conv(self, x, name, stride=1, pad=True):
        kernel = self.get(name, "kernel")
        rank = kernel.ndim - 2
        function = self.f.conv3d if rank == 3 else self.f.conv2d
        padding = [k // 2 if pad else 0 for k in kernel.shape[:rank]]
        return function(x, kernel.permute(-1, -2, *range(rank)), self.get(name, "bias"), stride, padding)

    def up(self, x, name, like):
        kernel = self.get(name, "kernel")
        rank = kernel.ndim - 2
        function = self.f.conv_transpose3d if rank == 3 else self.f.conv_transpose2d
        y = function(x, kernel.permute(-2, -1, *range(rank)), self.get(name, "bias"), stride=tuple(kernel.shape[:rank]))
        return self.crop(y, like)

    def crop(self, x, like):
        return x[(..., *(slice(n) for n in like.shape[2:]))]

    def batch_norm(self, x, name):
        mean, var = (self.get(name, leaf, "batch_stats") for leaf in ("mean", "var"))
        return self.f.batch_norm(x, mean, var, self.get(name, "scale"), self.get(name, "bias"), eps=1e-5)

    def instance_norm(self, x, name):
        return self.f.instance_norm(x, weight=self.get(name, "scale"), bias=self.get(name, "bias"), eps=1e-5)

    def cat(self, *parts):
        return self.torch.cat(parts, dim=1)

    def pool(self, x):
        return self.f.max_pool2d(x, 2, ceil_mode=True)

    def bilinear(self, x, scale=2):
        return self.f.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)


def _unet_plus_plus(t, image):
    def convs(x, name):
        for i in (1, 2):
            x = t.conv(x, f"{name}_conv{i}").relu()
        return x

    x00 = convs(image, "x0_0")
    x10 = convs(t.pool(x00), "x1_0")
    x20 = convs(t.pool(x10), "x2_0")
    x01 = convs(t.cat(x00, t.up(x10, "x0_1_sample", x00)), "x0_1")
    x11 = convs(t.cat(x10, t.up(x20, "x1_1_sample", x10)), "x1_1")
    x02 = convs(t.cat(x00, x01, t.up(x11, "x0_2_sample", x00)), "x0_2")
    return t.conv(x02, "logits2")


def _attention(t, image):
    def convs(x, name):
        for i in (1, 2):
            x = t.batch_norm(t.conv(x, f"{name}_conv{i}"), f"{name}_norm{i}").relu()
        return x

    skip0 = convs(image, "down0")
    skip1 = convs(t.pool(skip0), "down1")
    x = convs(t.pool(skip1), "down2")
    signal = t.batch_norm(t.conv(x, "signal_conv"), "signal_norm").relu()
    padded = t.f.pad(skip1, (0, skip1.shape[3] % 2, 0, skip1.shape[2] % 2))
    q = (t.conv(padded, "gate1/skip", 2, pad=False) + t.conv(signal, "gate1/signal")).relu()
    gate = t.crop(t.bilinear(t.conv(q, "gate1/psi").sigmoid()), skip1)
    up1 = convs(t.cat(gate * skip1, t.crop(t.bilinear(x), skip1)), "up1")
    up0 = convs(t.cat(skip0, t.crop(t.bilinear(up1), skip0)), "up0")
    return t.conv(t.cat(t.conv(up0, "head0"), t.crop(t.bilinear(t.conv(up1, "head1")), image)), "logits")


def _residual(t, image):
    def unit(x, name, stride=1):
        y = x if name == "down0" else t.batch_norm(x, f"{name}_norm1").relu()
        y = t.batch_norm(t.conv(y, f"{name}_conv1", stride), f"{name}_norm2").relu()
        return t.conv(y, f"{name}_conv2") + t.conv(x, f"{name}_shortcut", stride)

    def double(x, like):
        return t.crop(t.f.interpolate(x, scale_factor=2, mode="nearest"), like)

    skip0 = unit(image, "down0")
    skip1 = unit(skip0, "down1", 2)
    x = unit(skip1, "down2", 2)
    x = unit(t.cat(skip1, double(x, skip1)), "up1")
    return t.conv(unit(t.cat(skip0, double(x, skip0)), "up0"), "logits")


def _nnunet(t, image, strides=(1, 2, 2), blocks=None):
    average = t.f.avg_pool3d if image.ndim == 5 else t.f.avg_pool2d

    def conv(x, name, stride=1):
        return t.f.leaky_relu(t.instance_norm(t.conv(x, name, stride), f"{name}_norm"), 0.01)

    def block(x, name, stride=1):
        y = t.conv(conv(x, f"{name}_conv1", stride), f"{name}_conv2")
        if stride != 1:
            x = average(x, stride, stride, ceil_mode=True, count_include_pad=False)
        if f"{name}_shortcut" in t.variables["params"]:
            x = t.instance_norm(t.conv(x, f"{name}_shortcut"), f"{name}_shortcut_norm")
        return t.f.leaky_relu(t.instance_norm(y, f"{name}_conv2_norm") + x, 0.01)

    x, skips = image if blocks is None else conv(image, "stem"), []
    for stage, stride in enumerate(strides):
        for i in range(1, (2 if blocks is None else blocks[stage]) + 1):
            x = (conv if blocks is None else block)(x, f"down{stage}_{i}", stride if i == 1 else 1)
        skips.append(x)
    for stage in (1, 0):
        x = t.cat(t.up(x, f"up{stage}_sample", skips[stage]), skips[stage])
        for i in range(1, (2 if blocks is None else 1) + 1):
            x = conv(x, f"up{stage}_{i}")
    return t.conv(x, "logits0")


def _assert_equal_to_torch(model, image, reference):
    import torch

    variables = random_variables(model, image)
    logits = np.asarray(jax.jit(model.apply)(variables, image))
    with torch.no_grad():
        expected = reference(_Torch(variables), torch.tensor(np.moveaxis(image, -1, 1))).movedim(1, -1).numpy()
    assert logits.shape == expected.shape
    assert np.max(np.abs(logits - expected)) <= 1e-4 * np.max(np.abs(expected))


REFERENCES = {
    "unet_plus_plus": _unet_plus_plus,
    "attention": _attention,
    "residual": _residual,
    "nnunet": _nnunet,
    "nnunet_residual": partial(_nnunet, blocks=(1, 2, 1)),
}


@needs_torch
@EACH
@pytest.mark.parametrize("size", [(16, 24), (15, 22)])
def test_logits_equal_those_of_torch(name, size):
    _assert_equal_to_torch(TINY[name](), _image(2, *size, 3), REFERENCES[name])


@needs_torch
@VOLUMES
@pytest.mark.parametrize("size", [(4, 8, 12), (5, 7, 9)])
def test_logits_of_volumes_equal_those_of_torch(blocks, size):
    strides = ((1, 1, 1), (1, 2, 2), (2, 2, 2))
    model = NNUNet(2, F, 2 if blocks is None else 1, blocks, strides, ((1, 3, 3), 3, 3))
    _assert_equal_to_torch(model, _image(2, *size, 2), partial(_nnunet, strides=strides, blocks=blocks))
