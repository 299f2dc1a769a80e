"""The U-Net paper's pixel weights, which make a network learn the narrow gaps between touching cells. NumPy and SciPy, on the host."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy import ndimage

from jaxseg.errors import InputError

# exp(-r^2 / 2) at r = 6 is 1.5e-8: outside, the border term is set to 0, an error below 1e-6 for w0 up to 65.
_CUTOFF_SIGMAS = 6.0


def border_weight_map(
    instances: Int[np.ndarray, "h w"],
    *,
    w0: float = 10.0,
    sigma: float = 5.0,
    class_weights: Sequence[float] | None = None,
    label: Int[np.ndarray, "h w"] | None = None,
    ignore_index: int = 255,
) -> Float[np.ndarray, "h w"]:
    """Weights [H,W] float32 from instance numbers [H,W] (0 = background): w = w_c + w0 exp(-(d1 + d2)^2 / (2 sigma^2)).

    d1 and d2 are the Euclidean distances, between pixel centres, to the nearest and to the second nearest instance. The second term
    is added on background pixels only, as is commonly done (inside an instance d1 would be 0), and is 0 where there are fewer than two
    instances within 6 sigma (an error below 1.6e-8 w0). Instances that touch without background between them get no term.

    Args:
        class_weights: w_c of each class, looked up in `label` (or, without `label`, in "is an instance": two classes). Default 1.
        label: class numbers [H,W]; pixels equal to `ignore_index` get w_c = 0 and no border term.

    Source: Ronneberger et al. 2015, U-Net, eq. 2 (w0 = 10, sigma about 5 pixels).
    """
    if instances.ndim != 2 or not np.issubdtype(instances.dtype, np.integer):
        raise InputError(
            f"border_weight_map: got instances {instances.shape} of type {instances.dtype}, need integers [H,W], 0 = background"
        )
    if label is not None and label.shape != instances.shape:
        raise InputError(f"border_weight_map: got label {label.shape} and instances {instances.shape}, need the same [H,W]")
    if not sigma > 0:
        raise InputError(f"border_weight_map: got sigma={sigma}, need sigma > 0 (pixels)")
    d1, d2 = _two_nearest(instances, _CUTOFF_SIGMAS * sigma)
    with np.errstate(under="ignore"):
        border = w0 * np.exp(-((d1 + d2) ** 2) / (2 * sigma**2))
    weight = np.where(instances == 0, border, 0)
    classes = (instances != 0).astype(np.int64) if label is None else label
    used = np.ones(classes.shape, bool) if label is None else label != ignore_index
    if class_weights is None:
        weight += 1
    else:
        if used.any() and not 0 <= classes[used].min() <= classes[used].max() < len(class_weights):
            raise InputError(
                f"border_weight_map: got {len(class_weights)} class weights and classes {classes[used].min()}..{classes[used].max()}, "
                "need one weight for every class in the label"
            )
        weight += np.asarray(class_weights, np.float64)[np.where(used, classes, 0)]
    return np.where(used, weight, 0).astype(np.float32)


def _two_nearest(instances: Int[np.ndarray, "h w"], cutoff: float) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """Distances [H,W] to the nearest and second nearest instance; inf where an instance is further than `cutoff`.

    One distance transform an instance, in its bounding box grown by the cutoff, merged into the two running minima.
    """
    d1 = np.full(instances.shape, np.inf)
    d2 = np.full(instances.shape, np.inf)
    numbers, dense = np.unique(instances, return_inverse=True)
    dense = dense.reshape(instances.shape)
    pad = int(np.ceil(cutoff))
    for i, box in enumerate(ndimage.find_objects(dense + 1)):
        if numbers[i] == 0 or box is None:
            continue
        window = tuple(slice(max(s.start - pad, 0), s.stop + pad) for s in box)
        d = np.asarray(ndimage.distance_transform_edt(dense[window] != i))
        d[d > cutoff] = np.inf
        a, b = d1[window], d2[window]
        np.minimum(b, np.maximum(a, d), out=b)
        np.minimum(a, d, out=a)
    return d1, d2
