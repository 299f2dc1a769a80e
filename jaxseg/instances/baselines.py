"""Objects without learning: one global threshold (Otsu 1979), then connected components or a watershed of the distance to the ground."""

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8, UInt16
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.filters import threshold_otsu
from skimage.segmentation import watershed

from jaxseg.instances.border import SMALLEST_PX, without_small

Grey = UInt8[np.ndarray, "h w 1"] | UInt16[np.ndarray, "h w 1"] | Float[np.ndarray, "h w 1"]


def otsu_components(image: Grey) -> Int[np.ndarray, "h w"]:
    """The label map of the connected components (4 neighbours) above the threshold of the image, smoothed by 1 px, holes filled."""
    label = np.zeros(image.shape[:2], np.int32)
    ndimage.label(_foreground(image), output=label)
    return without_small(label, SMALLEST_PX)


def otsu_watershed(image: Grey) -> Int[np.ndarray, "h w"]:
    """The foreground of `otsu_components` cut where its distance to the ground, smoothed by 2 px, has passes between two maxima."""
    foreground = _foreground(image)
    distance = ndimage.gaussian_filter(np.asarray(ndimage.distance_transform_edt(foreground)), 2.0)
    seeds = np.zeros(foreground.shape, np.int32)
    peaks = peak_local_max(distance, min_distance=5, labels=foreground.astype(np.int32), exclude_border=False)
    seeds[tuple(peaks.T)] = np.arange(len(peaks)) + 1
    return without_small(watershed(-distance, seeds, mask=foreground), SMALLEST_PX)


def _foreground(image: Grey) -> Bool[np.ndarray, "h w"]:
    smooth = ndimage.gaussian_filter(image[..., 0].astype(np.float32), 1.0)
    if smooth.min() == smooth.max():  # one colour has no threshold
        return np.zeros(smooth.shape, bool)
    return np.asarray(ndimage.binary_fill_holes(smooth > threshold_otsu(smooth)))
