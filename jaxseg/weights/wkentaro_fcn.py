"""FCN on VGG16 as in wkentaro/pytorch-fcn, which are the weights of the authors' Caffe release; and VGG16 classifiers as its beginning.

The images of these weights are BGR, 0..255, less 104.00699, 116.66877, 122.67892; those of torchvision's VGG16 are RGB, 0..1, less 0.485,
0.456, 0.406 and divided by 0.229, 0.224, 0.225.
"""

from typing import Any

from jaxseg.models.vgg import CONVS
from jaxseg.weights.table import Layout, conv
from jaxseg.weights.torchvision import vgg16

CLASSIFIER_IGNORED = ("classifier.6.weight", "classifier.6.bias")
"""Keys of torchvision's VGG16 that FCN has no place for: the scores of ImageNet's classes."""

_LINEAR = {0: "fc6", 3: "fc7"}


def layout(model: Any) -> Layout:
    """Of FCN32s, FCN16s, FCN8s and FCN8sAtOnce by `model.variant`: key -> (path in our variables, how the array changes)."""
    scored = {"32s": ["score_fr"], "16s": ["score_fr", "score_pool4"]}.get(model.variant, ["score_fr", "score_pool4", "score_pool3"])
    upscored = {"32s": ["upscore"], "16s": ["upscore2", "upscore16"]}.get(model.variant, ["upscore2", "upscore_pool4", "upscore8"])
    table: Layout = {}
    for stage, convs in enumerate(CONVS, 1):
        for i in range(1, convs + 1):
            table |= conv(f"conv{stage}_{i}", ("encoder", f"conv{stage}_{i}"), bias=True)
    for name in ("fc6", "fc7", *scored):
        table |= conv(name, (name,), bias=True)
    return table | {f"{name}.weight": (("params", name, "kernel"), "conv_transpose") for name in upscored}


def classifier_layout(model: Any) -> Layout:
    """Of torchvision's `vgg16`, FCN's beginning: what it leaves (scores, upscoring) stays as initialised, as in the paper."""
    table = vgg16("features.")
    for index, name in _LINEAR.items():
        table |= conv(f"classifier.{index}", (name,), bias=True, change="linear_conv")
    return table
