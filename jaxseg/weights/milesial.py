"""The U-Net of milesial/Pytorch-UNet. Its images are RGB, 0..1. The released Carvana weights are of 3 channels and 2 classes."""

from jaxseg.models.milesial import MilesialUNet
from jaxseg.weights.table import Layout, conv, conv_norm

IGNORED = ("mask_values",)
"""Keys that have no place here: the grey values of the training labels."""


def layout(model: MilesialUNet) -> Layout:
    """Key -> (path in our variables, how the array changes). `up1` there is our coarsest, up3."""
    table: Layout = {}
    depth = len(model.features) - 1
    for level in range(depth + 1):
        at = "inc" if level == 0 else f"down{level}.maxpool_conv.1"
        table |= _double_conv(f"{at}.double_conv", f"down{level}")
    for level in range(depth):
        at = f"up{depth - level}"
        if not model.bilinear:
            table[f"{at}.up.weight"] = ("params", f"up{level}_sample", "kernel"), "conv_transpose"
            table[f"{at}.up.bias"] = ("params", f"up{level}_sample", "bias"), "same"
        table |= _double_conv(f"{at}.conv.double_conv", f"up{level}")
    return table | conv("outc.conv", ("logits",), bias=True)


def _double_conv(at: str, name: str) -> Layout:
    pairs = enumerate(((0, 1), (3, 4)), 1)
    return {k: v for i, (a, b) in pairs for k, v in conv_norm(f"{at}.{a}", f"{at}.{b}", (f"{name}_conv{i}",)).items()}
