"""Laws of dense inference: it moves with the image by single pixels, stands over what it sees, and holds the coarse map."""

from functools import partial

import jax
import numpy as np
import pytest
from random_variables import random_variables

from jaxseg.errors import InputError
from jaxseg.inference.dense import dense
from jaxseg.models import FCN, DirectHeatmap, FCNResNet, PlainEncoder, UNet
from jaxseg.models.vgg import VGG16

HEATMAP = DirectHeatmap(2, partial(PlainEncoder, features=(3, 4), norm="batch"))
FCN8 = FCN(2, features=(1, 1, 1, 1, 1), fc_features=1, dropout=0.0)
IMAGE = np.random.default_rng(0).normal(size=(1, 44, 40, 1)).astype(np.float32)
INSIDE = np.s_[:, 14:30, 14:26]
BOTH = pytest.mark.parametrize("method", ["shift_and_stitch", "a_trous"])


@BOTH
def test_it_moves_with_the_image_by_a_single_pixel_and_holds_the_coarse_map(method):
    variables = random_variables(HEATMAP, IMAGE)
    predict = jax.jit(dense(HEATMAP, method))
    logits = np.asarray(predict(variables, IMAGE))
    assert logits.shape == (1, 44, 40, 2)
    moved = np.asarray(predict(variables, np.roll(IMAGE, (1, 3), (1, 2))))
    np.testing.assert_allclose(moved[INSIDE], np.roll(logits, (1, 3), (1, 2))[INSIDE], rtol=1e-4, atol=1e-5)
    coarse = np.asarray(HEATMAP.clone(enlarge=None).apply(variables, IMAGE))
    np.testing.assert_allclose(logits[:, 2::4, 2::4][:, 3:8, 3:8], coarse[:, 3:8, 3:8], rtol=1e-4, atol=1e-5)
    if method == "a_trous":
        np.testing.assert_allclose(logits[INSIDE], dense(HEATMAP, "shift_and_stitch")(variables, IMAGE)[INSIDE], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "method"),
    [(HEATMAP.clone(encoder=PlainEncoder), "a_trous"), pytest.param(FCN8, "shift_and_stitch", marks=pytest.mark.slow)],
)
def test_it_stands_over_the_middle_of_what_it_sees(model, method):
    """With weights of one sign the pixels that see a bright one lie around it, as far on the one side as on the other, to half a pixel."""
    image, (y, x) = np.ones((1, 62, 60, 1), np.float32), (31, 29)
    variables = jax.tree.map(lambda v: np.full(v.shape, 0.1, np.float32), jax.eval_shape(model.init, jax.random.key(0), image))
    for coarser in ("score_fr", "score_pool4"):  # their fields are larger than the image
        if model is FCN8:
            variables["params"][coarser]["kernel"][:] = 0
    predict = dense(model, method)
    before = predict(variables, image)
    image[0, y, x] = 100
    seeing = np.asarray(predict(variables, image) != before)[0, ..., 0]
    rows, columns = (np.flatnonzero(seeing.any(axis)) for axis in (1, 0))
    assert 20 < len(rows) < 50
    assert (rows.mean() - y, columns.mean() - x) == (0.5, 0.5)


@pytest.mark.parametrize("model", [FCN8.clone(variant="16s"), FCNResNet(2, "resnet18", width=2)])
def test_logits_are_of_the_images_size(model):
    shape = jax.ShapeDtypeStruct((2, 37, 30, 1), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), shape)
    assert jax.eval_shape(dense(model, "shift_and_stitch", resize=0.5), variables, shape).shape == (2, 37, 30, 2)


@pytest.mark.parametrize(
    ("model", "method", "words"),
    [
        (UNet(2), "shift_and_stitch", "UNet has no coarse map"),
        (FCN8, "a_trous", "FCN cannot be run a trous"),
        (DirectHeatmap(2, VGG16), "a_trous", "required is a DirectHeatmap on PlainEncoder"),
        (HEATMAP, "zoom", "got method='zoom'"),
    ],
)
def test_without_a_meaning_it_is_refused(model, method, words):
    with pytest.raises(InputError) as error:
        dense(model, method)
    assert words in str(error.value)
