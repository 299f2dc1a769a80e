"""What a network sees: maps of its layers, their receptive fields, the patches that excite a filter, and class activation maps."""

from jaxseg.heatmaps.effective_field import effective_field, effective_size
from jaxseg.heatmaps.grad_cam import seg_grad_cam
from jaxseg.heatmaps.layers import layer_map, layers
from jaxseg.heatmaps.patches import Patch, strongest_patches

__all__ = ["Patch", "effective_field", "effective_size", "layer_map", "layers", "seg_grad_cam", "strongest_patches"]
