"""Laws of shift-and-stitch: it equals the same net with its strides turned into dilation, inside the border exactly."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from random_variables import random_variables

from jaxseg.errors import InputError
from jaxseg.inference.shift_and_stitch import shift_and_stitch
from jaxseg.models.heatmap import DirectHeatmap, PlainEncoder
from jaxseg.receptive_field import receptive_field


def _nets(features, **fields):
    """The strided and the dilated net."""
    return [DirectHeatmap(2, partial(PlainEncoder, features, dilated=dilated, **fields), enlarge=None) for dilated in (False, True)]


def _integers(tree, seed=0):
    """Small integers: sums of their products are exact in float32, in any order."""
    r = np.random.default_rng(seed)
    return jax.tree.map(lambda x: r.integers(-2, 3, x.shape).astype(np.float32), tree)


def _inside(dilated, shape):
    """Where the field of an output lies in the image."""
    trace = (1, 128, 128, shape[3])
    rows, columns = receptive_field(lambda x: dilated.init_with_output(jax.random.key(0), x)[0], trace)
    assert rows.stride == columns.stride == 1
    return np.s_[:, -rows.offset : shape[1] - rows.size - rows.offset + 1, -columns.offset : shape[2] - columns.size - columns.offset + 1]


@pytest.mark.parametrize("shape", [(2, 40, 48, 1), (1, 45, 39, 2)])
@pytest.mark.parametrize("features", [(3,), (2, 3), (2, 3, 4)])
def test_it_equals_the_dilated_net_bit_for_bit_inside_the_border(features, shape):
    strided, dilated = _nets(features)
    image = _integers(np.zeros(shape))
    variables = _integers(jax.eval_shape(strided.init, jax.random.key(0), image))
    stitched = jax.jit(lambda x: shift_and_stitch(partial(strided.apply, variables), x, 2 ** len(features)))(image)
    atrous = jax.jit(dilated.apply)(variables, image)
    assert stitched.shape == atrous.shape == (*shape[:3], 2)
    inside = _inside(dilated, shape)
    assert atrous[inside].size > 100
    assert len(np.unique(atrous[inside])) > 20
    np.testing.assert_array_equal(stitched[inside], atrous[inside])


def test_it_equals_the_dilated_net_to_rounding_with_any_weights_and_norm():
    strided, dilated = _nets((4, 5, 6), norm="batch")
    image = np.random.default_rng(1).normal(size=(2, 37, 42, 3)).astype(np.float32)
    variables = random_variables(strided, image)
    stitched = jax.jit(lambda x: shift_and_stitch(partial(strided.apply, variables), x, 8))(image)
    atrous = jax.jit(dilated.apply)(variables, image)
    inside = _inside(dilated, image.shape)
    np.testing.assert_allclose(stitched[inside], atrous[inside], rtol=1e-5, atol=1e-5 * float(abs(atrous).max()))


def test_without_padding_it_equals_the_dilated_net_everywhere():
    r = np.random.default_rng(2)
    kernels = [r.integers(-2, 3, (3, 3, 2, 2)).astype(np.float32) for _ in range(2)]
    image = r.integers(-2, 3, (1, 25, 19, 2)).astype(np.float32)

    def net(x, step):
        """Strides of 3 and 2, or, step being 1, what they leave, in dilation."""
        x = nn_conv(x, kernels[0], 3 // step, 1)
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, *[2 // min(step, 2)] * 2, 1), "VALID", None, (1, *[step] * 2, 1))
        return nn_conv(x, kernels[1], 1, 2 * step if step > 1 else 1)

    def nn_conv(x, kernel, stride, dilation):
        return lax.conv_general_dilated(
            x, kernel, [stride] * 2, "VALID", rhs_dilation=[dilation] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    stitched, atrous = shift_and_stitch(partial(net, step=1), image, 6), net(image, 3)
    assert atrous.shape == (1, 8, 2, 2)
    np.testing.assert_array_equal(stitched[:, :8, :2], atrous)


def test_the_first_of_each_stride_is_the_nets_own_output():
    strided, dilated = _nets((2, 3))
    shape = (2, 28, 36, 1)
    image = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    apply = partial(strided.apply, random_variables(strided, image))
    rows, columns = (slice(-(-side.start // 4), -(-side.stop // 4)) for side in _inside(dilated, shape)[1:])
    stitched, direct = shift_and_stitch(apply, image, 4)[:, ::4, ::4][:, rows, columns], apply(image)[:, rows, columns]
    assert direct.size == 2 * 5 * 7 * 2
    np.testing.assert_allclose(stitched, direct, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
def test_a_net_that_only_leaves_pixels_out_gives_the_image_back(stride):
    image = np.random.default_rng(4).normal(size=(2, 7, 11, 3)).astype(np.float32)
    np.testing.assert_array_equal(shift_and_stitch(lambda x: x[:, ::stride, ::stride], image, stride), image)


def test_gradients_equal_the_dilated_nets_and_vmap_works():
    strided, dilated = _nets((2, 3))
    shape = (1, 16, 18, 1)
    image = np.random.default_rng(5).normal(size=(2, *shape)).astype(np.float32)
    variables = random_variables(strided, image[0])
    inside = _inside(dilated, shape)

    def stitch(variables, image):
        return shift_and_stitch(partial(strided.apply, variables), image, 4)

    def gradient(f):
        return jax.jit(jax.vmap(jax.grad(lambda v, x: (f(v, x)[inside] ** 2).sum(), (0, 1)), (None, 0)))(variables, image)

    for stitched, atrous in zip(jax.tree.leaves(gradient(stitch)), jax.tree.leaves(gradient(dilated.apply)), strict=True):
        assert abs(atrous).max() > 0
        np.testing.assert_allclose(stitched, atrous, rtol=1e-4, atol=1e-4 * float(abs(atrous).max()))
    np.testing.assert_allclose(jax.vmap(partial(stitch, variables))(image)[1], stitch(variables, image[1]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("apply", "shape", "stride", "words"),
    [
        (lambda x: x, (1, 8, 8, 1), 0, "stride of at least 1"),
        (lambda x: x, (8, 8, 1), 2, "required [N, H, W, C]"),
        (
            lambda x: x,
            (1, 8, 7, 1),
            4,
            "for 16 images of 12 x 12 pixels `apply` gave (16, 12, 12, 1); required [16, at most 3, at most 3, K]",
        ),
        (lambda x: x[:1, ::4, ::4], (1, 8, 7, 1), 4, "Pass the net without its enlargement"),
    ],
)
def test_the_error_says_what_is_required(apply, shape, stride, words):
    with pytest.raises(InputError) as error:
        shift_and_stitch(apply, jnp.zeros(shape), stride)
    assert words in str(error.value)
