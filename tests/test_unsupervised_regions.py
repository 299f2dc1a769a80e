"""Laws of superpixels, connected pieces and merging under jaxseg.unsupervised, by brute force and scikit-image."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from op_laws import random_array
from scipy import ndimage
from skimage import measure

from jaxseg.errors import InputError
from jaxseg.ops.colour import rgb_to_lab
from jaxseg.ops.texture import gaussian, texture_energy
from jaxseg.unsupervised import merge_regions
from jaxseg.unsupervised.connected import components, keep_largest
from jaxseg.unsupervised.merging import costs, describe, merge, slic_merge
from jaxseg.unsupervised.slic import grid, superpixels

SIZE = (16, 24)
join = functools.partial(jax.jit, static_argnames="bound")(keep_largest)


def image(seed=0):
    """Three areas of different colour and texture with blurred noise over them."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random((*SIZE, 3)), (1, 1, 0))
    areas = np.stack([np.arange(24) < 10, np.arange(24) > 16, np.arange(24) < 0], -1)[None] * [0.5, 0.4, 0.3]
    return (0.5 * noise + areas).clip(0, 1).astype(np.float32)


def spiral(n=15):
    """A corridor that winds to the middle, one pixel wide: the longest way through a picture of its size."""
    path = np.zeros((n, n), int)
    y, x, dy, dx = 0, 0, 0, 1
    path[0, 0] = 1
    for _ in range(n * n):
        for _ in range(2):
            ahead, after = (y + dy, x + dx), (y + 2 * dy, x + 2 * dx)
            inside = all(0 <= a < n for a in ahead)
            if inside and not (all(0 <= a < n for a in after) and path[after]):
                y, x = ahead
                path[y, x] = 1
                break
            dy, dx = dx, -dy
    return path


@pytest.mark.parametrize("label", [spiral(), np.random.default_rng(0).integers(0, 2, (15, 15)), np.zeros((15, 15), int)])
def test_components_equal_scikit_image(label):
    theirs = measure.label(label + 1, connectivity=1)
    first = {piece: np.flatnonzero(theirs.ravel() == piece)[0] for piece in np.unique(theirs)}
    np.testing.assert_array_equal(jax.jit(components)(jnp.asarray(label, jnp.int32)), np.vectorize(first.get)(theirs))


def pieces(label):
    return measure.label(np.asarray(label) + 1, connectivity=1).max()


def test_every_label_keeps_its_largest_piece_and_is_one_piece():
    label = np.random.default_rng(1).integers(0, 6, (15, 15))
    lab = random_array(15, 15, 3)
    after = np.asarray(join(jnp.asarray(label, jnp.int32), jnp.asarray(lab), bound=8))
    assert pieces(after) == 6 < pieces(label)
    for value in range(6):
        parts = measure.label(label == value, connectivity=1)
        largest = parts == np.bincount(parts.ravel())[1:].argmax() + 1
        assert (after[largest] == value).all()


def test_a_pixel_apart_joins_the_neighbour_of_its_colour():
    label = np.zeros((15, 15), np.int32)
    label[:, 8:], label[7, 7] = 1, 1  # touches label 1: no piece of its own
    label[7, 4], label[7, 12] = 1, 0  # pieces apart, which can join but one label
    label[14, 7], label[14, 6] = 2, 2
    label[0, 7] = 2  # apart from its larger piece, between labels 0 and 1
    lab = np.zeros((15, 15, 3), np.float32)
    lab[:, 8:] = lab[0, 7] = 1
    expected = label.copy()
    expected[7, 4], expected[7, 12], expected[0, 7] = 0, 1, 1
    np.testing.assert_array_equal(join(jnp.asarray(label), jnp.asarray(lab), bound=8), expected)


def slow_superpixels(lab, segments, compactness, iterations):
    """Each pixel against every centre, those beyond the neighbouring cells at infinity."""
    h, w, _ = lab.shape
    rows, columns = grid(h, w, segments)
    y, x = np.mgrid[:h, :w]
    r, c = ((y + 0.5) * rows // h).astype(int), ((x + 0.5) * columns // w).astype(int)
    weight = compactness / np.sqrt(h * w / (rows * columns))
    points = np.concatenate([lab, weight * y[..., None], weight * x[..., None]], -1).astype(np.float64)
    number = np.arange(rows * columns)
    beyond = (abs(r[..., None] - number // columns) > 1) | (abs(c[..., None] - number % columns) > 1)
    label = r * columns + c
    centres = np.zeros((rows * columns, 5))
    for _ in range(iterations):
        centres = np.stack([points[label == i].mean(0) if (label == i).any() else centres[i] for i in number])
        label = np.where(beyond, np.inf, ((points[:, :, None] - centres) ** 2).sum(-1)).argmin(-1)
    return label


@jax.jit
def oversegment(lab, compactness):
    return superpixels(lab, 20, compactness, 4)[0]


def test_slic_equals_brute_force():
    lab = np.asarray(rgb_to_lab(jnp.asarray(image())))
    slow = slow_superpixels(lab, 20, 30.0, 4)
    slow = join(jnp.asarray(slow, jnp.int32), jnp.asarray(lab), bound=20)
    np.testing.assert_array_equal(oversegment(jnp.asarray(lab), 30.0), slow)


def test_superpixels_are_connected():
    """Of noise, whose superpixels are in pieces at first."""
    label = oversegment(30 * random_array(*SIZE, 3), 1.0)
    assert pieces(label) == len(np.unique(label)) > 10


@jax.jit
def seen(rgb):
    lab = rgb_to_lab(rgb)
    return lab, gaussian(jnp.moveaxis(lab, -1, 0), 2.0, ((1, 0), (0, 1))), texture_energy(lab[..., :1])


def slow_costs(rgb):
    """The definition in merge_regions' docstring, from the pixels: a function of two regions' numbers and the labels then."""
    lab, slopes, energy = seen(jnp.asarray(rgb))
    dy, dx = np.asarray(slopes, np.float64)
    tensor = np.stack([np.stack([(dy * dy).sum(0), (dy * dx).sum(0)], -1), np.stack([(dy * dx).sum(0), (dx * dx).sum(0)], -1)], -1)
    gradient = np.sqrt(np.linalg.eigvalsh(tensor)[..., 1])
    lab, energy = np.asarray(lab), np.log2(1 + np.asarray(energy))

    def variation(a, b, bins, low, high):
        shares = [
            np.stack([np.histogram(x[:, k].clip(low[k], high[k]), bins, (low[k], high[k]))[0] / len(x) for k in range(x.shape[1])])
            for x in (a, b)
        ]
        return np.abs(shares[0] - shares[1]).sum(1).mean() / 2

    def cost(label, i, j):
        pairs = [
            max(gradient[y, x], gradient[v, u])
            for y, x in np.argwhere(label == i)
            for v, u in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1))
            if 0 <= v < label.shape[0] and 0 <= u < label.shape[1] and label[v, u] == j
        ]
        if not pairs:
            return np.inf
        a, b = label == i, label == j
        colour = variation(lab[a], lab[b], 20, (0, -60, -60), (100, 60, 60))
        texture = variation(energy[a], energy[b], 10, (0,) * 12, (6,) * 12)
        return np.mean(pairs) * colour * (0.2 + texture) * (a.sum() * b.sum() / (a.sum() + b.sum()) / label.size) ** 0.35

    return cost


def uneven():
    """Regions of one to three blocks of 16 pixels, 0 to 23, one number of which is not used."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    label = y // 4 * 6 + x // 4
    label[:4, :12], label[9:, 20:] = 0, 17
    return label


@jax.jit
def before_and_after(rgb, label):
    """The costs, what is left of the regions above cost 0.3, and what these are when looked at anew."""
    lab = rgb_to_lab(rgb)
    regions = describe(lab, label, 24)
    merged = merge(regions, 0.3)
    return jax.vmap(costs, (None, 0))(regions, jnp.arange(24)), merged, describe(lab, merged.owner[label], 24)


def test_costs_equal_their_definition():
    cost = slow_costs(image())
    slow = [[cost(uneven(), i, j) if i != j else np.inf for j in range(24)] for i in range(24)]
    assert 40 < np.isfinite(slow).sum() < 200
    np.testing.assert_allclose(before_and_after(jnp.asarray(image()), jnp.asarray(uneven()))[0], slow, rtol=1e-3)


def test_merged_tables_are_those_of_the_merged_regions():
    _, merged, anew = before_and_after(jnp.asarray(image()), jnp.asarray(uneven()))
    left = np.unique(np.asarray(merged.owner)[uneven()])
    assert 3 < len(left) < 15
    for kept, seen_anew in zip(merged[1:], anew[1:], strict=True):
        np.testing.assert_allclose(kept, seen_anew, rtol=1e-4, atol=1e-3)


def slow_merge(rgb, label, threshold):
    label, cost = label.copy(), slow_costs(rgb)
    while len(left := np.unique(label)) > 1:
        least, i, j = min((cost(label, i, j), i, j) for i in left for j in left if i < j)
        if least > threshold:
            break
        label[label == j] = i
    return np.unique(label, return_inverse=True)[1].reshape(label.shape)


def start():
    """Six blocks with gaps in their numbers: 0, 2, 4 ..."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return 2 * (y // 8 * 3 + x // 8)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1e6])
def test_merging_equals_brute_force(threshold):
    ours = np.asarray(merge_regions(image(), start(), threshold=threshold))
    assert len(np.unique(ours)) == {0.0: 6, 0.5: 4, 1e6: 1}[threshold]
    np.testing.assert_array_equal(ours, slow_merge(image(), start(), threshold))


def test_larger_thresholds_join_what_smaller_ones_made():
    fine, coarse = (np.asarray(merge_regions(image(), start(), threshold=t)) for t in (0.2, 0.5))
    assert 1 < coarse.max() < fine.max()
    assert len(np.unique(np.stack([fine, coarse]).reshape(2, -1), axis=1)[0]) == fine.max() + 1


@pytest.mark.parametrize(
    "label", [np.zeros((3, 3), int), np.zeros(SIZE), np.full(SIZE, -1), np.full(SIZE, 4096), np.zeros((*SIZE, 1), int)]
)
def test_label_maps_that_do_not_fit_are_refused(label):
    with pytest.raises(InputError, match="merge_regions: got a label map"):
        merge_regions(image(), label)


def test_too_many_superpixels_to_merge_are_refused():
    with pytest.raises(InputError, match="at most 4096"):
        slic_merge(image(), segments=5000)
