"""Laws of the clusterings under jaxseg.unsupervised: k-means, Gaussian mixtures, mean shift, normalised cuts; by brute force and SciPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from op_laws import random_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import multivariate_normal

from jaxseg.unsupervised.gaussian_mixture import expectation, maximisation
from jaxseg.unsupervised.kmeans import lloyd, nearest, variance_split
from jaxseg.unsupervised.mean_shift import climb, linked_sets
from jaxseg.unsupervised.normalized_cut import cut, ncut

fast_maximisation = jax.jit(maximisation)


def blobs(k=4, each=50, d=3):
    """k balls of radius about 1, 10 apart, in no order: points and which ball they are of."""
    label = np.arange(k * each) % k
    return random_array(k * each, d) + 10 * np.eye(d, dtype=np.float32)[label % d] * (1 + label[:, None] // d), label


def test_lloyd_equals_a_loop_in_numpy():
    """From the same seeds; the last seed is far from everything, has no points, and stays."""
    x, _ = blobs()
    seeds = np.concatenate([x[:5], np.full((1, 3), 1e3, np.float32)])
    centres = seeds.copy()
    for _ in range(7):
        label = ((x[:, None] - centres) ** 2).sum(-1).argmin(1)
        centres = np.stack([x[label == i].mean(0) if (label == i).any() else c for i, c in enumerate(centres)])
    ours = lloyd(jnp.asarray(x), jnp.asarray(seeds), 7)
    np.testing.assert_allclose(ours, centres, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(nearest(jnp.asarray(x), ours), ((x[:, None] - centres) ** 2).sum(-1).argmin(1))


def test_each_ball_is_given_a_seed_whatever_the_order():
    x, label = blobs()
    split = jax.jit(variance_split, static_argnums=1)
    seeds = split(jnp.asarray(x), 4)
    means = np.stack([x[label == i].mean(0) for i in range(4)])
    np.testing.assert_allclose(np.sort(seeds, 0), np.sort(means, 0), atol=1e-3)
    np.testing.assert_allclose(split(jnp.asarray(x[::-1].copy()), 4), seeds, atol=1e-4)

    np.testing.assert_allclose(split(jnp.ones_like(x), 4), 1, atol=1e-5)


def fitted(floor, x, k=3):
    return fast_maximisation(x, jnp.asarray(np.eye(k, dtype=np.float32)[np.arange(len(x)) * k // len(x)]), floor)


def test_expectation_equals_scipy():
    x, _ = blobs(k=3, d=2)
    mixture = fitted(0.1, jnp.asarray(x))
    share, likelihood = jax.jit(expectation)(jnp.asarray(x), mixture)
    covariances = np.linalg.inv(mixture.whitening @ mixture.whitening.mT)
    theirs = np.stack(
        [np.exp(w) * multivariate_normal(m, c).pdf(x) for w, m, c in zip(mixture.log_weight, mixture.mean, covariances, strict=True)], 1
    )
    np.testing.assert_allclose(share, theirs / theirs.sum(1, keepdims=True), atol=1e-4)
    assert float(likelihood) == pytest.approx(np.log(theirs.sum(1)).mean(), rel=1e-4)


def test_maximisation_takes_weighted_moments_and_no_covariance_above_the_floor_is_likelier():
    x, share = random_array(60, 2) * np.array([3, 0.1], np.float32), np.abs(random_array(60, 1, seed=1))
    free, floored = (fast_maximisation(jnp.asarray(x), jnp.asarray(share), floor) for floor in (1e-6, 0.5))
    moments = np.cov(x.T, aweights=share[:, 0], ddof=0)
    np.testing.assert_allclose(np.linalg.inv(free.whitening[0] @ free.whitening[0].T), moments, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(free.mean[0], np.average(x, axis=0, weights=share[:, 0]), atol=1e-4)

    def likelihood(covariance):
        return -np.linalg.slogdet(covariance)[1] - np.trace(np.linalg.inv(covariance) @ moments)

    best = np.linalg.inv(floored.whitening[0] @ floored.whitening[0].T)
    assert np.linalg.eigvalsh(best)[0] == pytest.approx(0.5, rel=1e-3)
    for other in random_array(50, 2, 2, seed=2):
        values, axes = np.linalg.eigh(best + 0.3 * (other + other.T))
        assert likelihood(axes * np.maximum(values, 0.5) @ axes.T) <= likelihood(best) + 1e-4


@pytest.mark.parametrize("floor", [1e-3, 4.0])
def test_the_likelihood_never_falls(floor):
    """Also under a floor above most variances, and with a component that has lost its points."""
    x = jnp.asarray(blobs()[0])
    mixture = fitted(floor, x, k=5)
    mixture = mixture._replace(mean=mixture.mean.at[4].set(1e3))
    step = jax.jit(lambda m: (expectation(x, m)[1], maximisation(x, expectation(x, m)[0], floor)))
    trace = []
    for _ in range(15):
        likelihood, mixture = step(mixture)
        trace.append(float(likelihood))
    assert np.isfinite(trace).all()
    assert (np.diff(trace) > -1e-4).all()
    assert trace[-1] > trace[0] + 1e-3


def test_points_climb_to_the_weighted_mean_of_their_ball():
    colour, label = blobs(k=3, each=20)
    points = np.concatenate([colour / 8, np.zeros((60, 2), np.float32)], 1)
    weight = np.abs(random_array(60, seed=1)) + 0.1
    means = np.stack([np.average(points[label == i], axis=0, weights=weight[label == i]) for i in range(3)])
    rise = jax.jit(climb, static_argnums=2)
    modes = rise(jnp.asarray(points), jnp.asarray(weight), 100)
    np.testing.assert_allclose(modes, means[label], atol=2e-3)
    far = points + np.eye(5, dtype=np.float32)[3] * 5 * np.arange(60)[:, None]  # alike in colour, but nowhere near each other
    np.testing.assert_allclose(rise(jnp.asarray(far), jnp.asarray(weight), 100), far, rtol=1e-5)


def test_linked_sets_equal_scipy():
    linked = np.random.default_rng(0).random((80, 80)) < 0.012
    linked |= linked.T | np.eye(80, dtype=bool)
    count, theirs = connected_components(linked)
    ours = np.asarray(linked_sets(jnp.asarray(linked)))
    assert 5 < count < 60
    assert len(np.unique(ours)) == count
    assert all(ours[i] == np.flatnonzero(theirs == theirs[i])[0] for i in range(80))


def graph(nodes=9):
    affinity = np.random.default_rng(0).random((nodes, nodes)) * 0.2
    affinity[:4, :4] += 1
    affinity[4:, 4:] += 1
    return (affinity + affinity.T).astype(np.float32)


def loop_ncut(affinity, group):
    value = 0.0
    for g in set(group):
        inside = [i for i, other in enumerate(group) if other == g]
        outside = [i for i, other in enumerate(group) if other != g]
        value += sum(affinity[i, j] for i in inside for j in outside) / sum(affinity[i, j] for i in inside for j in range(len(group)))
    return value


@pytest.mark.parametrize("group", [(0, 1, 0, 1, 2, 2, 0, 1, 2), (0,) * 9, (2, 2, 2, 2, 0, 0, 0, 0, 0)])
def test_ncut_equals_a_loop(group):
    assert float(jax.jit(ncut, static_argnums=2)(jnp.asarray(graph()), jnp.asarray(group), 3)) == pytest.approx(
        loop_ncut(graph(), group), abs=1e-5
    )


def test_the_cut_in_two_is_the_best_of_all():
    best = min(((0, *rest) for rest in itertools.product((0, 1), repeat=8) if any(rest)), key=lambda group: loop_ncut(graph(), group))
    group = tuple(np.asarray(jax.jit(cut, static_argnums=1)(jnp.asarray(graph()), 2)).tolist())
    assert group in (best, tuple(1 - g for g in best))
