"""segmentation_models.pytorch's Unet with the encoders resnet18, resnet34, resnet50 and vgg16.

The images of its ImageNet encoders are RGB, 0..1, less 0.485, 0.456, 0.406 and divided by 0.229, 0.224, 0.225.
"""

from typing import Any

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
