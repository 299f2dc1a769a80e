"""Laws of `jaxseg weights` and of the starts of training: what comes in computes as it did, and goes out bit for bit; or none does."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from op_laws import random_array
from PIL import Image
from random_variables import random_variables
from safetensors.numpy import load_file, save_file

from jaxseg import ops
from jaxseg.cli import main
from jaxseg.errors import InputError
from jaxseg.models import FCN, MODELS, EncoderUNet, MilesialUNet, SegNet
from jaxseg.run_folder import load_run
from jaxseg.upsample import PixelShuffle
from jaxseg.weights import start
from jaxseg.weights.layouts import LAYOUTS, VOC, bring_in, preprocess, take_out
from jaxseg.weights.runs import export_weights, import_weights
from jaxseg.weights.table import to_torch

THIN = [4, 4, 8, 8, 8]
SMALL = {  # a small network of each layout: its model, and the options that say so
    "torchvision_fcn": ("fcn_resnet", {"encoder": "resnet18", "width": 2}),
    "torchvision_resnet": ("encoder_unet", {"encoder": "resnet18", "width": 2, "decoder": THIN}),
    "torchvision_vgg16": ("fcn", {"features": THIN, "fc_features": 4, "variant": "16s"}),
    "wkentaro_fcn": ("fcn", {"features": THIN, "fc_features": 4, "variant": "32s"}),
    "smp_unet": ("encoder_unet", {"encoder": "vgg16", "width": 2, "decoder": THIN}),
    "milesial_unet": ("milesial", {"features": [4, 6, 8], "bilinear": True}),
    "monai_basic_unet": ("basic_unet", {"features": [4, 6, 8, 4], "upsample": "nontrainable"}),
    "efficientnet_lite0": ("encoder_unet", {"encoder": "efficientnet_lite0", "decoder": THIN}),
    "hed": ("encoder_unet", {"encoder": "vgg16", "width": 2, "decoder": THIN}),
}
WHOLE = [name for name in LAYOUTS if LAYOUTS[name].head]
O0 = {"xla_backend_optimization_level": 0}  # compiles faster


def model_of(name, num_classes=3):
    kind, options = SMALL[name]
    return MODELS[kind](num_classes, **{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})


def written(name, folder, num_classes=3, channels=3):
    """The model, its variables as the file's own network has them, and the file."""
    model = model_of(name, num_classes)
    variables = random_variables(model, jnp.zeros((1, 64, 64, channels)))
    state = to_torch(LAYOUTS[name].table(model), variables)
    state |= {key: np.ones(3, np.float32) for key in LAYOUTS[name].ignored if key not in state}
    if name != "hed":
        state["a.num_batches_tracked"] = np.ones((), np.int64)
    file = folder / f"{name}.safetensors"
    save_file(state, file)
    return model, variables, file


def import_line(name, file, out, *more):
    options = [f"{k}={','.join(map(str, v)) if isinstance(v, list) else str(v).lower()}" for k, v in SMALL[name][1].items()]
    return ["weights", "import", name, str(file), "--out", str(out), "--model", SMALL[name][0], "--options", *options, *more]


def same(a, b):
    a, b = (flatten_dict(tree, sep="/") for tree in (a, b))
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_every_layout_has_a_small_network_here_and_says_what_there_is():
    assert SMALL.keys() == LAYOUTS.keys()
    for entry in LAYOUTS.values():
        for kind, fixed in entry.models.items():
            assert fixed.keys() <= MODELS[kind].__dataclass_fields__.keys()
        named = {option.split("=")[0] for option in entry.options.split()}
        assert named <= {field for kind in entry.models for field in MODELS[kind].__dataclass_fields__}
        assert len(entry.mean) == len(entry.std) == 3
        assert 0 <= min(entry.mean) <= max(entry.mean) < 1


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_file_becomes_a_run_and_comes_back_bit_for_bit(name, tmp_path, capsys):
    model, variables, file = written(name, tmp_path)
    assert main(import_line(name, file, tmp_path / "run", *([] if name in WHOLE else ["--classes", "3"]))) == 0
    said = capsys.readouterr().out
    run = load_run(tmp_path / "run")
    assert run.model == model
    assert ("next: jaxseg predict" in said) == (name in WHOLE)
    assert ("a start for training, not a trained model" in said) == (name not in WHOLE)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.variables))
    if not LAYOUTS[name].bgr:
        places = {path for path, _ in LAYOUTS[name].table(model).values()}
        ours, theirs = flatten_dict(run.variables), flatten_dict(variables)
        for path in ours:
            assert np.array_equal(ours[path], theirs[path]) == (path in places)
    assert main(["weights", "export", str(tmp_path / "run"), name, "--out", str(tmp_path / "back.safetensors")]) == 0
    back, given = load_file(tmp_path / "back.safetensors"), load_file(file)
    assert back.keys() == LAYOUTS[name].table(model).keys()
    same(back, {key: given[key] for key in back})


@pytest.mark.parametrize("name", ["wkentaro_fcn", "smp_unet"])
def test_predict_gives_what_the_network_gave_in_its_own_convention(name, tmp_path):
    model, variables, file = written(name, tmp_path)
    assert main(import_line(name, file, tmp_path / "run", "--class-names", "a,b,c")) == 0
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "x.png")
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "x.png"), "--out", str(tmp_path / "out"), "--probabilities"]) == 0
    if name == "wkentaro_fcn":  # as in its repository's data sets
        theirs = image[:, :, ::-1].astype(np.float32) - np.array([104.00698793, 116.66876762, 122.67891434])
    else:
        theirs = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    logits = jax.jit(model.apply)(variables, theirs[None].astype(np.float32))
    got = np.load(tmp_path / "out/x_probabilities.npy")
    np.testing.assert_allclose(got, jax.nn.softmax(logits[0], -1), rtol=1e-3, atol=1e-4)
    assert np.ptp(got) > 0.04
    assert load_run(tmp_path / "run").info.class_names == ("a", "b", "c")


# ---- Other channels and classes -------------------------------------------------------------------------------------------


def test_a_grey_image_gives_what_its_rgb_copy_gave(tmp_path):
    model, variables, file = written("milesial_unet", tmp_path)
    import_weights("milesial_unet", file, tmp_path / "run", channels=1, options=SMALL["milesial_unet"][1])
    run, grey = load_run(tmp_path / "run"), random_array(1, 16, 16, 1)
    assert run.info.channels == 1
    theirs = jax.jit(model.apply, compiler_options=O0)(variables, np.repeat(grey, 3, -1))
    np.testing.assert_allclose(jax.jit(run.predict)(run.variables, grey), theirs, rtol=1e-4, atol=1e-4)


def test_channels_and_classes_are_those_of_the_file(tmp_path):
    _, variables, file = written("milesial_unet", tmp_path, num_classes=5, channels=2)
    network, new = import_weights("milesial_unet", file, tmp_path / "run", options=SMALL["milesial_unet"][1])
    run = load_run(tmp_path / "run")
    assert (network.num_classes, run.info.channels, new) == (5, 2, [])
    same(run.variables, variables)
    again = export_weights(tmp_path / "run", "milesial_unet", tmp_path / "again.safetensors")
    assert again == len(LAYOUTS["milesial_unet"].table(network))


def test_one_class_becomes_two_of_the_same_meaning(tmp_path):
    model, variables, file = written("monai_basic_unet", tmp_path, num_classes=1)
    _, new = import_weights("monai_basic_unet", file, tmp_path / "run", options=SMALL["monai_basic_unet"][1])
    run, image = load_run(tmp_path / "run"), random_array(1, 16, 16, 3)
    assert (run.info.class_names, new) == (("background", "foreground"), [])
    theirs = jax.nn.sigmoid(jax.jit(model.apply, compiler_options=O0)(variables, image))
    np.testing.assert_allclose(jax.nn.softmax(jax.jit(run.predict)(run.variables, image))[..., 1:], theirs, rtol=1e-4, atol=1e-5)


def test_usual_classes_have_their_names(tmp_path):
    _, _, file = written("torchvision_fcn", tmp_path, num_classes=21)
    import_weights("torchvision_fcn", file, tmp_path / "run", options=SMALL["torchvision_fcn"][1])
    assert load_run(tmp_path / "run").info.class_names == VOC
    assert (len(set(VOC)), VOC[15], VOC[20]) == (21, "person", "tvmonitor")


def test_other_classes_get_a_fresh_head_and_fcn_bilinear_upscoring(tmp_path):
    _, variables, file = written("wkentaro_fcn", tmp_path)
    _, new = import_weights("wkentaro_fcn", file, tmp_path / "run", classes=4, options=SMALL["wkentaro_fcn"][1])
    params = load_run(tmp_path / "run").variables["params"]
    assert new == ["score_fr", "upscore"]
    assert not params["score_fr"]["kernel"].any()
    bilinear = ops.bilinear_kernel(32)[:, :, None, None] * np.eye(4)
    np.testing.assert_allclose(params["upscore"]["kernel"], bilinear, rtol=1e-6)
    same(params["fc6"], variables["params"]["fc6"])


def test_mean_and_std_of_other_channels():
    assert preprocess("smp_unet", 3) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert preprocess("smp_unet", 4) == ([0.485, 0.456, 0.406, 0.485], [0.229, 0.224, 0.225, 0.229])
    np.testing.assert_allclose(preprocess("smp_unet", 1), [[0.449], [0.226]])


# ---- Starts of training ---------------------------------------------------------------------------------------------------


def fresh(model, channels=3):
    return random_variables(model, jnp.zeros((1, 64, 64, channels)), seed=7)


@pytest.mark.parametrize("channels", [1, 4])
def test_a_start_puts_a_foreign_encoder_into_another_model(channels, tmp_path):
    _, theirs, file = written("smp_unet", tmp_path)
    model = EncoderUNet(5, encoder="vgg16", width=2, decoder=(8, 8, 8, 8, 4), upsample=PixelShuffle)
    before = fresh(model, channels)
    after = flatten_dict(start.from_file("smp_unet", file, part="encoder")(model, before))
    for path, leaf in flatten_dict(before).items():
        if path[1:3] == ("encoder", "conv1_1") and path[3] == "kernel":
            taken = theirs["params"]["encoder"]["conv1_1"]["kernel"]
            ours = taken.sum(2, keepdims=True) if channels == 1 else taken[:, :, [0, 1, 2, 0]] * 0.75
            np.testing.assert_allclose(after[path], ours, rtol=1e-6)
        else:
            np.testing.assert_array_equal(after[path], flatten_dict(theirs)[path] if path[1] == "encoder" else leaf)
    with pytest.raises(InputError, match=r"up4_sample/conv/kernel: not in the layout; .*decoder\.blocks"):
        start.from_file("smp_unet", file)(model, before)


def test_a_classifier_begins_any_model_with_its_encoder(tmp_path):
    model = EncoderUNet(2, encoder="vgg16", width=4)
    theirs = random_variables(model, jnp.zeros((1, 64, 64, 3)))
    save_file(take_out("torchvision_vgg16", model, theirs), tmp_path / "vgg.safetensors")
    segnet = SegNet(4, features=(4, 8, 16, 32, 32))
    before = fresh(segnet)
    after = start.from_file("torchvision_vgg16", tmp_path / "vgg.safetensors")(segnet, before)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    for name, layer in theirs["params"]["encoder"].items():
        same(after["params"]["encoder"][name], layer)
    same(after["params"]["logits"], before["params"]["logits"])


def test_a_layout_of_other_models_is_refused(tmp_path):
    _, _, file = written("milesial_unet", tmp_path)
    for name, model, words in (
        ("milesial_unet", EncoderUNet(3), "milesial_unet is the layout of MilesialUNet; got EncoderUNet"),
        ("smp_unet", EncoderUNet(3, encoder="efficientnet_lite0"), "got EncoderUNet with encoder='efficientnet_lite0'"),
        ("hed", EncoderUNet(3, encoder="resnet18"), "EncoderUNet has no params/encoder/conv1_1/kernel"),
    ):
        with pytest.raises(InputError, match=words):
            start.from_file(name, file)(model, {})
    with pytest.raises(InputError, match="no weight layout 'vgg'"):
        start.from_file("vgg", file)
    with pytest.raises(InputError, match="MilesialUNet has no encoder"):
        start.from_file("milesial_unet", file, part="encoder")(model_of("milesial_unet"), fresh(model_of("milesial_unet")))


def test_fcn_goes_on_from_its_coarser_variant_and_a_model_from_its_equal(tmp_path):
    _, theirs, file = written("wkentaro_fcn", tmp_path)
    import_weights("wkentaro_fcn", file, tmp_path / "run", options=SMALL["wkentaro_fcn"][1])
    coarse = load_run(tmp_path / "run").variables
    equal = model_of("wkentaro_fcn")
    same(start.from_run(tmp_path / "run")(equal, fresh(equal)), coarse)
    finer = equal.clone(variant="16s")
    before = fresh(finer)
    after = start.from_run(tmp_path / "run")(finer, before)["params"]
    same(after["fc6"], theirs["params"]["fc6"])
    same(after["score_pool4"], before["params"]["score_pool4"])
    for other in (FCN(3, features=(4, 4, 8, 8, 6), fc_features=4, variant="32s"), MilesialUNet(3, features=(4, 8))):
        with pytest.raises(InputError, match=r"its FCN does not begin this (FCN|MilesialUNet): .*required"):
            start.from_run(tmp_path / "run")(other, fresh(other))


# ---- Bad input ------------------------------------------------------------------------------------------------------------

TENSOR = "down1.maxpool_conv.1.double_conv.0.weight"
BAD = {  # what is done to the file or asked for, and what is said
    "missing key": ({"drop": [TENSOR, "outc.conv.weight"]}, [], f"{TENSOR}: missing|outc.conv.weight: missing|2 keys do not fit"),
    "missing head": ({"drop": ["outc.conv.bias"]}, [], "outc.conv.bias: missing"),
    "missing first": ({"drop": ["inc.double_conv.0.weight"]}, [], "inc.double_conv.0.weight: missing"),
    "unknown key": ({"add": ["up9.weight", "x"]}, [], "up9.weight: unknown|x: unknown"),
    "wrong shape": ({"shape": [TENSOR]}, [], f"{TENSOR}: shape (5, 4, 3, 3), required (6, 4, 3, 3)"),
    "other options": ({}, ["--options", "features=4,8,8"], "required (8, 4, 3, 3)"),
    "no safetensors": ({"bytes": b"no weights"}, [], "milesial_unet.safetensors: no safetensors file"),
    "no file": ({"name": "gone.pth"}, [], "gone.pth: no such file"),
    "names and classes": ({}, ["--class-names", "a,b", "--classes", "3"], "--classes: got 3, and 2 --class-names (a, b)"),
    "a name twice": ({}, ["--class-names", "a,a"], "each class needs a name of its own"),
    "no classes": ({}, ["--classes", "0"], "--classes: got 0; required from 1 to 255"),
    "too many classes": ({}, ["--classes", "256"], "--classes: got 256"),
    "no channels": ({}, ["--channels", "0"], "--channels: got 0; required from 1 to 256"),
    "unknown model": ({}, ["--model", "unet"], "milesial_unet becomes milesial"),
    "unknown option": ({}, ["--options", "depth=3"], "milesial: unknown fields depth"),
    "option of a type": ({}, ["--options", "bilinear=maybe"], "MilesialUNet.bilinear: got 'maybe'"),
    "option without value": ({}, ["--options", "bilinear"], "--options bilinear: required is NAME=VALUE"),
    "classes as option": ({}, ["--options", "num_classes=3"], "given by --classes"),
}


def spoilt(file, drop=(), add=(), shape=(), name=None, **content):
    if "bytes" in content:
        file.write_bytes(content["bytes"])
    else:
        state = {key: array for key, array in load_file(file).items() if key not in drop}
        save_file(state | dict.fromkeys(add, np.ones(2, np.float32)) | {key: state[key][1:].copy() for key in shape}, file)
    return file.with_name(name) if name else file


def refused(argv, words, capsys):
    assert main(argv) == 2
    said = capsys.readouterr()
    assert said.err.startswith("jaxseg weights: error: ")
    assert said.err.count("\n") == 1
    for word in words.split("|"):
        assert word in said.err


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(case, tmp_path, capsys):
    damage, more, words = BAD[case]
    file = spoilt(written("milesial_unet", tmp_path)[2], **damage)
    refused([*import_line("milesial_unet", file, tmp_path / "run"), *more], words, capsys)
    assert not (tmp_path / "run").exists()


def test_the_file_of_another_layout_is_refused(tmp_path, capsys):
    file = written("milesial_unet", tmp_path)[2]
    refused(
        import_line("monai_basic_unet", file, tmp_path / "run"), "conv_0.conv_0.conv.weight: missing|inc.double_conv.0.weight: unk", capsys
    )
    refused(["weights", "import", "milesial", str(file), "--out", str(tmp_path / "run")], "no weight layout 'milesial'|hed", capsys)
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_written_over_and_a_file_no_folder(tmp_path, capsys):
    file = written("milesial_unet", tmp_path)[2]
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("mine")
    refused(import_line("milesial_unet", file, tmp_path / "run"), "run: holds a run already", capsys)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["run.json"]
    assert (tmp_path / "run/run.json").read_text() == "mine"
    (tmp_path / "other/checkpoints/3").mkdir(parents=True)
    refused(import_line("milesial_unet", file, tmp_path / "other"), "other: holds a run already", capsys)
    refused(import_line("milesial_unet", file, file), "is a file; required is a folder", capsys)


def test_a_run_is_exported_only_in_its_models_layout(tmp_path, capsys):
    kind = "smp_unet"
    file = written(kind, tmp_path)[2]
    assert main(import_line(kind, file, tmp_path / "run")) == 0
    run = ["weights", "export", str(tmp_path / "run")]
    capsys.readouterr()
    refused([*run, "milesial_unet", "--out", str(tmp_path / "x.safetensors")], "layout of MilesialUNet; got EncoderUNet", capsys)
    refused([*run, kind, "--out", str(tmp_path / "x.pth")], "x.pth: required is the path of a file that ends in .safetensors", capsys)
    refused(["weights", "export", str(tmp_path), kind, "--out", str(tmp_path / "x.safetensors")], "no run folder", capsys)
    model = EncoderUNet(3, encoder="vgg16", width=2, decoder=(4, 4, 8, 8, 8), upsample=PixelShuffle)
    with pytest.raises(InputError, match="smp_unet has no place for params/up"):
        take_out(kind, model, fresh(model))
    assert {p.name for p in tmp_path.iterdir()} == {"run", file.name}


def test_the_list_names_every_layout_and_the_help_gives_an_example(capsys):
    assert main(["weights", "list"]) == 0
    listed = capsys.readouterr().out
    for name, entry in LAYOUTS.items():
        assert f"{name}\n" in listed
        assert entry.reads in listed
    for command in ("list", "import", "export"):
        with pytest.raises(SystemExit):
            main(["weights", command, "--help"])
        assert f"jaxseg weights {command} " in capsys.readouterr().out


def test_nothing_of_the_file_but_numbers_is_in_the_run(tmp_path):
    _, variables, file = written("milesial_unet", tmp_path)
    import_weights("milesial_unet", file, tmp_path / "run", options=SMALL["milesial_unet"][1])
    described = json.loads((tmp_path / "run/run.json").read_text())
    assert described["options"]["layout"] == "milesial_unet"
    assert len(described["options"]["sha256"]) == 64
    assert str(tmp_path) not in json.dumps(described)
    nothing = unflatten_dict({path: np.zeros_like(leaf) for path, leaf in flatten_dict(variables).items()})
    same(bring_in("milesial_unet", load_file(file), model_of("milesial_unet"), nothing), variables)
