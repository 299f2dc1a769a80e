"""Pixel losses on logits [N,H,W,K] and labels [N,H,W].

One contract: `loss(logits, label, *, weight=None, ignore_index=255, axis_name=None, ...) -> float32 scalar`.

* Pixels labelled `ignore_index` are masked before anything else: neither their label nor their logits (not even nan) reach the value or
  the gradient.
* Any other label outside 0..K-1 makes the loss and its gradient nan: nothing can be raised under `jit`, and silence would train -1 as
  class K-1. `jaxseg data check` refuses such labels beforehand.
* Sums run in float32 whatever the type of the logits. With nothing to learn from (all ignored, all weights 0) loss and gradient are 0.
* `axis_name` names the axis of a `jax.pmap`: every sum over pixels is a `psum`, so that each device returns the value of the whole batch
  however unevenly the ignored pixels fall, and `lax.pmean` of the devices' gradients is the gradient of the whole batch.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxseg.errors import InputError


def cross_entropy(
    logits: Float[Array, "n h w k"],
    label: Int[Array, "n h w"],
    *,
    weight: Float[Array, "n h w"] | None = None,
    class_weights: Float[Array, "k"] | Sequence[float] | None = None,
    ignore_index: int = 255,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Weighted mean cross-entropy: sum_i w_i (-log softmax(logits_i)[label_i]) / sum_i w_i, w = class weight x pixel weight.

    Equals `torch.nn.functional.cross_entropy(..., weight=class_weights, ignore_index=...)` with its reduction "mean". With
    `weight=border_weight_map(...)` it is the energy of Ronneberger et al. 2015 (U-Net), eq. 1, divided by the sum of the weights.

    >>> import jax.numpy as jnp
    >>> print(f"{cross_entropy(jnp.zeros((1, 1, 2, 4)), jnp.array([[[3, 255]]])):.4f}")  # log 4; the second pixel is ignored
    1.3863
    """
    logits, label, w, bad = _masked("cross_entropy", logits, label, weight, class_weights, ignore_index)
    ce = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return _mean(ce, w, bad, axis_name)


def focal(
    logits: Float[Array, "n h w k"],
    label: Int[Array, "n h w"],
    *,
    gamma: float = 2.0,
    weight: Float[Array, "n h w"] | None = None,
    class_weights: Float[Array, "k"] | Sequence[float] | None = None,
    ignore_index: int = 255,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Focal loss, softmax form: sum_i w_i (1 - p_i)^gamma (-log p_i) / sum_i w_i with p_i = softmax(logits_i)[label_i].

    gamma=0 is `cross_entropy`; `class_weights` are the paper's alpha. (The paper divides by the number of objects; pixels have none.)

    Source: Lin et al. 2017, Focal Loss for Dense Object Detection, eq. 4 and 5.
    """
    if gamma < 0:
        raise InputError(f"focal: got gamma={gamma}, need gamma >= 0 (0 is cross_entropy, the paper's best is 2)")
    logits, label, w, bad = _masked("focal", logits, label, weight, class_weights, ignore_index)
    ce = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    # 1 - p from log p without cancellation. Kept above 0: the slope of x^gamma at 0 is infinite for gamma < 1.
    miss = jnp.maximum(-jnp.expm1(-ce), 1e-12)
    return _mean(miss**gamma * ce, w, bad, axis_name)


def soft_dice(
    logits: Float[Array, "n h w k"],
    label: Int[Array, "n h w"],
    *,
    weight: Float[Array, "n h w"] | None = None,
    ignore_index: int = 255,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Soft Dice loss: mean over classes of 1 - 2 sum_i w_i p_ik t_ik / (sum_i w_i p_ik + sum_i w_i t_ik), p = softmax, t = one-hot label.

    The sums run over all valid pixels of the whole batch, class by class. The one rule for absent classes: a class without a labelled
    pixel in the (whole) batch is left out of the mean. So no denominator is ever near 0 and no epsilon is needed: a perfect prediction
    gives 0, a complete miss exactly 1, and half precision changes nothing. Softmax is inside; pass logits.

    Source: Milletari et al. 2016 (V-Net), with the plain instead of the squared denominator; Drozdzal et al. 2016, section 3.
    """
    logits, label, w, bad = _masked("soft_dice", logits, label, weight, None, ignore_index)
    k = logits.shape[-1]
    w = w[..., None]
    p = jax.nn.softmax(logits) * w
    t = jax.nn.one_hot(label, k)
    pixels = tuple(range(label.ndim))
    overlap, p_sum, t_sum = (_sum(x, pixels, axis_name) for x in (p * t, p, t * w))
    present = t_sum > 0
    dice = jnp.where(present, 2 * overlap / jnp.where(present, p_sum + t_sum, 1), 0)
    count = present.sum()
    loss = jnp.where(count > 0, 1 - dice.sum() / jnp.maximum(count, 1), 0)
    return loss * _poison(bad, axis_name)


def cross_entropy_dice(
    logits: Float[Array, "n h w k"],
    label: Int[Array, "n h w"],
    *,
    dice_share: float = 0.5,
    weight: Float[Array, "n h w"] | None = None,
    class_weights: Float[Array, "k"] | Sequence[float] | None = None,
    ignore_index: int = 255,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """(1 - dice_share) cross_entropy + dice_share soft_dice; `weight` acts on both, `class_weights` on the cross-entropy only."""
    if not 0 <= dice_share <= 1:
        raise InputError(f"cross_entropy_dice: got dice_share={dice_share}, need a share in 0..1")
    ce = cross_entropy(logits, label, weight=weight, class_weights=class_weights, ignore_index=ignore_index, axis_name=axis_name)
    dice = soft_dice(logits, label, weight=weight, ignore_index=ignore_index, axis_name=axis_name)
    return (1 - dice_share) * ce + dice_share * dice


LOSSES = {"cross_entropy": cross_entropy, "soft_dice": soft_dice, "focal": focal, "cross_entropy_dice": cross_entropy_dice}


def _masked(
    who: str, logits: Array, label: Array, weight: Array | None, class_weights: Array | Sequence[float] | None, ignore_index: int
) -> tuple[Float[Array, "n h w k"], Int[Array, "n h w"], Float[Array, "n h w"], Bool[Array, ""]]:
    """Check static shapes; return float32 logits and labels with unused pixels zeroed, weights (0 = unused), any label illegal."""
    if logits.ndim < 2 or logits.shape[:-1] != label.shape:
        raise InputError(f"{who}: got logits {logits.shape} and label {label.shape}, need [N,H,W,K] and [N,H,W] with the same N, H and W")
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise InputError(f"{who}: got logits of type {logits.dtype}, need floating-point logits (not class numbers)")
    if not jnp.issubdtype(label.dtype, jnp.integer):
        raise InputError(f"{who}: got labels of type {label.dtype}, need integer class numbers; convert with label.astype(jnp.int32)")
    if weight is not None and weight.shape != label.shape:
        raise InputError(f"{who}: got weight {weight.shape}, need one weight a pixel: {label.shape}")
    k = logits.shape[-1]
    if class_weights is not None:
        class_weights = jnp.asarray(class_weights, jnp.float32)
        if class_weights.shape != (k,):
            raise InputError(f"{who}: got class_weights of shape {class_weights.shape}, need one weight a class: ({k},)")
    label = jnp.asarray(label).astype(jnp.int32)
    valid = label != ignore_index
    legal = (label >= 0) & (label < k)
    bad = jnp.any(valid & ~legal)
    use = valid & legal
    label = jnp.where(use, label, 0)
    w = jnp.ones(label.shape, jnp.float32)
    if weight is not None:
        w = jnp.asarray(weight, jnp.float32)
    if class_weights is not None:
        w = w * class_weights[label]
    # Selected, not multiplied: 0 * nan is nan.
    w = jnp.where(use, w, 0)
    logits = jnp.where(use[..., None], jnp.asarray(logits).astype(jnp.float32), 0)
    return logits, label, w, bad


def _sum(x: Array, axes: tuple[int, ...] | None, axis_name: str | None) -> Array:
    total = jnp.sum(x, axis=axes)
    return total if axis_name is None else jax.lax.psum(total, axis_name)


def _mean(value: Float[Array, "n h w"], w: Float[Array, "n h w"], bad: Bool[Array, ""], axis_name: str | None) -> Float[Array, ""]:
    total, norm = _sum(w * value, None, axis_name), _sum(w, None, axis_name)
    return total / jnp.where(norm > 0, norm, 1) * _poison(bad, axis_name)


def _poison(bad: Bool[Array, ""], axis_name: str | None) -> Float[Array, ""]:
    """1, or nan on every device when a label is illegal on any; a factor, so that the gradients are nan too."""
    return jnp.where(_sum(bad.astype(jnp.int32), None, axis_name) > 0, jnp.nan, 1.0).astype(jnp.float32)
