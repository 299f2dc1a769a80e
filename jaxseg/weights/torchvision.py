"""torchvision's fcn_resnet50 and fcn_resnet101, and its ResNet and VGG16 classifiers as encoders.

The images of these weights are RGB, 0..1, less 0.485, 0.456, 0.406 and divided by 0.229, 0.224, 0.225.
"""

from typing import Any

from jaxseg.models.resnet import RESNETS
from jaxseg.models.vgg import CONVS
from jaxseg.weights.table import Layout, conv, conv_norm

CLASSIFIER_IGNORED = tuple(f"{layer}.{kind}" for layer in ("fc", *(f"classifier.{i}" for i in (0, 3, 6))) for kind in ("weight", "bias"))
"""Keys of the classifiers that an encoder has no place for: what turns the last map into scores of ImageNet's classes."""


def layout(model: Any) -> Layout:
    """Of FCNResNet, with its auxiliary head where it has one: key -> (path in our variables, how the array changes)."""
    table = resnet(model.encoder, "backbone.")
    for key, ours in {"classifier": "", "aux_classifier": "auxiliary_"}.items():
        if key == "classifier" or model.auxiliary:
            table |= conv_norm(f"{key}.0", f"{key}.1", (f"{ours}conv",)) | conv(f"{key}.4", (f"{ours}logits",), bias=True)
    return table


def classifier_layout(model: Any) -> Layout:
    """Of torchvision's resnet18 to resnet101 and vgg16: the `encoder` of a model, the rest of which stays as initialised."""
    return vgg16("features.") if model.encoder == "vgg16" else resnet(model.encoder, "")


def resnet(name: str, prefix: str) -> Layout:
    """Of one of `RESNETS`, "encoder" in our variables, whose keys begin with `prefix`."""
    encoder = RESNETS[name]()
    table = conv_norm(f"{prefix}conv1", f"{prefix}bn1", ("encoder", "stem_conv"))
    for layer, blocks in enumerate(encoder.blocks, 1):
        for i in range(blocks):
            key, ours = f"{prefix}layer{layer}.{i}", f"layer{layer}_{i}"
            for j in range(1, 4 if encoder.bottleneck else 3):
                table |= conv_norm(f"{key}.conv{j}", f"{key}.bn{j}", ("encoder", f"{ours}_conv{j}"))
            if i == 0 and (layer > 1 or encoder.bottleneck):  # where the shape changes
                table |= conv_norm(f"{key}.downsample.0", f"{key}.downsample.1", ("encoder", f"{ours}_shortcut_conv"))
    return table


def vgg16(prefix: str) -> Layout:
    """Of the convolutions of VGG16, "encoder" in our variables; `prefix` ends with torchvision's "features."."""
    table: Layout = {}
    index = 0
    for stage, convs in enumerate(CONVS, 1):
        for i in range(1, convs + 1):
            table |= conv(f"{prefix}{index}", ("encoder", f"conv{stage}_{i}"), bias=True)
            index += 2  # its ReLU stands between
        index += 1  # and a pooling behind each stage
    return table
