"""Laws of the joint augmentation: keyed, jittable, aligned, and exact where nothing is to be done."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.data import augment as A
from jaxseg.errors import InputError

GEOMETRY = {
    "flip": A.flip,
    "rot90": A.rot90,
    "crop": partial(A.crop, size=(20, 24)),
    "elastic": partial(A.elastic, std_px=3.0),
    "scale": A.scale,
    "affine": A.affine,
    "warp": partial(A.warp, rotate_degrees=30.0, zoom=(0.5, 0.9), shear_degrees=10.0, shift_px=5.0, elastic_px=2.0, elastic_grid=4),
}
INTENSITY = {"brightness": A.brightness, "contrast": A.contrast, "gamma": A.gamma, "noise": A.noise}
ALL = GEOMETRY | INTENSITY
NEUTRAL = {
    "elastic": partial(A.elastic, std_px=0.0),
    "scale": partial(A.scale, zoom=(1.0, 1.0)),
    "affine": partial(A.affine, rotate_degrees=0.0, zoom=(1.0, 1.0), shear_degrees=0.0, shift_px=0.0),
    "flip": partial(A.flip, vertical=False, horizontal=False),
    "crop": partial(A.crop, size=32),
    "brightness": partial(A.brightness, delta=0.0),
    "contrast": partial(A.contrast, factor=(1.0, 1.0)),
    "gamma": partial(A.gamma, exponent=(1.0, 1.0)),
    "noise": partial(A.noise, std=0.0),
}


def example(seed=0, height=32, width=32, channels=2, values=(0, 1, 7, 255, 65535)):
    rng = np.random.default_rng(seed)
    label = rng.choice(np.array(values, np.int32), (height // 4, width // 4)).repeat(4, 0).repeat(4, 1)
    return {
        "image": jnp.asarray(rng.uniform(size=(height, width, channels)), jnp.float32),
        "label": jnp.asarray(label),
        "weight": jnp.asarray(rng.uniform(size=(height, width)), jnp.float32),
    }


@pytest.mark.parametrize("name", ALL)
def test_keyed_pure_jittable_and_compiled_once(name):
    function, one, traces = ALL[name], example(), []
    jitted = jax.jit(lambda key, example: traces.append(name) or function(key, example))
    first = jitted(jax.random.key(3), one)
    chex.assert_trees_all_equal(first, jitted(jax.random.key(3), one))
    assert any(np.any(np.asarray(jitted(jax.random.key(k), one)["image"]) != np.asarray(first["image"])) for k in range(4, 12))
    assert len(traces) == 1
    eager = function(jax.random.key(3), one)
    np.testing.assert_array_equal(eager["label"], first["label"])
    chex.assert_trees_all_close(first, eager, atol=1e-4)
    assert {k: v.dtype for k, v in first.items()} == {k: v.dtype for k, v in one.items()}
    size = (20, 24) if name == "crop" else (32, 32)
    assert {k: v.shape for k, v in first.items()} == {"image": (*size, 2), "label": size, "weight": size}


@pytest.mark.parametrize("name", GEOMETRY)
def test_label_values_are_never_mixed(name):
    for seed in range(3):
        out = jax.jit(GEOMETRY[name])(jax.random.key(seed), example(seed))
        assert set(np.unique(out["label"])) <= {0, 1, 7, 255, 65535}


@pytest.mark.parametrize("name", GEOMETRY)
def test_image_weight_and_label_move_together(name):
    """Image and weight paint the label: wherever no neighbour of another class was mixed in, they still say the same."""
    one = example(values=(0, 1, 2, 3), height=64, width=64)
    paint = one["label"].astype(jnp.float32) / 4
    one |= {"image": jnp.stack([paint, (3 - one["label"]) / 4], -1), "weight": paint}
    function = partial(A.crop, size=48) if name == "crop" else GEOMETRY[name]
    for seed in range(3):
        out = jax.tree.map(np.asarray, jax.jit(function)(jax.random.key(seed), one))
        np.testing.assert_allclose(out["weight"], out["image"][..., 0], atol=1e-6)
        np.testing.assert_allclose(out["image"].sum(-1), 0.75, atol=1e-6)
        whole = np.abs(out["weight"] * 4 - np.round(out["weight"] * 4)) < 1e-5
        agree = np.abs(out["label"] / 4 - out["weight"]) < 1e-5
        # A mixture can be a whole number by chance (0 and 2 to 1), rarely: away from the edges all agree.
        assert agree[whole].mean() > 0.98
        assert agree.mean() > 0.4
        assert np.abs(out["label"] / 4 - out["weight"]).max() <= 0.75


def test_order_0_and_order_1_read_the_same_place():
    """A smooth ramp shows where each pixel was read: the label's place is the image's, rounded."""
    height, width = 40, 60
    y, x = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    one = {"image": jnp.stack([y, x], -1).astype(jnp.float32), "label": y * width + x}
    out = jax.jit(GEOMETRY["warp"])(jax.random.key(1), one)
    read = np.stack([out["label"] // width, out["label"] % width], -1)
    assert np.abs(read - out["image"]).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_options_are_the_identity(name):
    one = example()
    chex.assert_trees_all_equal(jax.jit(NEUTRAL[name])(jax.random.key(5), one), one)


@pytest.mark.parametrize("function", [A.flip, partial(A.flip, vertical=False)])
def test_flip_twice_is_the_identity(function):
    one, key = example(width=48), jax.random.key(1)
    chex.assert_trees_all_equal(function(key, function(key, one)), one)


def test_flip_and_rot90_reach_exactly_the_symmetries():
    image = np.arange(9.0).reshape(3, 3, 1)
    one = {"image": jnp.asarray(image, jnp.float32), "label": jnp.arange(9).reshape(3, 3)}
    keys = jax.random.split(jax.random.key(0), 64)
    turned = jax.vmap(A.rot90, (0, None))(keys, one)["label"]
    flipped = jax.vmap(A.flip, (0, None))(keys, one)["label"]
    square = np.arange(9).reshape(3, 3)
    assert {x.tobytes() for x in np.asarray(turned)} == {np.rot90(square, k).astype(np.int32).tobytes() for k in range(4)}
    assert {x.tobytes() for x in np.asarray(flipped)} == {square[::a, ::b].astype(np.int32).tobytes() for a in (1, -1) for b in (1, -1)}


def test_crop_is_a_window_and_reaches_both_ends():
    one = {"image": jnp.zeros((5, 6, 1)), "label": jnp.arange(30).reshape(5, 6)}
    keys = jax.random.split(jax.random.key(0), 100)
    out = np.asarray(jax.vmap(partial(A.crop, size=(4, 4)), (0, None))(keys, one)["label"])
    windows = {np.arange(30, dtype=np.int32).reshape(5, 6)[r : r + 4, c : c + 4].tobytes() for r in range(2) for c in range(3)}
    assert {x.tobytes() for x in out} == windows


def test_the_border_is_mirrored():
    one = {"image": jnp.arange(5.0).reshape(1, 5, 1), "label": jnp.arange(5).reshape(1, 5)}
    x = jnp.array([[-1.0, -2.5, 4.0, 5.0, 9.0]])
    out = A.resample(one, jnp.full((1, 5), 3.0), x)
    np.testing.assert_allclose(out["image"][0, :, 0], [1, 2.5, 4, 3, 1], atol=1e-5)
    np.testing.assert_array_equal(out["label"][0], [1, 2, 4, 3, 1])


def test_cubic_matrix_interpolates_and_keeps_constants():
    matrix = A.cubic_matrix(33, 5)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(matrix[::8], np.eye(5))


def test_elastic_displaces_the_nodes_by_the_standard_deviation():
    """The read place minus the own place, at the centre node, over many keys: mean 0, deviation std_px in both components."""
    n = 65
    y, x = jnp.meshgrid(jnp.arange(n), jnp.arange(n), indexing="ij")
    one = {"image": jnp.stack([y, x], -1).astype(jnp.float32), "label": y}
    function = jax.jit(lambda key: A.elastic(key, one, std_px=4.0)["image"][n // 2, n // 2])
    moved = np.stack([function(key) for key in jax.random.split(jax.random.key(0), 400)]) - n // 2
    assert np.abs(moved.mean(0)).max() < 0.8
    assert np.abs(moved.std(0) - 4).max() < 0.5


@pytest.mark.parametrize("name", INTENSITY)
def test_intensities_leave_label_and_weight_alone(name):
    one = example()
    out = INTENSITY[name](jax.random.key(0), one)
    assert np.abs(out["image"] - one["image"]).max() > 0
    np.testing.assert_array_equal(out["label"], one["label"])
    np.testing.assert_array_equal(out["weight"], one["weight"])


def test_a_batch_is_its_examples():
    functions = (A.affine, A.flip, A.rot90, A.elastic, A.brightness, A.contrast, A.gamma, A.noise)
    keys = jax.random.split(jax.random.key(2), 3)
    examples = [example(seed) for seed in range(3)]
    batch = jax.jit(partial(A.augment_batch, functions))(keys, jax.tree.map(lambda *x: jnp.stack(x), *examples))
    single = jax.jit(partial(A.augment, functions))
    for i, one in enumerate(examples):
        out = single(keys[i], one)
        np.testing.assert_array_equal(batch["label"][i], out["label"])
        chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], batch), out, atol=1e-4)


def test_each_function_of_the_tuple_has_its_own_key_and_none_is_the_identity():
    one, key = example(), jax.random.key(0)
    chex.assert_trees_all_equal(A.augment((), key, one), one)
    twice = A.augment((A.noise, A.noise), key, one)["image"] - one["image"]
    once = A.augment((A.noise,), key, one)["image"] - one["image"]
    assert np.abs(np.asarray(twice - 2 * once)).max() > 1e-3


def test_one_pixel_wide_examples_survive():
    one = example(height=4, width=32)
    one = {name: value[:1] for name, value in one.items()}
    out = A.elastic(jax.random.key(0), one)
    assert out["image"].shape == (1, 32, 2)
    assert np.isfinite(out["image"]).all()


@pytest.mark.parametrize(
    ("function", "change"),
    [
        (A.rot90, {}),
        (partial(A.crop, size=33), {}),
        (partial(A.crop, size=0), {}),
        (partial(A.scale, zoom=(0.0, 1.0)), {}),
        (partial(A.scale, zoom=(2.0, 1.0)), {}),
        (partial(A.elastic, std_px=-1.0), {}),
        (partial(A.elastic, grid=1), {}),
        (partial(A.affine, shear_degrees=90.0), {}),
        (partial(A.gamma, exponent=(-1.0, 1.0)), {}),
        (partial(A.noise, std=float("nan")), {}),
        (A.flip, {"label": jnp.zeros((32, 47), int)}),
        (A.flip, {"label": jnp.zeros((32, 48))}),
        (A.flip, {"image": jnp.zeros((32, 48, 1), jnp.uint8)}),
        (A.flip, {"instances": jnp.zeros((32, 48), int)}),
    ],
)
def test_bad_input_is_an_input_error(function, change):
    with pytest.raises(InputError):
        function(jax.random.key(0), example(width=48) | change)


def test_one_key_for_a_batch_is_an_input_error():
    batch = jax.tree.map(lambda x: x[None], example())
    with pytest.raises(InputError, match="one key an example"):
        A.augment_batch((A.flip,), jax.random.key(0), batch)
