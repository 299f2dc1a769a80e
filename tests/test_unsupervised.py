"""What holds for every method of jaxseg.unsupervised: labels, known images, mirror images, vmap, what is refused."""

import functools
import inspect
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxseg.errors import InputError
from jaxseg.unsupervised import HOST, METHODS, SCALES

SIZE = (16, 20)
OPTIONS = {  # two segments of a small image
    "kmeans": {"clusters": 2},
    "gaussian_mixture": {"components": 2},
    "mean_shift": {"segments": 30, "space": 0.5},
    "slic": {"segments": 2},
    "slic_merge": {"segments": 30},
    "normalized_cut": {"parts": 2, "segments": 30},
    "felzenszwalb": {"min_size": 10, "sigma": 0.0},
}
OURS = [name for name in METHODS if name != "kanezaki"]  # tests/test_kanezaki.py holds that to the same
EVERY = pytest.mark.parametrize("method", OURS)
LONG = {"gaussian_mixture", "normalized_cut"}  # to compile; tests/test_unsupervised_clusters.py has their laws


def compiled(names):
    return pytest.mark.parametrize("method", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in names])


def two_colours():
    image = np.empty((*SIZE, 3), np.float32)
    image[:, :8], image[:, 8:] = (0.9, 0.2, 0.1), (0.1, 0.3, 0.8)
    return image


def random_image():
    """Blurred, so that superpixels are whole: of pieces equally large the first stays, which is another in the mirror."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).random((*SIZE, 3)), (2, 2, 0))
    return (0.6 * (noise - noise.min()) / np.ptp(noise)).astype(np.float32)


def same_partition(a, b):
    pairs = np.unique(np.stack([np.ravel(a), np.ravel(b)]), axis=1)
    return len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]


def segment(method, image, **options):
    return np.asarray(METHODS[method](image, **OPTIONS[method], **options))


@compiled(OURS)
def test_labels_are_int32_and_without_gaps(method):
    label = METHODS[method](random_image(), **OPTIONS[method])
    assert isinstance(label, jax.Array)
    assert label.shape == SIZE
    assert label.dtype == jnp.int32
    assert np.array_equal(np.unique(label), np.arange(label.max() + 1))
    assert np.array_equal(label, segment(method, random_image())), "a second run differs"


@compiled(OURS)
def test_two_colours_are_two_segments(method):
    truth = np.broadcast_to(np.arange(SIZE[1]) >= 8, SIZE)
    assert same_partition(segment(method, two_colours()), truth)


@compiled(OURS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_constant_image_is_one_segment_or_cut_by_position(method, channels):
    image = np.full((*SIZE, 3), 0.4, np.float32)[..., :channels]
    options = {"kmeans": {"position": 0.0}, "gaussian_mixture": {"position": 0.0}}.get(method, {})
    label = segment(method, image, **options)
    if method in ("slic", "normalized_cut"):
        halves = np.broadcast_to(np.arange(SIZE[1]) >= 10, SIZE)
        assert label.max() == 1
        assert np.mean(label == halves) > 0.9 or np.mean(label != halves) > 0.9
    else:
        assert label.max() == 0


@compiled(name for name in OURS if name not in HOST)
def test_mirror_images_have_mirrored_segments(method):
    label, across, down = (segment(method, image) for image in (random_image(), random_image()[:, ::-1], random_image()[::-1]))
    assert label.max() > 0
    assert same_partition(label, across[:, ::-1])
    assert same_partition(label, down[::-1])


@pytest.mark.parametrize("method", ["slic", *(pytest.param(m, marks=pytest.mark.slow) for m in OURS if m not in HOST and m != "slic")])
def test_vmap_equals_a_loop(method):
    images = jnp.stack([random_image(), two_colours(), random_image()[::-1]])
    together = jax.jit(jax.vmap(functools.partial(METHODS[method], **OPTIONS[method])))(images)
    for label, image in zip(together, images, strict=True):
        assert same_partition(label, segment(method, image))


@pytest.mark.parametrize("method", ["felzenszwalb", *(pytest.param(m, marks=pytest.mark.slow) for m in OURS if m not in HOST)])
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 3, 1)])
def test_more_segments_than_pixels(method, shape):
    """With the options' defaults: 8 clusters and 400 superpixels of one pixel, or three."""
    label = np.asarray(METHODS[method](np.linspace(0, 1, np.prod(shape), dtype=np.float32).reshape(shape)))
    assert label.shape == shape[:2]
    assert np.array_equal(np.unique(label), np.arange(label.max() + 1))


@pytest.mark.parametrize(("method", "weight"), [("kmeans", "texture"), ("slic_merge", "threshold")])
def test_numbers_that_shape_nothing_do_not_compile_again(method, weight):
    compiled = getattr(sys.modules[METHODS[method].__module__], f"_{method}")
    segment(method, random_image())
    before = compiled._cache_size()
    segment(method, two_colours(), **{weight: 0.25})
    assert compiled._cache_size() == before


@EVERY
@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((4, 5, 4), np.float32), "alpha"),
        (np.zeros((4, 5), np.float32), r"\[H, W, 1\]"),
        (np.zeros((2, 4, 5, 3), np.float32), "vmap"),
        (np.zeros((0, 5, 3), np.float32), "at least one pixel"),
        (np.zeros((4, 5, 3), np.uint16), "maximum of their type"),
        (np.full((4, 5, 3), np.nan, np.float32), "nan"),
        (np.full((4, 5, 3), np.inf, np.float32), "inf"),
        (np.full((4, 5, 3), 255, np.float32), "0..1"),
        (np.full((4, 5, 3), -0.1, np.float32), "0..1"),
    ],
)
def test_what_is_no_image_is_refused(method, image, said):
    with pytest.raises(InputError, match=f"{method}.*{said}"):
        METHODS[method](image)


@EVERY
def test_options_out_of_their_range_are_refused(method):
    for name, parameter in list(inspect.signature(METHODS[method]).parameters.items())[1:]:
        for value in (-1, float("nan")) if isinstance(parameter.default, float) else (-1, 2.5, True):
            with pytest.raises(InputError, match=f"{method}: got {name}"):
                METHODS[method](random_image(), **{name: value})


def test_every_method_has_a_scale():
    assert SCALES.keys() == METHODS.keys()
    assert METHODS.keys() >= HOST
    for method, (option, values) in SCALES.items():
        assert option in inspect.signature(METHODS[method]).parameters
        assert len(values) >= 6
