"""Rules by which weights serve images of other channels and other classes; the first is segmentation_models.pytorch's."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.errors import InputError


def first_conv(kernel: Float[Array, "kh kw c o"], channels: int) -> Float[Array, "kh kw channels o"]:
    """The kernel of a network's first convolution for images of another number of channels.

    One channel: the sum, so that a grey image gives what its RGB copy gave. Otherwise the kernel's channels over and over, times the old
    number over the new, so that a sum over equal channels stays what it was.
    """
    c = kernel.shape[2]
    if channels < 1:
        raise InputError(f"first_conv: got {channels} channels; required at least 1.")
    if channels == 1:
        return kernel.sum(2, keepdims=True)
    return kernel[:, :, jnp.arange(channels) % c] * (c / channels)


def new_head(trained: Float[Array, "... k"], fresh: Float[Array, "... j"]) -> Float[Array, "... j"]:
    """The kernel or bias of the logits for a model of another number of classes.

    As many classes: `trained`. One class becoming two: nothing for the background, so that softmax gives what sigmoid gave. Otherwise the
    classes mean something else, and the model keeps its own, `fresh` from `init`.
    """
    if trained.shape[:-1] != fresh.shape[:-1]:
        raise InputError(f"new_head: got {trained.shape} for {fresh.shape}; required are shapes that differ only in the classes, the last.")
    if trained.shape == fresh.shape:
        return trained
    if (trained.shape[-1], fresh.shape[-1]) == (1, 2):
        return jnp.concatenate([jnp.zeros_like(trained), trained], axis=-1)
    return fresh
