"""Segmentation without labels: each method maps an image [H,W,C] in 0..1 to an int32 label map [H,W] with labels 0..n-1.

Methods are deterministic functions of one image and keyword options, jitted inside, to be vmapped over images of one size (with the options
bound); those of HOST run in other libraries and are not. Grey (C=1) and RGB (C=3) are taken, anything else is an InputError.
"""

from collections.abc import Callable

from jaxtyping import Array, Int

from jaxseg.unsupervised.felzenszwalb import felzenszwalb
from jaxseg.unsupervised.gaussian_mixture import gaussian_mixture
from jaxseg.unsupervised.kanezaki import kanezaki
from jaxseg.unsupervised.kmeans import kmeans
from jaxseg.unsupervised.mean_shift import mean_shift
from jaxseg.unsupervised.merging import merge_regions, slic_merge
from jaxseg.unsupervised.normalized_cut import normalized_cut
from jaxseg.unsupervised.slic import slic

METHODS: dict[str, Callable[..., Int[Array, "h w"]]] = {
    "kmeans": kmeans,
    "gaussian_mixture": gaussian_mixture,
    "mean_shift": mean_shift,
    "slic": slic,
    "slic_merge": slic_merge,
    "normalized_cut": normalized_cut,
    "felzenszwalb": felzenszwalb,
    "kanezaki": kanezaki,
}
HOST: frozenset[str] = frozenset({"felzenszwalb"})
"""Methods that neither jit nor vmap can trace."""
SCALES: dict[str, tuple[str, tuple[float, ...]]] = {
    "kmeans": ("clusters", (2, 3, 4, 6, 9, 14)),
    "gaussian_mixture": ("components", (2, 3, 4, 6, 9, 14)),
    "mean_shift": ("bandwidth", (30.0, 22.0, 16.0, 12.0, 9.0, 6.0)),
    "slic": ("segments", (4, 8, 16, 32, 64, 128)),
    "slic_merge": ("threshold", (1.4, 0.9, 0.65, 0.5, 0.35, 0.22)),
    "normalized_cut": ("parts", (2, 4, 6, 9, 14, 20)),
    "felzenszwalb": ("scale", (1600.0, 800.0, 400.0, 200.0, 100.0, 50.0)),
    "kanezaki": ("min_labels", (3, 4, 6, 8, 12, 16)),
}
"""The option that makes segments larger or smaller, and values of it to try, from coarse to fine."""

__all__ = ["HOST", "METHODS", "SCALES", "merge_regions"]
