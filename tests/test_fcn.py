"""Laws of FCN: the release's counts and sizes, its skips and stages of training, equality with torch by the tables of weights."""

from functools import cache, partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from model_laws import check_one_compilation
from op_laws import needs_torch, random_array
from random_variables import random_variables

from jaxseg import ops
from jaxseg.config import load_get_config
from jaxseg.errors import InputError
from jaxseg.models.fcn import FCN, VARIANTS, continue_from, is_upscore
from jaxseg.models.vgg import CONVS, VGG16
from jaxseg.weights import wkentaro_fcn

Tiny = partial(FCN, num_classes=3, features=(3, 4, 5, 6, 7), fc_features=8)
COUNTS = {"32s": 136_152_917, "16s": 134_815_994, "8s": 134_489_759, "8s_at_once": 134_489_759}


def _layers(model, *size):
    """Shapes and types of the logits, of every layer's output by name, and of the parameters."""

    def init(image):
        logits, state = model.init_with_output(jax.random.key(0), image, capture_intermediates=True, mutable=True)
        return logits, state["intermediates"], state["params"]

    logits, layers, params = jax.eval_shape(init, jnp.zeros((1, *size, 3)))
    return logits, {name: layer["__call__"][0] for name, layer in layers.items() if name not in ("__call__", "encoder")}, params


IMAGE = random_array(1, 33, 40, 3)


def _variables(model):
    return jax.tree.map(jnp.asarray, random_variables(model, IMAGE))


@cache
def _apply(variant):
    """Logits, and the scores and the classifier's maps by name: one program a variant for most tests."""

    @jax.jit
    def apply(variables):
        logits, state = Tiny(variant=variant).apply(variables, IMAGE, capture_intermediates=True, mutable=["intermediates"])
        return logits, {name: layer["__call__"][0] for name, layer in state["intermediates"].items() if name not in ("__call__", "encoder")}

    return apply


@cache
def _fresh(variant):
    init = jax.jit(Tiny(variant=variant).init, compiler_options={"xla_backend_optimization_level": 0})  # compiles fast
    return jax.device_get(init(jax.random.key(0, impl="rbg"), IMAGE))


# The release's numbers.


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_and_sizes_of_the_release(variant):
    logits, layers, params = _layers(FCN(21, variant), 375, 500)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == COUNTS[variant]
    assert (logits.shape, logits.dtype) == ((1, 375, 500, 21), jnp.float32)
    layers = {name: layer.shape[1:3] for name, layer in layers.items() if "dropout" not in name}
    assert layers["fc6"] == layers["fc7"] == layers["score_fr"] == (12, 16)
    expected = {
        "32s": {"upscore": (416, 544)},
        "16s": {"upscore2": (26, 34), "score_pool4": (36, 44), "upscore16": (432, 560)},
        "8s": {"upscore2": (26, 34), "score_pool4": (36, 44), "upscore_pool4": (54, 70), "score_pool3": (72, 88), "upscore8": (440, 568)},
    }[variant[:3].rstrip("_")]
    assert {name: shape for name, shape in layers.items() if not name.startswith("fc") and name != "score_fr"} == expected


def test_a_small_odd_image():
    _, layers, _ = _layers(FCN(21), 65, 97)
    assert (layers["fc6"].shape[1:3], layers["upscore8"].shape[1:3]) == ((3, 4), (152, 184))


@pytest.mark.parametrize("variant", ["32s", "16s", "8s"])
def test_any_size(variant):
    for h, w in [(1, 1), *zip(range(64, 80), range(80, 96), strict=True)]:  # every remainder of 32
        assert _layers(Tiny(variant=variant), h, w)[0].shape == (1, h, w, 3)


# Initialisation and stages.


def test_scores_begin_at_zero_and_upscoring_as_bilinear_interpolation():
    variables = _fresh("8s")
    assert not np.any(_apply("8s")(variables)[0])
    for name, layer in variables["params"].items():
        if name.startswith("score"):
            assert not any(map(np.any, layer.values()))
        elif is_upscore((name,)):
            scale = layer["kernel"].shape[0] // 2
            x = random_array(1, 4, 5, 3)
            expected = ops.upsample_prediction(x, scale, offset=0, size=(5 * scale, 6 * scale))
            np.testing.assert_allclose(ops.conv_transpose(x, layer["kernel"], scale), expected, atol=1e-6)
        elif name != "encoder":
            assert np.std(layer["kernel"]) == pytest.approx(np.sqrt(2 / np.prod(layer["kernel"].shape[:3])), rel=0.3)


@pytest.mark.parametrize(("scales", "offset"), [((2, 16), 27), ((2, 2, 8), 31)])
def test_the_crops_keep_every_pixel_in_its_place(scales, offset):
    ramp = np.arange(5)[:, None, None] + 10 * np.arange(6)[:, None]

    def enlarged(scales, offset):
        x = jnp.asarray(ramp[None], jnp.float32)
        for scale in scales:
            x = ops.conv_transpose(x, jnp.asarray(ops.bilinear_kernel(scale))[..., None, None], scale)
        return np.asarray(x)[:, offset + 40 : offset + 100, offset + 40 : offset + 130]  # the zeros around the map are far

    np.testing.assert_allclose(enlarged(scales, offset), enlarged((32,), 19), rtol=1e-5)


@pytest.mark.parametrize(("coarser", "finer", "new"), [("32s", "16s", "score_pool4"), ("16s", "8s", "score_pool3")])
def test_a_finer_network_begins_with_all_that_the_coarser_has(coarser, finer, new):
    fresh, old = _fresh(finer), _variables(Tiny(variant=coarser))
    begun = continue_from(fresh, old)
    assert jax.tree.structure(begun) == jax.tree.structure(fresh)
    fresh_leaves, old_leaves = flatten_dict(fresh), flatten_dict(old)
    for path, leaf in flatten_dict(begun).items():
        np.testing.assert_array_equal(leaf, old_leaves.get(path, fresh_leaves[path]))
    upscored = {"16s": {"upscore2", "upscore16"}, "8s": {"upscore_pool4", "upscore8"}}[finer]
    assert {path[1] for path in fresh_leaves.keys() - old_leaves.keys()} == {new, *upscored}
    (logits, layers), (_, before) = _apply(finer)(begun), _apply(coarser)(old)
    np.testing.assert_allclose(layers["score_fr"], before["score_fr"], rtol=1e-5, atol=1e-6)
    assert not np.any(layers[new])  # adds nothing yet
    assert np.any(np.asarray(logits))


def test_only_a_coarser_network_of_the_same_widths_begins_a_finer_one():
    eight = _variables(Tiny())
    for wrong in (Tiny(num_classes=4), Tiny(fc_features=9)):
        with pytest.raises(InputError, match="required"):
            continue_from(eight, _variables(wrong))
    with pytest.raises(InputError, match="score_pool3/kernel: not in the finer"):
        continue_from(_variables(Tiny(variant="16s")), eight)
    with pytest.raises(InputError, match="in common"):
        continue_from(eight, {"params": {}})


def test_at_once_is_8s_with_smaller_poolings():
    variables = _variables(Tiny())
    scaled = jax.tree.map(lambda leaf: leaf, variables)
    for name, scale in (("score_pool4", 0.01), ("score_pool3", 0.0001)):
        scaled["params"][name]["kernel"] = scale * variables["params"][name]["kernel"]
    at_once = _apply("8s_at_once")(variables)[0]
    np.testing.assert_allclose(at_once, _apply("8s")(scaled)[0], rtol=1e-4, atol=1e-6)
    assert np.max(np.abs(at_once - _apply("8s")(variables)[0])) > 1e-3


def test_the_config_keeps_the_upscoring_and_trains_all_else():
    config = load_get_config(Path(__file__).parents[1] / "configs" / "fcn_camvid.py")(features=(3, 4, 5, 6, 7), fc_features=8, variant="8s")
    before = _variables(config.model(num_classes=3))["params"]

    @jax.jit
    def train(params):
        state = config.optimizer.init(params)
        for _ in range(2):  # the warm-up begins with a step of 0
            updates, state = config.optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
            params = optax.apply_updates(params, updates)
        return params

    for path, leaf in flatten_dict(train(before)).items():
        assert np.any(np.asarray(leaf) != flatten_dict(before)[path]) != is_upscore(path), path


# Skips, gradients, types.


@pytest.mark.parametrize(("variant", "scored"), [("32s", 1), ("16s", 2), ("8s", 3), ("8s_at_once", 3)])
def test_every_score_reaches_the_logits(variant, scored):
    variables = _variables(Tiny(variant=variant))
    logits, _ = _apply(variant)(variables)
    names = [name for name in variables["params"] if name.startswith("score")]
    assert len(names) == scored
    for name in names:
        changed = variables | {"params": variables["params"] | {name: jax.tree.map(lambda leaf: 2 * leaf, variables["params"][name])}}
        assert np.max(np.abs(_apply(variant)(changed)[0] - logits)) > 1e-3 * np.max(np.abs(logits)), name


@pytest.mark.parametrize("variant", ["32s", "8s"])
def test_every_parameter_is_reached_and_the_gradients_are_finite(variant):
    model = Tiny(variant=variant)
    variables = _variables(model)
    gradients = jax.jit(jax.grad(lambda v: (model.apply(v, IMAGE) ** 2).mean()))(variables)
    for path, leaf in flatten_dict(gradients["params"], sep="/").items():
        assert np.all(np.isfinite(leaf)), path
        assert np.any(np.asarray(leaf) != 0), path


def test_dropout_is_for_training_and_follows_the_classifier():
    model = Tiny(variant="16s", fc_features=512)
    variables = _variables(model)

    @partial(jax.jit, static_argnames="train")
    def layers(key, train):
        logits, state = model.apply(
            variables, IMAGE, train=train, rngs={"dropout": key}, capture_intermediates=True, mutable=["intermediates"]
        )
        return logits, {name: layer["__call__"][0] for name, layer in state["intermediates"].items() if name.startswith("fc")}

    logits, trained = layers(jax.random.key(0), True)
    eval_logits, at_eval = layers(jax.random.key(0), False)
    for name in ("fc6", "fc7"):
        active, dropped = np.maximum(trained[name], 0), np.asarray(trained[f"{name}_dropout"])
        assert 0.4 < np.mean(dropped[active > 0] == 0) < 0.6
        np.testing.assert_allclose(dropped[dropped > 0], 2 * active[dropped > 0], rtol=1e-5)
        np.testing.assert_array_equal(at_eval[f"{name}_dropout"], np.maximum(at_eval[name], 0))
    assert np.max(np.abs(logits - eval_logits)) > 1e-3


def test_bfloat16_scores_in_float32():
    logits, layers, params = _layers(Tiny(dtype=jnp.bfloat16), 33, 40)
    assert {leaf.dtype for leaf in (logits, *jax.tree.leaves(params))} == {jnp.dtype("float32")}
    for name, layer in layers.items():
        assert layer.dtype == (jnp.float32 if is_upscore((name,)) else jnp.bfloat16), name
    variables = _variables(Tiny())
    expected, _ = _apply("8s")(variables)
    logits = jax.jit(Tiny(dtype=jnp.bfloat16).apply)(variables, IMAGE)
    np.testing.assert_allclose(logits, expected, atol=0.05 * float(np.max(np.abs(expected))))


def test_jit_compiles_once():
    check_one_compilation(Tiny(variant="16s"), IMAGE)


@pytest.mark.parametrize(
    "fields",
    [{"variant": "4s"}, {"num_classes": 0}, {"fc_features": 0}, {"dropout": 1.0}, {"features": (8, 8)}],
    ids=lambda f: next(iter(f)),
)
def test_fields_out_of_range_are_refused(fields):
    with pytest.raises(InputError, match=next(iter(fields))):
        jax.eval_shape(Tiny(**fields).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


# Equality with torch, by the tables of the weights.


def _from_torch(table, state, variables):
    """`variables` with the arrays of a torch state_dict, all of whose keys and shapes must be those of the table."""
    assert set(table) == set(state)
    flat = flatten_dict(variables)
    for key, (path, change) in table.items():
        kernel = {"linear_conv": (3, 2, 0, 1), "conv": (3, 2, 0, 1), "conv_transpose": (2, 3, 0, 1), "same": (0,)}[change]
        array = state[key].numpy()
        if change == "linear_conv":
            array = array.reshape([flat[path].shape[i] for i in kernel])
        array = array.transpose(np.argsort(kernel)) if change in ("conv", "linear_conv") else array.transpose(kernel)
        assert array.shape == flat[path].shape, key
        flat[path] = array
    return unflatten_dict(flat)


def _torch_layers(torch, model, rng):
    """wkentaro's layers by his names, of random weights."""
    layers, inputs = torch.nn.ModuleDict(), 3
    for stage, (convs, width) in enumerate(zip(CONVS, model.features, strict=True), 1):
        for i in range(1, convs + 1):
            layers[f"conv{stage}_{i}"] = torch.nn.Conv2d(inputs, width, 3, padding=100 if (stage, i) == (1, 1) else 1)
            inputs = width
    k = model.num_classes
    layers["fc6"] = torch.nn.Conv2d(inputs, model.fc_features, 7)
    layers["fc7"] = torch.nn.Conv2d(model.fc_features, model.fc_features, 1)
    layers["score_fr"] = torch.nn.Conv2d(model.fc_features, k, 1)
    if model.variant == "32s":
        layers["upscore"] = torch.nn.ConvTranspose2d(k, k, 64, stride=32, bias=False)
    else:
        layers["upscore2"] = torch.nn.ConvTranspose2d(k, k, 4, stride=2, bias=False)
        layers["score_pool4"] = torch.nn.Conv2d(model.features[3], k, 1)
    if model.variant == "16s":
        layers["upscore16"] = torch.nn.ConvTranspose2d(k, k, 32, stride=16, bias=False)
    if model.variant.startswith("8s"):
        layers["upscore_pool4"] = torch.nn.ConvTranspose2d(k, k, 4, stride=2, bias=False)
        layers["score_pool3"] = torch.nn.Conv2d(model.features[2], k, 1)
        layers["upscore8"] = torch.nn.ConvTranspose2d(k, k, 16, stride=8, bias=False)
    for parameter in layers.parameters():
        spread = np.sqrt(2 / np.prod(parameter.shape[1:])) if parameter.ndim > 1 else 0.1
        parameter.data = torch.tensor(rng.normal(size=parameter.shape) * spread, dtype=torch.float32)
    return layers


def _torch_logits(torch, layers, variant, image):
    """wkentaro's `forward`, [N, C, H, W]."""
    h, w = image.shape[2:]
    x, pools = image, []
    for stage, convs in enumerate(CONVS, 1):
        for i in range(1, convs + 1):
            x = layers[f"conv{stage}_{i}"](x).relu()
        x = torch.nn.functional.max_pool2d(x, 2, stride=2, ceil_mode=True)
        pools.append(x)
    x = layers["fc7"](layers["fc6"](x).relu()).relu()
    x = layers["score_fr"](x)
    if variant == "32s":
        return layers["upscore"](x)[:, :, 19 : 19 + h, 19 : 19 + w]
    at_once = variant == "8s_at_once"
    x = layers["upscore2"](x)
    x = x + layers["score_pool4"](pools[3] * 0.01 if at_once else pools[3])[:, :, 5 : 5 + x.shape[2], 5 : 5 + x.shape[3]]
    if variant == "16s":
        return layers["upscore16"](x)[:, :, 27 : 27 + h, 27 : 27 + w]
    x = layers["upscore_pool4"](x)
    x = x + layers["score_pool3"](pools[2] * 0.0001 if at_once else pools[2])[:, :, 9 : 9 + x.shape[2], 9 : 9 + x.shape[3]]
    return layers["upscore8"](x)[:, :, 31 : 31 + h, 31 : 31 + w]


@needs_torch
@pytest.mark.parametrize("size", [(64, 64), (65, 97)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_those_of_wkentaros_network(variant, size):
    import torch

    model, image = Tiny(variant=variant), random_array(2, *size, 3)
    layers = _torch_layers(torch, model, np.random.default_rng(0))
    nothing = jax.tree.map(lambda leaf: np.full(leaf.shape, np.nan), random_variables(model, image))
    variables = _from_torch(wkentaro_fcn.layout(model), layers.state_dict(), nothing)  # nan stays where a key is missing
    logits = np.asarray(jax.jit(model.apply)(variables, image))
    with torch.no_grad():
        expected = _torch_logits(torch, layers, variant, torch.tensor(image).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    assert logits.shape == expected.shape
    assert np.max(np.abs(logits - expected)) <= 1e-4 * np.max(np.abs(expected))


@needs_torch
def test_the_classifier_of_torchvisions_vgg16_begins_fcn():
    import torch

    model = Tiny(variant="32s")
    features, inputs = [], 3
    for convs, width in zip(CONVS, model.features, strict=True):
        for _ in range(convs):
            features += [torch.nn.Conv2d(inputs, width, 3, padding=1), torch.nn.ReLU()]
            inputs = width
        features.append(torch.nn.MaxPool2d(2))
    layers = [
        torch.nn.Linear(49 * inputs, 8),
        torch.nn.ReLU(),
        torch.nn.Dropout(),
        torch.nn.Linear(8, 8),
        torch.nn.ReLU(),
        torch.nn.Dropout(),
        torch.nn.Linear(8, 10),
    ]
    vgg = torch.nn.ModuleDict({"features": torch.nn.Sequential(*features), "classifier": torch.nn.Sequential(*layers)}).eval()
    state = {key: value for key, value in vgg.state_dict().items() if key not in wkentaro_fcn.CLASSIFIER_IGNORED}

    fresh = random_variables(model, random_array(1, 32, 32, 3))
    variables = _from_torch(wkentaro_fcn.classifier_layout(model), state, fresh)
    changed = {path[1] for path, leaf in flatten_dict(variables).items() if leaf is not flatten_dict(fresh)[path]}
    assert changed == {"encoder", "fc6", "fc7"}
    # On a picture of 224 x 224 with its own padding, VGG16's classifier sees one 7x7 map.
    image = random_array(1, 224, 224, 3)
    x = jax.jit(VGG16(model.features).apply)({"params": variables["params"]["encoder"]}, image)[-1].pooled
    assert x.shape[1:3] == (7, 7)
    for name in ("fc6", "fc7"):
        layer = variables["params"][name]
        x = nn.relu(nn.Conv(8, layer["kernel"].shape[:2], padding="VALID").apply({"params": layer}, x))
    with torch.no_grad():
        expected = vgg["classifier"][:5](vgg["features"](torch.tensor(image).permute(0, 3, 1, 2)).flatten(1)).numpy()
    np.testing.assert_allclose(np.asarray(x)[:, 0, 0], expected, rtol=1e-4, atol=1e-4 * np.max(np.abs(expected)))
