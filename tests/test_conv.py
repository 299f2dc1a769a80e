"""Laws of jaxseg.ops.conv: the values and derivatives of lax.conv_general_dilated, by fewer products where it says so."""

from functools import partial

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from op_laws import hlo_names, random_array, spread
from random_variables import random_variables

from jaxseg import ops
from jaxseg.ops.conv import _winograd

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
PADDINGS = [((1, 1), (1, 1)), ((0, 0), (0, 0)), ((2, 0), (1, 2)), ((2, 2), (2, 2))]


def _lax(x, kernel, padding):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=DIMENSIONS)


@pytest.mark.parametrize(("size", "padding"), spread([(8, 8), (7, 10), (5, 3)], PADDINGS), ids=str)
def test_minimal_filtering_equals_the_convolution_and_its_derivatives(size, padding):
    x, kernel = random_array(2, *size, 5), random_array(3, 3, 5, 4, seed=1)
    dx, dkernel = random_array(*x.shape, seed=2), random_array(*kernel.shape, seed=3)

    def everything(f):
        y, vjp = jax.vjp(f, x, kernel)
        tangent = jax.jvp(f, (x, kernel), (dx, dkernel))[1]
        product = jax.jvp(jax.grad(lambda x, k: (f(x, k) ** 3).sum(), (0, 1)), (x, kernel), (dx, dkernel))[1]
        each = jax.vmap(jax.grad(lambda k, x: (f(x[None], k) ** 2).sum()), (None, 0))(kernel, x)
        kernels = jax.vmap(lambda k: f(x, k))(jnp.stack([kernel, dkernel]))
        return y, vjp(y), tangent, product, each, kernels

    ours = jax.jit(lambda: everything(lambda x, k: _winograd(x, k, padding)))()
    stock = jax.jit(lambda: everything(lambda x, k: _lax(x, k, padding)))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(abs(b).max())), ours, stock)


@pytest.mark.parametrize("place", [(4, 4), (4, 7), (6, 5), (3, 9)])
def test_a_pixel_reaches_no_further_than_the_cells_that_read_it(place):
    """Cells of 4x4 outputs, from 6x6 inputs each; by more than rounding it reaches its own nine outputs only."""
    x, kernel = random_array(1, 12, 12, 3), random_array(3, 3, 3, 2)
    y = np.asarray(_winograd(x, kernel, ((1, 1), (1, 1))))[0, ..., 0]
    reached = np.zeros((2, 12, 12), bool)
    near = [(at - 1, at, at + 1) for at in place]
    reached[0][np.ix_(*near)] = True
    reached[1][np.ix_(*(sorted({p // 4 * 4 + q for p in line for q in range(4)}) for line in near))] = True
    changed = np.stack([x[0], x[0]])
    changed[0, *place], changed[1, *place] = 1.0, np.nan
    z = np.asarray(_winograd(changed, kernel, ((1, 1), (1, 1))))[..., 0]
    np.testing.assert_array_equal(abs(z[0] - y) > 1e-4, reached[0])
    assert not (np.isnan(z[1]) & ~reached[1]).any()


@pytest.mark.parametrize("channels", [64, 512])
def test_rounding_is_a_few_times_that_of_the_direct_form(channels):
    x, kernel = random_array(1, 16, 16, channels), random_array(3, 3, channels, 64, seed=1)
    with jax.enable_x64(True):
        exact = np.asarray(_lax(x.astype(np.float64), kernel.astype(np.float64), "SAME"))
    errors = [
        np.std(np.asarray(f(x, kernel)) - exact) / np.std(exact)
        for f in (jax.jit(lambda x, k: _winograd(x, k, PADDINGS[0])), partial(_lax, padding="SAME"))
    ]
    assert errors[0] < 3e-6
    assert errors[0] < 10 * errors[1]


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="minimal filtering is for CPUs")
def test_wide_layers_only_are_filtered_so():
    def names(x, kernel, **how):
        def convolve(x, kernel):
            return ops.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=DIMENSIONS, **how)

        return {"convolution", "dot_general"} & hlo_names(convolve, x, kernel)

    x, kernel = jnp.ones((1, 32, 32, 128)), jnp.ones((3, 3, 128, 128))
    assert names(x, kernel) == names(x, kernel, rhs_dilation=(4, 2)) == {"dot_general"}
    for image, weight, how in (
        (x[..., :32], kernel[:, :, :32], {}),
        (x[:, :15, :16, :127], kernel[:, :, :127], {}),
        (x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), {}),
        (x, kernel[:2], {}),
        (x, kernel[:, :, :64], {"feature_group_count": 2}),
        (x, kernel, {"rhs_dilation": (5, 2)}),
    ):
        assert names(image, weight, **how) == {"convolution"}


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 1), (0, 2))])
def test_a_flax_layer_gives_the_same(padding):
    x = random_array(2, 24, 25, 128)
    layer = nn.Conv(130, (3, 3), padding=padding)
    variables = random_variables(layer, x)
    faster = nn.Conv(130, (3, 3), padding=padding, conv_general_dilated=ops.conv_general_dilated)
    y, expected = (jax.jit(m.apply)(variables, x) for m in (faster, layer))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5 * float(abs(expected).max()))


def test_everything_else_is_handed_on():
    x, kernel = random_array(1, 9, 8, 4), random_array(3, 2, 2, 6)
    how = {"padding": [(1, 0), (2, 1)], "lhs_dilation": (1, 2), "rhs_dilation": (2, 1), "dimension_numbers": DIMENSIONS}
    how["feature_group_count"] = 2
    both = (partial(f, window_strides=(2, 1), **how)(x, kernel) for f in (ops.conv_general_dilated, jax.lax.conv_general_dilated))
    np.testing.assert_array_equal(*both)


def test_other_layouts_are_not_taken_for_nhwc():
    x, kernel = random_array(1, 34, 34, 128), random_array(3, 3, 128, 128)
    for layout in (("NHWC", "HWOI", "NHWC"), ("NWHC", "HWIO", "NHWC"), None):
        both = (f(x, kernel, (1, 1), "SAME", dimension_numbers=layout) for f in (ops.conv_general_dilated, jax.lax.conv_general_dilated))
        if layout:
            np.testing.assert_array_equal(*both)
        else:
            with pytest.raises(ValueError, match="feature"):
                list(both)


def test_minimal_filtering_works_in_shard_map():
    x, kernel = random_array(2, 8, 8, 3), random_array(3, 3, 3, 2, seed=1)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    def gradients(x, kernel):
        return jax.grad(lambda x, k: jax.lax.psum((_winograd(x, k, ((1, 1), (1, 1))) ** 2).sum(), "data"), (0, 1))(x, kernel)

    mapped = jax.shard_map(gradients, mesh=mesh, in_specs=(spec("data"), spec()), out_specs=(spec("data"), spec()))
    expected = jax.grad(lambda x, k: (_lax(x, k, "SAME") ** 2).sum(), (0, 1))(x, kernel)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-3), jax.jit(mapped)(x, kernel), expected)


def _close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(abs(b).max()))


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 1), (0, 3)), ((-1, 2), (1, 0))], ids=str)
@pytest.mark.parametrize(("taps", "stride", "dilation"), [((3, 3), (1, 1), (1, 1)), ((5, 2), (2, 1), (1, 1)), ((3, 2), (2, 3), (2, 1))])
def test_one_filter_a_channel_equals_the_convolution_and_its_derivatives(taps, stride, dilation, padding):
    x, kernel = random_array(2, 9, 7, 5), random_array(*taps, 1, 5, seed=1)
    options = {"rhs_dilation": dilation, "dimension_numbers": DIMENSIONS, "feature_group_count": 5}
    ours, stock = (lambda x, k, f=f: f(x, k, stride, padding, **options) for f in (ops.conv_general_dilated, jax.lax.conv_general_dilated))
    assert "conv_general_dilated" not in str(jax.make_jaxpr(ours)(x, kernel))
    y, g = ours(x, kernel), random_array(*jax.eval_shape(ours, x, kernel).shape, seed=2)
    _close(y, stock(x, kernel))
    for mine, expected in zip(jax.vjp(ours, x, kernel)[1](g), jax.vjp(stock, x, kernel)[1](g), strict=True):
        _close(mine, expected)
    tangents = random_array(*x.shape, seed=3), random_array(*kernel.shape, seed=4)
    _close(jax.jvp(ours, (x, kernel), tangents)[1], jax.jvp(stock, (x, kernel), tangents)[1])
    _close(jax.linear_transpose(lambda x: ours(x, kernel), x)(g)[0], jax.linear_transpose(lambda x: stock(x, kernel), x)(g)[0])


@pytest.mark.parametrize(
    ("taps", "stride", "channels", "padding"),
    [
        (1, (1, 1), (5, 40), 0),
        (1, (2, 3), (5, 7), 0),
        (1, (1, 1), (5, 1), 0),
        (3, (1, 1), (5, 6), 1),
        (3, (1, 1), (5, 6), 0),
        (3, (1, 1), (129, 128), 1),
        (2, (1, 1), (128, 512), 0),
        pytest.param(5, (1, 1), (128, 512), 1, marks=pytest.mark.slow),
    ],
)
def test_pixelwise_narrow_and_small_convolutions_equal_the_convolution_and_its_derivatives(taps, stride, channels, padding):
    x, kernel = random_array(2, 9, 7, channels[0]), random_array(taps, taps, *channels, seed=1)
    dx, dkernel = random_array(*x.shape, seed=2), random_array(*kernel.shape, seed=3)

    def everything(f):
        f = partial(f, window_strides=stride, padding=[(padding, padding)] * 2, dimension_numbers=DIMENSIONS)
        y, vjp = jax.vjp(f, x, kernel)
        tangent = jax.jvp(f, (x, kernel), (dx, dkernel))[1]
        product = jax.jvp(jax.grad(lambda x, k: (f(x, k) ** 3).sum(), (0, 1)), (x, kernel), (dx, dkernel))[1]
        each = jax.vmap(jax.grad(lambda k, x: (f(x[None], k) ** 2).sum()), (None, 0))(kernel, x)
        return y, vjp(y), tangent, product, each

    jax.tree.map(_close, *(jax.jit(partial(everything, f))() for f in (ops.conv_general_dilated, jax.lax.conv_general_dilated)))
    assert ops.conv_general_dilated(x[:0], kernel, stride, "SAME", dimension_numbers=DIMENSIONS).shape[0] == 0


@pytest.mark.parametrize(
    ("layer", "padding"),
    spread(
        [((14, 15), (64, 66), (2, 3)), ((17, 13), (64, 64), (4, 1)), ((9, 8), (129, 128), (2, 3))],
        ["SAME", "VALID", ((2, 1), (0, 5)), ((-1, 3), (2, 0))],
    ),
    ids=str,
)
def test_dilated_convolutions_equal_the_convolution_and_its_derivatives(layer, padding):
    """By minimal filtering of every so many pixels, and by patches."""
    size, channels, dilation = layer
    x, kernel = random_array(3, *size, channels[0]), random_array(3, 3, *channels, seed=1)
    dx, dkernel = random_array(*x.shape, seed=2), random_array(*kernel.shape, seed=3)

    def everything(f):
        f = partial(f, window_strides=(1, 1), padding=padding, rhs_dilation=dilation, dimension_numbers=DIMENSIONS)
        y, vjp = jax.vjp(f, x, kernel)
        tangent = jax.jvp(f, (x, kernel), (dx, dkernel))[1]
        product = jax.jvp(jax.grad(lambda x, k: (f(x, k) ** 3).sum(), (0, 1)), (x, kernel), (dx, dkernel))[1]
        return y, vjp(y), tangent, product

    jax.tree.map(_close, *(jax.jit(partial(everything, f))() for f in (ops.conv_general_dilated, jax.lax.conv_general_dilated)))


@pytest.mark.parametrize("channels", [8, 16, 64])
def test_one_filter_of_one_pixel_rounds_alike_in_images_of_any_shape(channels):
    r = np.random.default_rng(0)
    x, kernel = r.normal(size=(1, 97, 131, channels)).astype(np.float32), r.normal(size=(1, 1, channels, 1)).astype(np.float32)
    f = jax.jit(lambda x: ops.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")))
    whole = np.asarray(f(x))
    for h, w in ((26, 26), (31, 35), (89, 36)):
        np.testing.assert_array_equal(f(x[:, 2 : 2 + h, 4 : 4 + w]), whole[:, 2 : 2 + h, 4 : 4 + w])


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="these forms are for CPUs")
def test_each_gradient_is_computed_in_its_own_form():
    def gradient(of, x, kernel):
        f = partial(ops.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=DIMENSIONS)
        return str(jax.make_jaxpr(jax.grad(lambda x, k: f(x, k).sum(), of))(x, kernel))

    x, kernel = jnp.ones((1, 9, 9, 128)), jnp.ones((3, 3, 128, 128))
    assert "f32[3,3,16,32]" in gradient(1, x[..., :16], kernel[:, :, :16, :8])
    assert "f32[3,3,16,32]" not in gradient(1, x[..., :16], kernel[:, :, :16, :40])
    assert gradient(0, x, kernel).count("dot_general") == 2  # the patches' and its transpose
    assert "dot_general" not in gradient(0, x[..., :127], kernel[:, :, :127])
    fully_connected = jnp.ones((7, 7, 128, 128))
    assert "conv" not in gradient(0, x[:, :2], fully_connected)
    assert "dot_general" not in gradient(0, x[:, :4], fully_connected)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="minimal filtering is for CPUs")
@pytest.mark.parametrize(("channels", "size", "filtered"), [(512, 16, False), (512, 32, True), (256, 16, True)])
def test_very_wide_layers_are_filtered_from_more_pixels_on(channels, size, filtered):
    x, kernel = jnp.ones((1, size, size, channels)), jnp.ones((3, 3, channels, channels))
    program = jax.make_jaxpr(lambda x, k: ops.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=DIMENSIONS))(x, kernel)
    assert (str(program).count("dot_general") == 6) == filtered


def test_a_filter_larger_than_the_image_is_the_convolutions_matter():
    x, kernel = random_array(1, 2, 2, 3), random_array(3, 3, 1, 3)
    y = ops.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=DIMENSIONS, feature_group_count=3)
    assert y.shape == jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=DIMENSIONS, feature_group_count=3).shape


def test_a_symbolic_batch_height_and_width_are_handed_on():
    x = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, h, w, 64"), jnp.float32)
    kernel = random_array(3, 3, 64, 64)
    program = jax.export.export(jax.jit(lambda x: _lax_or_ours(ops.conv_general_dilated, x, kernel)))(x)
    image = random_array(2, 9, 20, 64)
    _close(program.call(image), _lax_or_ours(jax.lax.conv_general_dilated, image, kernel))


def _lax_or_ours(f, x, kernel):
    return f(x, kernel, (1, 1), "SAME", dimension_numbers=DIMENSIONS)


def test_an_explicit_mesh_is_handed_on():
    """`jax.make_mesh` makes one by default; the form of fewer products does not say how its intermediate shapes are sharded."""
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    x, kernel = random_array(2, 16, 16, 64), random_array(3, 3, 64, 64)
    with jax.set_mesh(mesh):
        placed = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d")))
        y = jax.jit(lambda x: _lax_or_ours(ops.conv_general_dilated, x, kernel))(placed)
    np.testing.assert_array_equal(y, _lax_or_ours(jax.lax.conv_general_dilated, x, kernel))


def test_what_has_no_output_and_what_does_not_fit_are_as_in_lax():
    empty = ops.conv_general_dilated(jnp.ones((300, 1, 1, 64)), jnp.ones((3, 3, 64, 64)), (1, 1), "VALID", dimension_numbers=DIMENSIONS)
    assert empty.shape == (300, 0, 0, 64)
    with pytest.raises((TypeError, ValueError), match="conv_general_dilated"):
        _lax_or_ours(ops.conv_general_dilated, jnp.ones((1, 16, 16, 128)), jnp.ones((3, 3, 64, 64)))
    steps = np.array([1, 1])
    x, kernel = random_array(1, 16, 16, 64), random_array(3, 3, 64, 64)
    y = ops.conv_general_dilated(x, kernel, steps, "SAME", rhs_dilation=steps, dimension_numbers=DIMENSIONS)
    _close(y, _lax_or_ours(ops.conv_general_dilated, x, kernel))
