"""Laws of overlap-tile inference: exact tiles are the whole, bit for bit; blended ones near it; every pixel is written once."""

import itertools
import os
import subprocess
import sys
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from op_laws import spread
from random_variables import random_variables

from jaxseg.errors import InputError
from jaxseg.inference import tiles
from jaxseg.inference.tile_plan import Reach, exact_tiling, find_reach
from jaxseg.inference.tiles import tiled, tiled_regions, weights
from jaxseg.inference.whole import predict_whole
from jaxseg.models import ConvOnly, DirectHeatmap, NNUNet, UNet
from jaxseg.models.heatmap import PlainEncoder

SIZES = [(1, 1), (5, 83), (13, 50), (31, 29), (44, 45), (47, 64), (61, 61), (64, 64), (70, 97), (101, 38), (113, 127), (130, 66)]


def _image(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@cache
def _unet(padding, features=(4, 8, 8)):
    """apply, its variables and the whole image's logits."""
    model = UNet(2, features, padding=padding, norm="batch" if padding == "same" else None)
    variables = random_variables(model, jnp.zeros((1, 44, 44, 1)))
    return model.apply, variables, jax.jit(lambda v, x: predict_whole(model, v, x[None])[0])


@cache
def _tiled(padding, tile):
    return tiled(_unet(padding)[0], tile=tile, batch=2)


@pytest.mark.parametrize(("size", "padding"), spread(SIZES, ["valid", "same"]), ids=str)
def test_tiles_are_the_whole_bit_for_bit(padding, size):
    _, variables, whole = _unet(padding)
    image = _image(*size, 1)
    expected = whole(variables, image)
    for tile in (60, 64, 76):
        np.testing.assert_array_equal(_tiled(padding, tile)(variables, image), expected, err_msg=f"tile {tile}")


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_a_batch_of_images_is_each_of_them(padding):
    _, variables, whole = _unet(padding)
    image = _image(3, 70, 97, 1)
    np.testing.assert_array_equal(_tiled(padding, 60)(variables, image), np.stack([whole(variables, x) for x in image]))


def test_a_tile_of_few_pixels_takes_the_forms_of_the_whole():
    """A layer of 64 channels is computed by cells from 256 pixels on: the image has them, a tile of 15 x 15 has not."""
    model, image = ConvOnly(2, (64, 64)), _image(70, 53, 1)
    variables = random_variables(model, image[None])
    np.testing.assert_array_equal(tiled(model.apply, tile=15)(variables, image), jax.jit(model.apply)(variables, image[None])[0])


@pytest.mark.parametrize("size", [pytest.param((200, 97), marks=pytest.mark.slow), (120, 203)])
@pytest.mark.parametrize("padding", [pytest.param("valid", marks=pytest.mark.slow), "same"])
def test_wide_layers_whose_rounding_lies_in_cells(padding, size):
    """Winograd's on CPUs: the finest level in cells of 4 x 4, the next ones of 8 x 8 pixels. Small maps are computed directly."""
    apply, variables, whole = _unet(padding, (64, 64))
    image = _image(*size, 1)
    np.testing.assert_array_equal(tiled(apply, tile=96, batch=2)(variables, image), whole(variables, image))


@pytest.mark.parametrize("enlarge", ["nearest", "bilinear"])
@pytest.mark.parametrize("size", [(61, 64), (64, 62), (63, 63), (66, 97)])
def test_a_map_that_is_stretched_to_the_image_has_no_exact_tiles(enlarge, size):
    """Of an image of 61 rows a map of 16 is enlarged by 3.8, of a tile's 45 rows one of 12 by 3.75."""
    model = DirectHeatmap(2, partial(PlainEncoder, features=(4, 4)), enlarge=enlarge)
    variables = random_variables(model, _image(1, 64, 64, 1))
    predict = tiled(model.apply, tile=48)
    with pytest.raises(InputError, match=r"stretches a coarse map.* multiples of 4"):
        predict(variables, _image(*size, 1))
    for image in (_image(60, 100, 1), _image(61, 20, 1)[:40], _image(37, 96, 1)):  # of whole factors, or of one tile where they are not
        np.testing.assert_array_equal(predict(variables, image), jax.jit(model.apply)(variables, image[None])[0])


def test_a_model_that_was_compiled_before_is_planned_alike():
    """What layers say of themselves while they are traced is not heard of a program that JAX has kept."""
    model = DirectHeatmap(2, partial(PlainEncoder, features=(4, 4)))
    image = _image(61, 64, 1)
    apply, variables = model.apply, random_variables(model, image[None])
    whole = jax.jit(apply)
    whole(variables, image[None])
    with pytest.raises(InputError, match="stretches a coarse map"):
        tiled(apply, tile=48)(variables, image)
    wide = ConvOnly(2, (64, 64))
    apply, variables, image = wide.apply, random_variables(wide, image[None]), _image(70, 53, 1)
    whole = jax.jit(apply)
    expected = whole(variables, image[None])[0]
    np.testing.assert_array_equal(tiled(apply, tile=15)(variables, image), expected)


@pytest.mark.parametrize("size", [(26, 114), (53, 53), *(pytest.param(size, marks=pytest.mark.slow) for size in ((88, 88), (107, 67)))])
def test_cells_of_an_unpadded_model_end_where_the_whole_s_do(size):
    """Its coarsest level is computed in cells of 4 x 4; the last ones are cut by the whole's end, and round by what is left of them."""
    model = UNet(2, (16, 32, 64))
    variables, image = random_variables(model, _image(1, 60, 60, 1)), _image(*size, 1)
    expected = jax.jit(lambda v, x: predict_whole(model, v, x[None])[0])(variables, image)
    np.testing.assert_array_equal(tiled(model.apply, tile=88)(variables, image), expected)


def _compiled(f):
    """How many programs f compiles."""
    events = []

    def listen(event, duration, **_):
        events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    f()
    jax.monitoring.clear_event_listeners()
    return sum("backend_compile" in e for e in events)


def test_one_compile_serves_all_sizes():
    """Of a model that shrinks its image; of a padded one all that leave the same remainder by its stride."""
    for padding, sizes in (("valid", SIZES), ("same", [(101, 130), (81, 90), (129, 98)])):
        apply, variables, _ = _unet(padding)
        predict = tiled(apply, tile=60, batch=4)
        assert _compiled(lambda predict=predict, v=variables, s=sizes: predict(v, _image(*s[0], 1))) > 0
        assert _compiled(lambda predict=predict, v=variables, s=sizes: [predict(v, _image(*size, 1)) for size in s[1:]]) == 0


@pytest.mark.parametrize("blend", [None, "gaussian", "linear"])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_each_pixel_is_written_exactly_once(padding, blend):
    apply, variables, _ = _unet(padding)
    if padding == "valid" and blend:
        with pytest.raises(InputError, match=r"60 x 60 pixels; required is one that pads"):
            tiled(apply, tile=60, blend=blend)(variables, _image(9, 9, 1))
        return
    for shape in [(101, 38, 1), (2, 61, 131, 1), (7, 5, 1)]:
        image, written = _image(*shape), np.zeros(shape[:-1], int)
        for where, values in tiled_regions(apply, tile=60, blend=blend)(variables, image):
            assert values.shape == (*written[where].shape, 2)
            written[where] += 1
        assert (written == 1).all()


@pytest.mark.parametrize("blend", [None, "crop", "linear"])
def test_classes_are_the_largest_logits(blend):
    apply, variables, _ = _unet("same")
    image = _image(2, 101, 70, 1)
    logits, classes = (list(tiled_regions(apply, tile=60, blend=blend, classes=c)(variables, image)) for c in (False, True))
    assert len({int(c) for _, values in classes for c in np.unique(values)}) == 2
    for (where, values), (other, found) in zip(logits, classes, strict=True):
        assert where == other
        assert found.dtype == np.uint16
        np.testing.assert_array_equal(found, values.argmax(-1))


def test_the_next_tiles_are_read_while_some_are_computed():
    """Up to the second batch is read before the first is given out, and never more."""

    class Watched:
        shape, read = (160, 16, 1), 0

        def __getitem__(self, where):
            self.read += 1
            return np.ones((160, 16, 1), np.float32)[where]

    image, taken = Watched(), 0
    for _ in tiled_regions(lambda _, x: 2 * x, tile=16, batch=2)((), image):
        assert image.read == min(taken // 2 * 2 + 4, 10)
        taken += 1
    assert taken == 10


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_the_halo_is_sufficient_and_necessary(padding):
    """A tile cut out of a large image is right from the first output that sees the tile alone on, and not one before."""
    apply, variables, _ = _unet(padding)
    apply = jax.jit(partial(apply, variables))
    reach = find_reach(apply, 1, 64, (64, 64))[0]
    assert len(reach.first) == 4
    image, offset, side = _image(1, 140, 140, 1), 40, 60
    whole, cut = apply(image), apply(image[:, offset : offset + side, offset : offset + side])
    start, end = reach.right(side)
    assert (start, end) == ((0, side - reach.shrink) if padding == "valid" else (start, end))
    wrong = np.asarray(whole[:, offset : offset + cut.shape[1], offset : offset + cut.shape[2]] != cut)[0].any(-1)
    assert not wrong[start:end, start:end].any()
    if padding == "same":
        assert 10 < start < end < 50
        assert wrong[start - 1, start:end].any()
        assert wrong[end, start:end].any()
        assert wrong[start:end, start - 1].any()
        assert wrong[start:end, end].any()


def test_one_pixel_less_of_halo_is_seen():
    """The equality above can fail: with a field that claims less, or tiles out of step, some logits differ."""
    apply, variables, whole = _unet("same")
    image = _image(130, 60, 1)
    reach = find_reach(partial(apply, variables), 1, 64, (108, 108))[0]
    for wrong in (reach._replace(first=reach.first + 1), reach._replace(last=reach.last - 1), Reach(reach.first[:1], reach.last[:1], 0)):
        rows = exact_tiling(130, 60, wrong, lambda n: n)
        step = jax.jit(partial(apply, variables))
        parts = [
            step(image[None, o : o + rows.side])[0, lo - o : hi - o]
            for o, lo, hi in zip(rows.offsets, rows.edges[:-1], rows.edges[1:], strict=True)
        ]
        assert (np.concatenate(parts) != whole(variables, image)).any()


@pytest.mark.parametrize("length", [1, 59, 60, 61, 97, 128, 400])
@pytest.mark.parametrize("shrink", [0, 16])
@pytest.mark.parametrize("period", [1, 4, 16])
def test_the_plan_covers_the_image_by_tiles_in_step(length, shrink, period):
    phase = np.arange(period)
    reach = Reach(-9 + shrink // 2 - phase % 4, 9 + shrink // 2 + (3 - phase % 4), shrink)
    plan = exact_tiling(length, 64, reach, lambda n: n)
    start, end = reach.right(plan.side)
    assert plan.side <= 64
    assert plan.edges[0] == 0
    assert plan.edges[-1] == length
    assert list(plan.edges) == sorted(set(plan.edges))
    for k, offset in enumerate(plan.offsets):
        assert offset % period == 0
        assert k == 0 or plan.edges[k] >= offset + start
        assert offset + plan.side == plan.whole or plan.edges[k + 1] <= offset + end


def test_no_exact_tiles_of_a_model_that_sees_all_of_the_image():
    image = _image(100, 100, 1)
    for model in (UNet(2, (3, 4), padding="same", norm="group"), NNUNet(2, (3, 4))):
        variables = random_variables(model, image[None])
        with pytest.raises(InputError, match=r"depends on all of them: by an instance or group norm.*blend='gaussian'"):
            tiled(model.apply, tile=48)(variables, image)
        assert np.isfinite(tiled(model.apply, tile=48, blend="gaussian")(variables, image)).all()


def test_no_exact_tiles_smaller_than_a_field():
    apply, variables, whole = _unet("same")
    image = _image(100, 101, 1)
    with pytest.raises(InputError, match=r"an output sees up to \d+ pixels.*at least \d+, or blend") as refused:
        tiled(apply, tile=40)(variables, image)
    least = int(str(refused.value).split("at least ")[1].split(",")[0])
    np.testing.assert_array_equal(tiled(apply, tile=least)(variables, image), whole(variables, image))


def test_blended_tiles_have_no_seams_where_naive_ones_do():
    """Against the whole: the mean error, and the largest step of it from a pixel to the next, which is what is seen as a seam."""
    apply, variables, whole = _unet("same")
    image = _image(150, 170, 1)
    expected = np.asarray(whole(variables, image))
    step = jax.jit(apply)

    def errors(logits):
        error = logits - expected
        return np.abs(error).mean(), max(np.abs(np.diff(error, axis=axis)).max() for axis in (0, 1))

    naive = np.empty_like(expected)
    for y, x in itertools.product(range(0, 150, 64), range(0, 170, 64)):
        naive[y : y + 64, x : x + 64] = step(variables, image[None, y : y + 64, x : x + 64])[0]
    mean, seam = errors(naive)
    for blend in ("gaussian", "linear"):
        blended = errors(tiled(apply, tile=64, blend=blend, overlap=0.5)(variables, image))
        assert 0 < blended[0] < 0.3 * mean
        assert 0 < blended[1] < 0.2 * seam


@pytest.mark.parametrize("blend", ["gaussian", "linear"])
def test_the_weights_sum_to_one_and_lie_about_the_middle(blend):
    for side in (1, 2, 9, 64):
        w = weights(side, blend)
        assert w.min() > 0
        np.testing.assert_array_equal(w, w[::-1])
        assert w.argmax() in (side // 2, (side - 1) // 2)
    image = _image(150, 97, 3)
    np.testing.assert_allclose(tiled(lambda _, x: 2 * x, tile=64, blend=blend)((), image), 2 * image, rtol=1e-5, atol=1e-6)


class Slices:
    """An image that can only be sliced, and remembers the largest slice."""

    def __init__(self, image):
        self.image, self.shape, self.largest = image, image.shape, 0

    def __getitem__(self, where):
        assert all(isinstance(s, slice) for s in where)
        part = self.image[where]
        self.largest = max(self.largest, part.size)
        return part


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_an_image_is_read_tile_by_tile(padding):
    _, variables, whole = _unet(padding)
    image = Slices(_image(300, 200, 1))
    np.testing.assert_array_equal(_tiled(padding, 64)(variables, image), whole(variables, image.image))
    assert image.largest <= 64 * 64


def test_where_memory_runs_out_half_as_many_tiles_go_on():
    """A real failure: with more than two tiles the function asks for petabytes."""
    batches = []

    def apply(_, x):
        batches.append(len(x))
        if len(x) > 2:
            x = x + jnp.sort(jnp.broadcast_to(x[:1, :1, :1, :1] * jnp.arange(1 << 20), (1 << 10, 16, 16, 1 << 20)), 0).sum()
        return x * 2

    image = _image(100, 90, 1)
    np.testing.assert_array_equal(tiled(apply, tile=32, batch=16, blend="linear", overlap=0)((), image).shape, image.shape)
    assert batches[-4:] == [16, 8, 4, 2]


@pytest.mark.parametrize(("room", "sizes"), [(8, {4}), (7, {4}), (4, {4}), (3, {4, 2}), (2, {4, 2}), (1, {4, 2, 1})])
def test_as_many_tiles_are_computed_at_a_time_as_there_is_room_for(room, sizes):
    """Of a device that keeps results until they are given out: two batches, then one, then one of half as many tiles."""
    live, asked = [], []

    class Result:
        def __init__(self, places):
            live.append(self)
            self.places = places

        def __array__(self, dtype=None, copy=None):
            live.remove(self)
            return np.array(self.places)

    def compute(places):
        asked.append(len(places))
        if sum(len(result.places) for result in live) + len(places) > room:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: full")
        return Result(places)

    found = list(tiles._in_batches(compute, list(range(13)), 4, 1, lambda _: None))
    assert found == [(place, place) for place in range(13)]
    assert set(asked) == sizes
    assert len(asked) - -(-13 // min(sizes)) <= len(sizes) + 1  # hardly any is computed twice


def test_no_memory_for_one_tile_is_said_and_other_failures_pass():
    def failing(message):
        def compute(_):
            raise jax.errors.JaxRuntimeError(message)

        return lambda _, x: jax.pure_callback(compute, x, x)

    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL: broken"):
        tiled(failing("INTERNAL: broken"), tile=32, batch=4, blend="linear")((), _image(40, 40, 1))
    with pytest.raises(InputError, match=r"no memory for 1 tiles at a time.*smaller tile"):
        tiled(failing("RESOURCE_EXHAUSTED: full"), tile=32, batch=4, blend="linear")((), _image(40, 40, 1))


@pytest.mark.parametrize("wrong", [{"tile": 0}, {"batch": 0}, {"blend": "cubic"}, {"overlap": 1.0}])
def test_wrong_numbers_are_refused(wrong):
    with pytest.raises(InputError, match="required tile and batch from 1"):
        tiled(lambda _, x: x, **wrong)


@pytest.mark.parametrize("shape", [(5, 5), (0, 5, 1), (1, 2, 3, 4, 1)])
def test_wrong_images_are_refused(shape):
    with pytest.raises(InputError, match="required \\[H, W, C\\]"):
        tiled(lambda _, x: x)((), np.zeros(shape, np.float32))


SPLIT = """
import jax, numpy as np, jax.numpy as jnp
from random_variables import random_variables
from jaxseg.models import UNet
from jaxseg.inference.tiles import tiled
model = UNet(2, (4, 8, 8), padding="same", norm="batch")
image = np.random.default_rng(0).normal(size=(130, 66, 1)).astype(np.float32)
variables = random_variables(model, image[None])
assert len(jax.devices()) == 4
seen = []
def apply(variables, x):
    seen.append(len(x))
    return model.apply(variables, x)
logits = tiled(apply, tile=60, batch=5)(variables, image)
assert seen[-1] == 8, seen
np.testing.assert_array_equal(logits, jax.jit(model.apply)(variables, image[None])[0])
"""


def test_tiles_are_split_over_all_devices():
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "PYTHONPATH": os.path.dirname(__file__)}
    done = subprocess.run([sys.executable, "-c", SPLIT], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
