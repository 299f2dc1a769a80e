"""Arrays in, arrays out: NHWC, any number of leading axes, no parameters, no Flax."""

from jaxseg.ops.content_aware import carafe
from jaxseg.ops.conv import conv_general_dilated
from jaxseg.ops.conv_transpose import conv_transpose
from jaxseg.ops.pixel_shuffle import depth_to_space, icnr, space_to_depth
from jaxseg.ops.pooling import flat_indices, max_pool, max_pool_with_indices, max_unpool, window_indices
from jaxseg.ops.prediction import bilinear_kernel, upsample_prediction
from jaxseg.ops.resize import resize
from jaxseg.ops.volumes import conv_transpose_3d, max_pool_3d
from jaxseg.ops.zero_insert import zero_insert

__all__ = [
    "bilinear_kernel",
    "carafe",
    "conv_general_dilated",
    "conv_transpose",
    "conv_transpose_3d",
    "depth_to_space",
    "flat_indices",
    "icnr",
    "max_pool",
    "max_pool_3d",
    "max_pool_with_indices",
    "max_unpool",
    "resize",
    "space_to_depth",
    "upsample_prediction",
    "window_indices",
    "zero_insert",
]
