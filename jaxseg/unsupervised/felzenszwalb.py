"""Felzenszwalb and Huttenlocher's graph-based segmentation, scikit-image's."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxseg.ops.shapes import integer
from jaxseg.unsupervised.features import checked, need_numbers


def felzenszwalb(image: Float[Array, "h w c"], *, scale: float = 300.0, sigma: float = 0.8, min_size: int = 100) -> Int[Array, "h w"]:
    """Regions whose inner differences are smaller than those to their neighbours: [H,W,C] in 0..1 -> int32 [H,W].

    It runs in scikit-image: neither jit nor vmap can trace it. A constant image gives one region.

    Args:
      scale: the larger, the larger the regions; the scale parameter, for images in 0..255 (scikit-image divides it by 255).
      sigma: of the Gaussian that smooths the image before, pixels.
      min_size: pixels; smaller regions are joined to a neighbour.

    Raises:
      InputError: see `jaxseg.unsupervised.features.checked`; min_size is no integer from 0 on, or another option is negative.

    Source: Felzenszwalb & Huttenlocher 2004, Efficient graph-based image segmentation; skimage.segmentation.felzenszwalb.
    """
    from skimage.segmentation import felzenszwalb as regions  # scikit-image takes a second to import

    rgb = np.asarray(checked("felzenszwalb", image))
    need_numbers("felzenszwalb", zero=True, scale=scale, sigma=sigma)
    label = regions(rgb, scale=scale, sigma=sigma, min_size=integer("felzenszwalb", "min_size", min_size, 0))
    return jnp.asarray(np.unique(label, return_inverse=True)[1].reshape(label.shape), jnp.int32)
