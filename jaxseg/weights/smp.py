"""segmentation_models.pytorch's Unet with the encoders resnet18, resnet34, resnet50 and vgg16; its rules for other channels and classes.

The images of its ImageNet encoders are RGB, 0..1, less 0.485, 0.456, 0.406 and divided by 0.229, 0.224, 0.225.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.errors import InputError
from jaxseg.weights.table import Layout, conv, conv_norm
from jaxseg.weights.torchvision import resnet, vgg16


def layout(model: Any) -> Layout:
    """Of EncoderUNet with the upsampling of smp, `upsample=None`: key -> (path in our variables, how the array changes)."""
    table: Layout = {}
    if model.encoder == "vgg16":
        table |= vgg16("encoder.features.")
        for i in (0, 1):
            table |= conv_norm(f"decoder.center.{i}.0", f"decoder.center.{i}.1", (f"center_conv{i + 1}",))
    else:
        table |= resnet(model.encoder, "encoder.")
    for block in range(5):
        for i in (1, 2):
            key = f"decoder.blocks.{block}.conv{i}"
            table |= conv_norm(f"{key}.0", f"{key}.1", (f"up{4 - block}_conv{i}",))
    return table | conv("segmentation_head.0", ("logits",), bias=True)


def first_conv(kernel: Float[Array, "kh kw c o"], channels: int) -> Float[Array, "kh kw channels o"]:
    """The kernel of an encoder's first convolution for images of another number of channels, by smp's rule.

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
