"""Laws of SegNet and of SegNet-Basic's eight decoders: counts by hand, positions and additions reach the logits, equality with torch."""

import json
import sys
import typing
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from model_laws import check_one_compilation
from op_laws import needs_torch, random_array
from random_variables import random_variables

from jaxseg import ops
from jaxseg.errors import InputError
from jaxseg.models.segnet import BilinearDeconv, Decoder, SegNet, SegNetBasic, local_response_norm
from jaxseg.upsample import UPSAMPLERS, MaxUnpool

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import camvid_decoders
import camvid_decoders_table

DECODERS = typing.get_args(Decoder)
CASES = {"segnet16": SegNet(3, features=(3, 4, 5, 6, 7)), **{name: SegNetBasic(3, name, features=4) for name in DECODERS}}
EVEN, ODD = (1, 32, 48, 3), (1, 37, 53, 3)
each_model = pytest.mark.parametrize("name", CASES)


def _pixels(shape):
    return 128 + 60 * random_array(*shape)  # 0..255, where the response normalisation does something


def _relative(a, b):
    return np.max(np.abs(np.asarray(a) - np.asarray(b))) / np.max(np.abs(b))


# The paper's numbers.


def _count(model, *kinds):
    params = flatten_dict(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"])
    return sum(leaf.size for path, leaf in params.items() if not kinds or path[-1] in kinds)


def test_segnet_has_29449355_parameters_14_7_million_in_its_encoder():
    assert _count(SegNet(11)) == 29_449_355
    params = jax.eval_shape(SegNet(11).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params["encoder"])) == 14_714_688 + 2 * 4_224  # torchvision's vgg16_bn.features
    decoder = {"decode5_3", "decode5_2", "decode5_1", "decode4_3", "decode4_2", "decode4_1", "decode3_3", "decode3_2", "decode3_1"}
    decoder |= {"decode2_2", "decode2_1", "decode1_2"}
    assert set(params) == {"encoder", "logits"} | decoder | {f"{name}_norm" for name in decoder}  # checkpoints hold these names
    channels = {name: params[name]["kernel"].shape for name in (*decoder, "logits")}
    assert channels["decode5_1"] == channels["decode4_2"] == (3, 3, 512, 512)
    assert channels["decode4_1"] == (3, 3, 512, 256)
    assert channels["decode2_1"] == (3, 3, 128, 64)
    assert channels["logits"] == (3, 3, 64, 11)


ENCODER, WIDE, PROJECTION = 49 * (3 * 64 + 3 * 64 * 64), 4 * 49 * 64 * 64, 64 * 11
WEIGHTS = {  # by hand, and table 1's column "Params (M)", which none of them equals: it is within 2.5 %
    "bilinear": (ENCODER + PROJECTION, 612_224, 0.625),
    "segnet": (ENCODER + WIDE + PROJECTION, 1_415_040, 1.425),
    "segnet_addition": (ENCODER + WIDE + PROJECTION, 1_415_040, 1.425),
    "segnet_single_channel": (ENCODER + 4 * 49 * 64 + PROJECTION, 624_768, 0.625),
    "fcn": (ENCODER + 4 * PROJECTION + 4 * 64 * 11 * 11, 645_312, 0.65),
    "fcn_no_addition": (ENCODER + PROJECTION + 4 * 64 * 11 * 11, 643_200, 0.65),
    "fcn_no_reduction": (ENCODER + 4 * 64 * 64 * 64 + PROJECTION, 1_660_096 + PROJECTION, 1.625),
    "fcn_no_addition_no_reduction": (ENCODER + 4 * 64 * 64 * 64 + PROJECTION, 1_660_096 + PROJECTION, 1.625),
}


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_weights_of_table_1_counted_by_hand(decoder):
    by_hand, number, paper = WEIGHTS[decoder]
    assert _count(SegNetBasic(11, decoder), "kernel") == by_hand == number
    assert abs(by_hand / 1e6 - paper) < 0.025 * paper
    normalised = {"bilinear": 4 * 64, "fcn": 4 * 64 + 3 * 11, "fcn_no_addition": 4 * 64 + 3 * 11}.get(decoder, 8 * 64)
    assert _count(SegNetBasic(11, decoder), "scale") == normalised
    projections = 4 if decoder == "fcn" else 1
    assert _count(SegNetBasic(11, decoder), "bias") == normalised + 11 * projections  # no other layer has any


# Sizes and fields.


@each_model
@pytest.mark.parametrize("size", [(1, 1), (45, 60), (33, 17)])
def test_any_size_gives_its_own(name, size):
    logits, _ = jax.eval_shape(CASES[name].init_with_output, jax.random.key(0), jnp.zeros((2, *size, 3)))
    assert logits.shape == (2, *size, 3)


@pytest.mark.parametrize("upsample", UPSAMPLERS)
def test_segnet_takes_any_upsampler(upsample):
    model = CASES["segnet16"].clone(upsample=UPSAMPLERS[upsample])
    logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 35, 18, 3)))
    assert logits.shape == (2, 35, 18, 3)
    assert ("up5_sample" in variables["params"]) == (upsample not in ("max_unpool",))


@pytest.mark.parametrize(
    ("model", "shape", "words"),
    [
        (SegNet(3), (8, 8, 3), "SegNet: got an image of shape (8, 8, 3); required [N, H, W, C]"),
        (SegNet(0), EVEN, "SegNet: got num_classes=0; required at least 1"),
        (SegNetBasic(3), (8, 8, 3), "SegNetBasic: got an image of shape (8, 8, 3); required [N, H, W, C]"),
        (SegNetBasic(3, "unpool"), EVEN, "got decoder='unpool', features=64; required one of bilinear, segnet, segnet_addition"),  # type: ignore[arg-type]
        (SegNetBasic(3, features=0), EVEN, "features=0; required one of"),
    ],
)
def test_bad_input_is_named(model, shape, words):
    with pytest.raises(InputError) as error:
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
    assert words in str(error.value)


# Positions and additions reach the logits.


class OtherPositions(MaxUnpool):
    """Max unpooling that mirrors every stored position in its window."""

    def __call__(self, x, indices=()):
        return super().__call__(x, [3 - index for index in indices])


def _logits(model, variables, image, change=None):
    """Logits, every layer's output first given to `change(name, output, outputs so far)`."""

    @jax.jit
    def apply(variables, image):
        seen = {}

        def interceptor(call, args, kwargs, context):
            out = call(*args, **kwargs)
            if change is not None and context.module.name:
                out = change(context.module.name, out, seen)
                seen[context.module.name] = out
            return out

        with nn.intercept_methods(interceptor):
            return model.apply(variables, image)

    return np.asarray(apply(variables, image))


@pytest.mark.parametrize("stage", [1, 2, 3, 4, 5])
def test_the_positions_of_every_stage_reach_segnets_logits(stage):
    def mirrored(features, *, name, **kwargs):
        return (OtherPositions if name == f"up{stage}_sample" else MaxUnpool)(features, name=name, **kwargs)

    model = CASES["segnet16"]
    image = _pixels(EVEN)
    variables = random_variables(model, image)
    assert _relative(_logits(model.clone(upsample=mirrored), variables, image), _logits(model, variables, image)) > 1e-3


@pytest.mark.parametrize("decoder", ["segnet", "segnet_addition", "segnet_single_channel"])
@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_the_positions_of_every_level_reach_segnet_basics_logits(decoder, level, monkeypatch):
    model = CASES[decoder]
    image = _pixels(EVEN)
    variables = random_variables(model, image)
    logits = _logits(model, variables, image)
    unpool, there = ops.max_unpool, (EVEN[1] >> (level - 1), EVEN[2] >> (level - 1))
    monkeypatch.setattr(ops, "max_unpool", lambda x, index, size: unpool(x, 3 - index if size == there else index, size=size))
    assert _relative(_logits(model, variables, image), logits) > 1e-3


def _remove(decoder, levels):
    """What `change` must do for the decoder to go without the encoder's maps of these levels."""

    def change(name, out, seen):
        for level in levels:
            if decoder == "segnet_addition" and name == f"decode{level}_norm":
                return out - nn.relu(seen[f"conv{level}_norm"])
            if decoder == "fcn" and name == f"score{level}":
                return 0 * out
            if decoder == "fcn_no_reduction" and name == f"deconv{level + 1}_norm":
                return out - ops.max_pool(nn.relu(seen[f"conv{level}_norm"]))
        return out

    return change


@pytest.mark.parametrize(
    ("decoder", "without", "levels"),
    [
        ("segnet_addition", "segnet", (1, 2, 3, 4)),
        ("fcn", "fcn_no_addition", (1, 2, 3)),
        ("fcn_no_reduction", "fcn_no_addition_no_reduction", (1, 2, 3)),
    ],
)
def test_every_addition_reaches_the_logits_and_without_all_it_is_the_other_decoder(decoder, without, levels):
    model, image = CASES[decoder], _pixels(EVEN)
    variables = random_variables(model, image)
    logits = _logits(model, variables, image)
    for level in levels:
        assert _relative(_logits(model, variables, image, _remove(decoder, (level,))), logits) > 1e-3, level
    names = flatten_dict(jax.eval_shape(CASES[without].init, jax.random.key(0), image), sep="/")
    assert set(names) <= set(flatten_dict(variables, sep="/"))  # the same parameters, or fewer
    other = _logits(CASES[without], variables, image)
    assert _relative(_logits(model, variables, image, _remove(decoder, levels)), other) < 1e-5
    assert _relative(logits, other) > 1e-2


@each_model
def test_every_parameter_is_reached_and_the_gradients_are_finite(name):
    model, image = CASES[name], _pixels(ODD)
    variables = random_variables(model, image)
    gradients = jax.jit(jax.grad(lambda v: (model.apply(v, image) ** 2).mean()))(variables)
    for path, leaf in flatten_dict(gradients["params"], sep="/").items():
        assert np.all(np.isfinite(leaf)), path
        assert np.any(np.asarray(leaf) != 0), path


# Training, types, compilation.


@pytest.mark.parametrize("name", ["segnet16", "segnet_addition", "fcn"])
def test_training_moves_every_statistic_and_inference_none(name):
    model, image = CASES[name], _pixels((2, 20, 24, 3))
    variables = random_variables(model, image)

    @jax.jit
    def both(variables, image):
        _, state = model.apply(variables, image, train=True, mutable=["batch_stats"])
        return model.apply(variables, image), model.apply(variables, image[:1]), state

    logits, alone, state = both(variables, image)
    assert _relative(alone, logits[:1]) < 1e-4  # an image's logits depend on no other image
    after = flatten_dict(state["batch_stats"], sep="/")
    for path, before in flatten_dict(variables["batch_stats"], sep="/").items():
        assert np.all(np.asarray(after[path]) != before), path


@pytest.mark.parametrize("name", ["segnet16", "segnet", "fcn"])
def test_bfloat16_gives_float32_logits_near_the_others(name):
    model, image = CASES[name], _pixels((1, 16, 16, 3)) / 64
    variables = random_variables(model, image)
    logits = jax.jit(model.clone(dtype=jnp.bfloat16).apply)(variables, image)
    assert logits.dtype == jnp.float32
    assert 1e-5 < np.median(np.abs(logits - _logits(model, variables, image))) < 0.1


def test_jit_compiles_once():
    check_one_compilation(CASES["fcn"], _pixels((1, 9, 10, 3)))


# The parts.


def test_the_deconvolution_begins_as_an_interpolation_of_each_channel():
    x = jnp.stack([jnp.ones((6, 9)), jnp.broadcast_to(jnp.arange(9.0), (6, 9))], -1)[None]
    y = jax.jit(lambda x: BilinearDeconv().init_with_output(jax.random.key(0), x)[0])(x)
    assert y.shape == (1, 12, 18, 2)
    inside = np.asarray(y)[0, 3:-3, 3:-3]
    np.testing.assert_allclose(inside[..., 0], 1, rtol=1e-6)
    np.testing.assert_allclose(inside[..., 1], np.broadcast_to((np.arange(18) - 0.5)[3:-3] / 2, (6, 12)), rtol=1e-5)


# The experiment, benchmarks/camvid_decoders.py.


def _paper_as_records(folder):
    for decoder, (_, million, paper) in camvid_decoders_table.PAPER.items():
        for balancing, numbers in paper.items():
            scores = dict(zip(camvid_decoders_table.MEASURES, numbers, strict=True))
            settings = {"resize": 1, "features": 64, "steps": 10_000, "batch_size": 12, "seed": 0}
            record = {"decoder": decoder, "balancing": balancing, "scores": scores, "parameters": million * 1e6, "settings": settings}
            record |= {"seconds": 1, "device": "Titan"}
            (folder / f"{decoder}-{balancing}.json").write_text(json.dumps(record))


def test_the_table_of_the_papers_own_numbers_is_the_papers(tmp_path):
    assert "| not run | not run | holds | holds |" in camvid_decoders_table.table(tmp_path, "paper")
    _paper_as_records(tmp_path)
    lines = camvid_decoders_table.table(tmp_path, "paper").splitlines()
    orderings = {
        line.split(" | ")[0][2:]: line.rstrip(" |").split(" | ")[1:] for line in lines[lines.index("| --- | --- | --- | --- | --- |") :]
    }
    verdicts = [orderings[text] for text in camvid_decoders_table.ORDERINGS]
    assert all(v[0] == "holds" and v[:2] == v[2:] for v in verdicts)
    # With natural frequencies its FCN-Basic-NoAddition has a lower global accuracy than bilinear interpolation.
    assert [text for text, v in orderings.items() if "does not hold" in v] == ["Bilinear-Interpolation has the lowest G, mIoU and BF"]
    row = "| SegNet-Basic | 1.425 / 1.425 | median | 82.7 / 82.7 | 62.0 / 62.0 | 47.7 / 47.7 | 35.8 / 35.8 |"
    assert any(line.startswith(row) for line in lines)


def test_batch_norm_statistics_are_recomputed_over_the_whole_set():
    model = CASES["segnet"]
    records = [{"image": random_array(8, 10, 3, seed=i)} for i in range(4)]
    images = np.stack([r["image"] for r in records])
    variables = random_variables(model, images)
    statistics = camvid_decoders.statistics_of_batch(model)
    whole = camvid_decoders.mean_statistics(statistics, variables["params"], records, 4)
    conv1 = nn.Conv(4, (7, 7), use_bias=False).apply({"params": variables["params"]["conv1"]}, local_response_norm(255 * images))
    np.testing.assert_allclose(whole["conv1_norm"]["mean"], conv1.mean((0, 1, 2)), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(whole["conv1_norm"]["var"], conv1.var((0, 1, 2)), rtol=1e-4)
    parts = camvid_decoders.mean_statistics(statistics, variables["params"], records, 2)
    np.testing.assert_allclose(parts["conv1_norm"]["mean"], whole["conv1_norm"]["mean"], rtol=1e-4, atol=1e-3)
    assert np.all(np.asarray(parts["conv1_norm"]["var"]) < whole["conv1_norm"]["var"])  # means differ between the batches
    short = camvid_decoders.mean_statistics(statistics, variables["params"], records, 3)  # 0 1 2, and 1 2 3
    expected = [statistics(variables["params"], images[part])["conv1_norm"]["mean"] for part in (slice(0, 3), slice(1, 4))]
    np.testing.assert_allclose(short["conv1_norm"]["mean"], np.mean(expected, 0), rtol=1e-5)


def test_the_boundary_score():
    label = np.zeros((60, 80), int)
    label[20:40, 20:60] = 1

    def bf(guess, label=label, **kwargs):
        return camvid_decoders.boundary_f1(SimpleNamespace(label=label, logits=np.eye(3)[guess]), **kwargs)

    assert bf(label) == 1
    assert bf(0 * label) == 0  # no contour
    moved = np.roll(label, 2, axis=1)
    assert bf(moved, tolerance=0.02) == 1  # two pixels of a diagonal of 100
    assert 0.6 < bf(moved, tolerance=0.019) < 1  # the horizontal contours still agree
    void = label.copy()
    void[:, 18:62] = 255
    assert np.isnan(bf(moved, void))  # what lies beside void is no contour
    half = label.copy()
    half[:, 30:] = 255
    wrong = label.copy()
    wrong[:, 32:] = 2
    assert bf(wrong, half) == 1  # void pixels count nowhere


# Equality with torch.


class TorchLayers:
    """Our variables on torch's layers, by our names."""

    def __init__(self, variables):
        import torch

        self.functional = torch.nn.functional
        flat = {"/".join(path[1:]): leaf for path, leaf in flatten_dict(variables).items()}
        self.arrays = {k: torch.tensor(v.transpose(3, 2, 0, 1) if v.ndim == 4 else v) for k, v in flat.items()}

    def conv(self, x, name, **kwargs):
        return self.functional.conv2d(x, self.arrays[f"{name}/kernel"], self.arrays.get(f"{name}/bias"), **kwargs)

    def deconv(self, x, name, **kwargs):
        kernel = self.arrays[f"{name}/kernel"].permute(1, 0, 2, 3)
        return self.functional.conv_transpose2d(x, kernel, self.arrays.get(f"{name}/bias"), **kwargs)

    def norm(self, x, name):
        mean, var, scale, bias = (self.arrays[f"{name}/{part}"] for part in ("mean", "var", "scale", "bias"))
        return self.functional.batch_norm(x, mean, var, scale, bias, eps=1e-5)

    def pool(self, x):
        return self.functional.max_pool2d(x, 2, ceil_mode=True, return_indices=True)

    def unpool(self, x, index, size):
        return self.functional.max_unpool2d(x, index, 2, output_size=size)

    def vgg(self, x):
        """[(size of the map, pooled map, positions)] of each stage."""
        stages = []
        for stage, convs in enumerate((2, 2, 3, 3, 3), 1):
            for i in range(1, convs + 1):
                name = f"encoder/{{}}{stage}_{i}"
                x = self.norm(self.conv(x, name.format("conv"), padding=1), name.format("norm")).relu()
            size = x.shape[2:]
            x, index = self.pool(x)
            stages.append((size, x, index))
        return stages


def _torch_segnet(model, t, image):
    stages = t.vgg(image)
    x = stages[-1][1]
    for stage, convs in ((5, 3), (4, 3), (3, 3), (2, 2), (1, 2)):
        size, _, index = stages[stage - 1]
        x = t.unpool(x, index, size)
        for i in range(convs, 0, -1):
            if (stage, i) == (1, 1):
                return t.conv(x, "logits", padding=1)
            x = t.norm(t.conv(x, f"decode{stage}_{i}", padding=1), f"decode{stage}_{i}_norm").relu()
    raise AssertionError


def _torch_basic(model, t, image):
    d = model.decoder
    x = t.functional.local_response_norm(image, 5, alpha=1e-4, beta=0.75, k=1)
    maps, pools, indices = [], [], []
    for level in (1, 2, 3, 4):
        maps.append(t.norm(t.conv(x, f"conv{level}", padding=3), f"conv{level}_norm").relu())
        x, index = t.pool(maps[-1])
        pools.append(x)
        indices.append(index)
    x = t.conv(x, "logits" if d == "bilinear" else "score4") if d in ("bilinear", "fcn", "fcn_no_addition") else x
    for level in (4, 3, 2, 1):
        size = maps[level - 1].shape[2:]
        if d.startswith("segnet"):
            groups = model.features if d == "segnet_single_channel" else 1
            x = t.conv(t.unpool(x, indices[level - 1], size), f"decode{level}", padding=3, groups=groups)
            x = t.norm(x, f"decode{level}_norm") + (maps[level - 1] if d == "segnet_addition" else 0)
            continue
        if d == "bilinear":
            x = t.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        else:
            x = t.deconv(x, f"deconv{level}", stride=2, padding=3)
        x = x[:, :, : size[0], : size[1]]
        if d != "bilinear" and (level > 1 or d.endswith("no_reduction")):
            x = t.norm(x, f"deconv{level}_norm")
        if level > 1 and d == "fcn":
            x = x + t.conv(pools[level - 2], f"score{level - 1}")
        if level > 1 and d == "fcn_no_reduction":
            x = x + pools[level - 2]
    return x if d in ("bilinear", "fcn", "fcn_no_addition") else t.conv(x, "logits")


def check_parity(model, reference, image):
    import torch

    variables = random_variables(model, image)
    logits = np.asarray(jax.jit(model.apply)(variables, image))
    with torch.no_grad():
        expected = reference(model, TorchLayers(variables), torch.tensor(image).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    assert logits.shape == expected.shape
    assert _relative(logits, expected) <= 1e-4


@needs_torch
@each_model
@pytest.mark.parametrize("shape", [EVEN, ODD])
def test_logits_equal_those_of_torch(name, shape):
    check_parity(CASES[name], _torch_segnet if name == "segnet16" else _torch_basic, _pixels(shape))


@needs_torch
def test_the_papers_segnet_equals_torchs():
    check_parity(SegNet(11), _torch_segnet, random_array(1, 40, 33, 3))


@needs_torch
@pytest.mark.parametrize(("size", "channels"), [(5, 3), (5, 9), (2, 4)])
def test_response_normalisation_equals_torchs(size, channels):
    import torch

    x = 100 * random_array(2, 3, 4, channels)
    expected = torch.nn.functional.local_response_norm(torch.tensor(x).permute(0, 3, 1, 2), size, alpha=1e-4, beta=0.75, k=1)
    np.testing.assert_allclose(jax.jit(local_response_norm, static_argnums=1)(x, size), expected.permute(0, 2, 3, 1), rtol=1e-5)
