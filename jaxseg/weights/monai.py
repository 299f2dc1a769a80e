"""MONAI's BasicUNet of two dimensions, with its default norm and activation."""

from jaxseg.models.basic_unet import BasicUNet
from jaxseg.weights.table import Layout, conv

_UPSAMPLE = {"deconv": "deconv", "nontrainable": "preconv", "pixelshuffle": "pixelshuffle.conv_block"}


def layout(model: BasicUNet) -> Layout:
    """Key -> (path in our variables, how the array changes). `upcat_4` there is our coarsest, up3."""
    table: Layout = {}
    depth = len(model.features) - 2
    for level in range(depth + 1):
        table |= _two_convs("conv_0" if level == 0 else f"down_{level}.convs", f"down{level}")
    for level in range(depth):
        at, change = f"upcat_{level + 1}", "conv_transpose" if model.upsample == "deconv" else "conv"
        if model.upsample != "nontrainable" or level > 0:  # the finest keeps its channels
            table |= conv(f"{at}.upsample.{_UPSAMPLE[model.upsample]}", (f"up{level}_sample",), bias=True, change=change)
        table |= _two_convs(f"{at}.convs", f"up{level}")
    return table | conv("final_conv", ("logits",), bias=True)


def _two_convs(at: str, name: str) -> Layout:
    table: Layout = {}
    for i in (0, 1):
        table |= conv(f"{at}.conv_{i}.conv", (f"{name}_conv{i + 1}",), bias=True)
        table[f"{at}.conv_{i}.adn.N.weight"] = ("params", f"{name}_norm{i + 1}", "scale"), "same"
        table[f"{at}.conv_{i}.adn.N.bias"] = ("params", f"{name}_norm{i + 1}", "bias"), "same"
    return table
