"""Arrays in, arrays out: NHWC, any number of leading axes, no parameters, no Flax."""

from jaxseg.ops.conv_transpose import conv_transpose
from jaxseg.ops.pixel_shuffle import depth_to_space, space_to_depth
from jaxseg.ops.pooling import max_pool, max_pool_with_indices, max_unpool
from jaxseg.ops.resize import bilinear_x2, nearest_x2

__all__ = [
    "bilinear_x2",
    "conv_transpose",
    "depth_to_space",
    "max_pool",
    "max_pool_with_indices",
    "max_unpool",
    "nearest_x2",
    "space_to_depth",
]
