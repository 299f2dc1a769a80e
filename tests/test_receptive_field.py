"""Laws of the receptive field read off the traced function: it is what perturbing single pixels shows, and what the papers say."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from random_variables import random_variables

from jaxseg import ops
from jaxseg.errors import InputError
from jaxseg.heatmaps import layers
from jaxseg.models.conv_only import ConvOnly
from jaxseg.models.fcn import FCN
from jaxseg.models.heatmap import DirectHeatmap, PlainEncoder
from jaxseg.models.segnet import SegNet
from jaxseg.models.unet import UNet
from jaxseg.receptive_field import ReceptiveField, fields, fields_of_maps, receptive_field
from jaxseg.upsample import UPSAMPLERS

Tiny = partial(UNet, num_classes=2, features=(2, 3, 2))


def _traced(model):
    return lambda image: model.init_with_output(jax.random.key(0), image)[0]


def _reached(apply, shape):
    """Of each output row, the first and last image row in which a single pixel of 1 on an image of zeros reaches it; columns likewise."""
    found = []
    for axis in (1, 2):
        side, middle = shape[axis], shape[3 - axis] // 2
        image = np.zeros((side, *shape[1:]), np.float32)
        at = (np.arange(side), middle) if axis == 1 else (middle, np.arange(side))
        image[np.arange(side), at[0], at[1]] = 1
        hit = np.asarray(jax.jit(apply)(image)).any(axis=(3 - axis, 3)).T  # output lines, perturbed lines
        found.append((hit.argmax(1), side - 1 - hit[:, ::-1].argmax(1)))
    return found


def _positive(model, shape):
    """The model with kernels above 0 and biases of 0: on an image of zeros, a single pixel makes a value above 0 wherever it reaches."""

    def positive(path, x):
        return 0.1 + abs(x) if path[-1].key == "kernel" else 0 * x

    variables = jax.tree_util.tree_map_with_path(positive, random_variables(model, jnp.zeros(shape)))
    return lambda image: model.apply(variables, image)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (ConvOnly(2, features=(2, 3)), (1, 12, 9, 1)),
        *((DirectHeatmap(2, partial(PlainEncoder, (2, 3, 2)), enlarge), (1, 41, 48, 1)) for enlarge in (None, "nearest", "bilinear")),
        (DirectHeatmap(2, partial(PlainEncoder, (2, 3, 2), dilated=True), None), (1, 41, 48, 1)),
        (Tiny(), (1, 68, 76, 1)),
        *(
            (Tiny(padding="same", upsample=UPSAMPLERS[name]), (1, 61, 72, 1))
            for name in ("transposed", "nearest", "bilinear", "pixel_shuffle")
        ),
        *((Tiny(padding="same", upsample=UPSAMPLERS[name]), (1, 61, 72, 1)) for name in ("transposed_overlap", "zero_insert")),
    ],
)
def test_the_field_of_every_output_is_what_single_pixels_reach(model, shape):
    computed, measured = fields(_traced(model), shape), _reached(_positive(model, shape), shape)
    for (first, last), (least, most) in zip(computed, measured, strict=True):
        np.testing.assert_array_equal(first, least)
        np.testing.assert_array_equal(last, most)


def _lines_reached(model, shape, lines, trials):
    """Of each layer and axis, the first and the last output line that each of the image's `lines` has a derivative in, of random networks.

    Derivatives do not round away beside larger numbers, and random signs let each pixel of a pooling window be its maximum in some place.
    """
    r = np.random.default_rng(0)
    count = len(lines[0])
    tangents = np.zeros((2 * count, *shape), np.float32)
    for k, (row, column) in enumerate(zip(*lines, strict=True)):
        tangents[k, :, row] = r.normal(size=(shape[0], *shape[2:]))
        tangents[count + k, :, :, column] = r.normal(size=(shape[0], shape[1], shape[3]))

    @jax.jit
    def hit(variables, image):
        def derivative(tangent):
            return jax.jvp(partial(layers(model.apply), variables), (image,), (tangent,))[1]

        along = jax.vmap(derivative)(tangents)
        return {name: ((x[:count] != 0).any((1, 3, 4)), (x[count:] != 0).any((1, 2, 4))) for name, x in along.items()}

    found = [
        hit(random_variables(model, np.zeros(shape, np.float32), seed=k), r.normal(size=shape).astype(np.float32)) for k in range(trials)
    ]
    return jax.tree.map(lambda *hits: _ends(np.any(hits, 0)), *found)


def _ends(lines):
    return lines.argmax(1), lines.shape[1] - 1 - lines[:, ::-1].argmax(1)


NETS = {
    "unet": (Tiny(), (1, 68, 76, 1)),
    "segnet": (
        SegNet(2, features=(3,) * 5),
        (1, 64, 96, 1),
    ),  # multiples of 32: behind an odd side no maximum lies, which the trace does not know
    "fcn": (FCN(2, features=(3,) * 5, fc_features=4), (1, 56, 48, 1)),
    "unet_large": (UNet(2, features=(3,) * 5), (1, 236, 220, 1)),
    "segnet_large": (SegNet(2, features=(3,) * 5), (1, 448, 96, 1)),
    "fcn_large": (FCN(2, features=(3,) * 5, fc_features=4), (1, 416, 64, 1)),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in ("unet", "segnet"))) for n in NETS])
def test_the_field_of_every_layer_is_where_its_derivatives_are(name):
    model, shape = NETS[name]
    lines = [np.unique(np.linspace(0, side - 1, 8).astype(int)) for side in shape[1:3]]
    variables = random_variables(model, np.zeros(shape, np.float32))
    computed = fields_of_maps(partial(layers(model.apply), variables), shape)
    reached = _lines_reached(model, shape, lines, trials=4)
    assert computed.keys() == reached.keys()
    for layer, axes in computed.items():
        for (first, last), hit, where in zip(axes, reached[layer], lines, strict=True):
            np.testing.assert_array_equal(_ends((first <= where[:, None]) & (where[:, None] <= last)), hit, err_msg=layer)


def test_lines_that_see_padding_alone_are_empty():
    found = fields_of_maps(lambda x: {"all": jnp.pad(x, ((0, 0), (3, 2), (0, 0), (0, 0))), "none": jnp.ones((1, 4, 5, 1))}, (1, 6, 7, 1))
    (first, last), columns = found["all"]
    assert first.tolist() == [6, 6, 6, 0, 1, 2, 3, 4, 5, 6, 6]
    assert last.tolist() == [-1, -1, -1, 0, 1, 2, 3, 4, 5, -1, -1]
    np.testing.assert_array_equal(columns, [range(7)] * 2)
    assert all((first > last).all() for first, last in found["none"])


def _layers(x, groups, stride, dilation, padding):
    x = jnp.concatenate([x[:, ::-1], jnp.zeros_like(x[:, :2])], axis=1)
    x = ops.space_to_depth(x[:, :-1, 1:-1], 2)
    ones = jnp.ones((2, 3, x.shape[-1] // groups, 4))
    x = lax.conv_general_dilated(x, ones, stride, padding, (1, 2), dilation, ("NHWC", "HWIO", "NHWC"), feature_group_count=groups)
    x = lax.reduce_window(x, 0.0, lax.add, (1, 3, 2, 1), (1, 1, 2, 1), "VALID")
    a, b = jnp.split(x @ jnp.ones((4, 6)), 2, axis=-1)
    return jnp.stack([a, 0 * a + jnp.einsum("nhwc,cd->nhwd", b, jnp.ones((3, 3)))], axis=3).max(3)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(("stride", "dilation", "padding"), [((1, 2), (2, 1), ((0, 0), (3, 1))), ((2, 1), (1, 3), ((1, 0), (-1, 2)))])
def test_the_field_through_any_primitive_is_what_single_pixels_reach(groups, stride, dilation, padding):
    apply, shape = partial(_layers, groups=groups, stride=stride, dilation=dilation, padding=padding), (1, 35, 28, 1)
    for (first, last), (least, most) in zip(fields(apply, shape), _reached(apply, shape), strict=True):
        np.testing.assert_array_equal(first, least)
        np.testing.assert_array_equal(last, most)


@pytest.mark.parametrize("layers", [1, 4, 6])
def test_convolutions_alone_see_one_pixel_more_each_way_and_layer(layers):
    model = ConvOnly(2, features=(2,) * layers)
    assert receptive_field(_traced(model), (1, 40, 44, 3)) == (ReceptiveField(1 + 2 * layers, 1, -layers),) * 2


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_a_dilated_encoder_sees_what_the_strided_one_does(levels):
    size, stride = 1, 1  # the textbook's recursion
    for _ in range(levels):
        size, stride = size + 3 * stride, 2 * stride  # a 3x3 convolution, then a 2x2 pooling
    shape = (1, size + 4 * stride, size + 5 * stride, 1)
    for dilated in (False, True):
        encoder = partial(PlainEncoder, (2,) * levels, dilated=dilated)
        rows, columns = receptive_field(_traced(DirectHeatmap(2, encoder, None)), shape)
        assert rows == columns == ReceptiveField(size, 1 if dilated else stride, 1 - stride)


def test_the_papers_unet_sees_188_or_204_pixels():
    # 4 or 5 pixels of the coarsest map, which see 140 and are 16 apart. The smallest image, of 188, has 4 of them and an output of 4.
    model = UNet(2, features=(1, 1, 1, 1, 1))
    for first, last in fields(_traced(model), (1, 188, 188, 1)):
        assert first.tolist() == [0] * 4
        assert last.tolist() == [187] * 4
    assert receptive_field(_traced(model), (1, 268, 284, 1)) == (ReceptiveField(204, 1, -15),) * 2
    assert receptive_field(_traced(model.clone(padding="same")), (1, 320, 300, 1)) == (ReceptiveField(204, 1, -107),) * 2


def test_width_and_type_do_not_matter_in_bfloat16():
    # Nor in float32, but for Winograd's cells, through which rounding reaches further.
    assert receptive_field(_traced(ConvOnly(2, (64, 64), dtype=jnp.bfloat16)), (1, 32, 32, 3)) == (ReceptiveField(5, 1, -2),) * 2


def test_upsampling_has_a_fraction_as_stride():
    rows, columns = receptive_field(lambda x: jnp.repeat(ops.max_pool(x, (3, 1), (3, 1)), 2, 2), (1, 24, 12, 1))
    assert rows == ReceptiveField(3, 3, 0)
    assert columns == ReceptiveField(1, 0.5, -1)


@pytest.mark.parametrize(
    ("apply", "words"),
    [
        (lambda x: ops.max_pool(x, 8), "outputs see up to 8, and 0 outputs see no border, too few to tell the stride. Take a larger image"),
        (lambda x: x - x.mean((1, 2), keepdims=True), "unless a global operation"),
        (lambda x: jnp.sort(x, 1), "`apply` uses sort"),
        (lambda x: lax.cumsum(x, 1), "`apply` uses cumsum"),
        (lambda x: jnp.pad(x, ((0, 0), (3, 2), (0, 0), (0, 0))), "5 of 21 output lines depend on no pixel"),
        (lambda x: 0 * jnp.ones((1, 4, 4, 1)), "4 of 4 output lines depend on no pixel"),
        (lambda x: x[0], "required maps [N, H, W, K]"),
    ],
)
def test_what_cannot_be_told_is_an_error(apply, words):
    with pytest.raises(InputError) as error:
        receptive_field(apply, (1, 16, 16, 1))
    assert words in str(error.value)
    with pytest.raises(InputError, match="got the image shape"):
        receptive_field(apply, (16, 16, 1))
