"""Differentiable feature clustering: a small network, trained on the one image until its largest response says the segment."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from jaxseg.errors import InputError
from jaxseg.ops.shapes import integer
from jaxseg.unsupervised.features import checked, consecutive, need_numbers

_MOMENTUM = 0.9


class FeatureClustering(nn.Module):
    """Response of each pixel to `channels` clusters: [N,H,W,C] in 0..1 -> [N,H,W,channels].

    3x3 layers, each with ReLU, then normalisation, and a 1x1 layer with normalisation. The papers' batch normalisation of a batch of one is
    that of an instance, which leaves no running statistics and lets images be vmapped.
    """

    channels: int = 100
    layers: int = 2

    @nn.compact
    def __call__(self, image: Float[Array, "n h w c"]) -> Float[Array, "n h w k"]:
        x = image
        for i in range(1, self.layers + 1):
            x = _norm(nn.relu(Conv3x3(self.channels, name=f"conv{i}")(x)), f"norm{i}")
        x = nn.Dense(self.channels, use_bias=False, kernel_init=_INIT, name="response")(x)  # the norm would take any bias away
        return _norm(x, "response_norm")


class Conv3x3(nn.Module):
    """3x3 convolution, zeros around: [N,H,W,C] -> [N,H,W,features], as a matrix product with each pixel's nine neighbours.

    XLA's convolutions run on one thread and without vectors inside a loop on CPUs: a step of two 64-channel layers at 80 x 120 took 4.1 s
    in a loop and 0.15 s outside. In this form it takes the same 0.2 s in both.
    """

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w f"]:
        h, w, c = x.shape[1:]
        kernel = self.param("kernel", _INIT, (3, 3, c, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        neighbours = jnp.concatenate([padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)], -1)
        return neighbours @ kernel.reshape(9 * c, self.features) + bias


_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # torch's default, which the papers' programs start from


def _norm(x: Array, name: str) -> Array:
    return nn.InstanceNorm(epsilon=1e-5, use_fast_variance=False, name=name)(x)


def clustering_loss(response: Float[Array, "n h w k"], continuity: float) -> Float[Array, ""]:
    """Cross-entropy with the largest response as the label, plus `continuity` times the mean steps to the pixels below and to the right."""
    label = jnp.argmax(response, -1)
    similar = optax.softmax_cross_entropy_with_integer_labels(response, label).mean()
    steps = (jnp.abs(jnp.diff(response, axis=axis)) for axis in (1, 2))
    return similar + continuity * sum(step.sum() / max(step.size, 1) for step in steps)  # one row has no step down


class _State(NamedTuple):
    iteration: Int[Array, ""]
    labels: Int[Array, ""]  # before the last update
    params: PyTree
    velocity: PyTree


def kanezaki(
    image: Float[Array, "h w c"],
    *,
    min_labels: int = 3,
    iterations: int = 200,
    channels: int = 32,
    continuity: float = 1.0,
    learning_rate: float = 0.1,
    shrink: int = 2,
    seed: int = 0,
) -> Int[Array, "h w"]:
    """Labels 0..n-1 of a network trained on this image alone: [H,W,C] in 0..1 -> int32 [H,W].

    The papers take 100 channels, 1000 iterations and the image in full, which is for GPUs: the time goes with channels^2 x pixels.

    Args:
      min_labels: training stops when this many or fewer are left; the scale parameter. As in the paper, one more update follows.
      iterations: at most.
      channels: of the network, and the labels it begins with, at most.
      continuity: weight of the steps between neighbours in the loss.
      learning_rate: of gradient descent with momentum 0.9.
      shrink: the network sees the means of blocks of shrink x shrink pixels; a label then holds for a block.
      seed: of the network's first weights.

    Raises:
      InputError: see `jaxseg.unsupervised.features.checked`; an option out of its range.

    Source: Kim, Kanezaki, Tanaka 2020, Unsupervised Learning of Image Segmentation Based on Differentiable Feature Clustering, IEEE TIP 29
    (after Kanezaki 2018, ICASSP, whose superpixels the continuity replaces).
    """
    return next(_levels(image, (min_labels,), iterations, channels, continuity, learning_rate, shrink, seed))


def kanezaki_levels(image: Float[Array, "h w c"], min_labels: Sequence[int], **options: Any) -> Iterator[Int[Array, "h w"]]:
    """`kanezaki` at several `min_labels`, the largest first, from one training: each goes on where the one before has stopped.

    Args:
      options: the others of `kanezaki`.

    Raises:
      InputError: as `kanezaki`; `min_labels` grow.
    """
    defaults = {name: value for name, value in (kanezaki.__kwdefaults__ or {}).items() if name != "min_labels"}
    return _levels(image, min_labels, **(defaults | options))


def _levels(image, min_labels, iterations, channels, continuity, learning_rate, shrink, seed) -> Iterator[Int[Array, "h w"]]:
    image = checked("kanezaki", image)
    numbers = [integer("kanezaki", "min_labels", value, 1) for value in min_labels]
    if numbers != sorted(numbers, reverse=True):
        raise InputError(f"kanezaki: got min_labels {tuple(numbers)}; required the largest first, for training only takes labels away.")
    least = {"iterations": iterations, "channels": channels, "shrink": shrink}
    counts = [integer("kanezaki", name, value, 1) for name, value in least.items()]
    need_numbers("kanezaki", zero=True, continuity=continuity, learning_rate=learning_rate)
    params = _first_weights(channels, seed)
    state = _State(jnp.int32(0), jnp.int32(jnp.iinfo(jnp.int32).max), params, jax.tree.map(jnp.zeros_like, params))
    for number in numbers:
        state, label = _kanezaki(image, state, number, *counts, continuity, learning_rate)
        yield label


@functools.partial(jax.jit, static_argnames="channels")  # apart, since XLA takes longer over it than over the training
def _first_weights(channels: int, seed: int) -> PyTree:
    return FeatureClustering(channels).init(jax.random.key(seed), jnp.zeros((1, 1, 1, 3)))["params"]


@functools.partial(jax.jit, static_argnames=("channels", "shrink"))
def _kanezaki(image, state: _State, min_labels, iterations, channels, shrink, continuity, learning_rate) -> tuple[_State, Array]:
    h, w, c = image.shape
    whole = jnp.pad(image, ((0, -h % shrink), (0, -w % shrink), (0, 0)), mode="edge")
    small = whole.reshape(-1, shrink, whole.shape[1] // shrink, shrink, c).mean((1, 3))[None]
    model = FeatureClustering(channels)

    def loss(params: PyTree) -> tuple[Array, Array]:
        response = jnp.asarray(model.apply({"params": params}, small))
        return clustering_loss(response, continuity), jnp.argmax(response, -1)

    def step(state: _State) -> _State:
        (_, label), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
        velocity = jax.tree.map(lambda v, g: _MOMENTUM * v + g, state.velocity, gradient)
        params = jax.tree.map(lambda p, v: p - learning_rate * v, state.params, velocity)
        return _State(state.iteration + 1, (jnp.bincount(label.ravel(), length=channels) > 0).sum(dtype=jnp.int32), params, velocity)

    def going_on(state: _State) -> Array:
        return (state.iteration < iterations) & (state.labels > min_labels)

    state = lax.while_loop(going_on, step, state)
    label = jnp.argmax(model.apply({"params": state.params}, small)[0], -1)
    return state, consecutive(label, channels).repeat(shrink, 0).repeat(shrink, 1)[:h, :w].astype(jnp.int32)
