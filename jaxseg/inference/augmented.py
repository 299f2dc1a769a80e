"""Test-time augmentation: the mean of a model's probabilities over the symmetries of the square, and over scales."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.errors import InputError
from jaxseg.inference.whole import Predict, resized


def augmented(predict: Predict, *, symmetries: Literal[1, 4, 8] = 8, scales: tuple[float, ...] = (1.0,)) -> Predict:
    """`predict` averaged over turned, mirrored and resampled images: (variables, [N, H, W, C]) -> log-probabilities [N, H, W, K].

    Probabilities are averaged, not logits; their logarithm is what any further softmax or argmax wants, and is at least log of the smallest
    normal float32, -87.3. What comes out is as symmetric as the group: a turned image gives the turned result, to rounding.

    The network runs `symmetries * len(scales)` times, one after the other. Under jit the program holds it as often; give
    `jax.jit(predict)`, and call the result outside jit, to compile it once for each shape (a turned image that is not square has its own).

    Args:
      predict: (variables, image) -> logits of the image's height and width; it may be `jaxseg.inference.tiles.tiled`.
      symmetries: 1 leaves the image as it is, 4 turns it by multiples of 90 degrees, 8 also mirrors it.
      scales: factors that the image is resampled by, bilinearly; the probabilities are brought back to H x W.

    Raises:
      InputError: other symmetries, no scale or one out of range, or logits of another size than the image.

    Source: the U-Net of the ISBI 2012 challenge is a mean over 7 rotated versions of the image (Ronneberger et al. 2015, section 4).

    >>> brightness = lambda variables, image: jnp.concatenate([image, -image], axis=-1)
    >>> image = jnp.arange(6.0).reshape(1, 2, 3, 1) / 6
    >>> bool(jnp.allclose(augmented(brightness)((), image), jax.nn.log_softmax(brightness((), image)), atol=1e-6))
    True
    """
    if symmetries not in (1, 4, 8) or not scales or not all(0 < scale <= 4 for scale in scales):
        raise InputError(
            f"augmented: got symmetries={symmetries}, scales={scales}; required 1, 4 or 8 symmetries, and scales above 0 and at most 4. "
            "Give scales=(1.0,) for the image's own size."
        )
    group = [(turns, mirrored) for mirrored in (False, True)[: 1 + symmetries // 8] for turns in range(min(symmetries, 4))]

    def mean(variables: Any, image: Float[Array, "n h w c"]) -> Float[Array, "n h w k"]:
        height, width = image.shape[1:3]
        size, total = (height, width), jnp.zeros(())
        for scale in scales:
            scaled = _resample(image, resized(size, scale))
            for turns, mirrored in group:
                turned = jnp.rot90(scaled[:, :, ::-1] if mirrored else scaled, turns, (1, 2))
                logits = predict(variables, turned)
                if logits.shape[:3] != turned.shape[:3]:
                    raise InputError(
                        f"augmented: of an image {turned.shape} `predict` made {logits.shape}; required logits of the same height and "
                        "width. Give one that pads, such as a run's `predict`."
                    )
                back = jnp.rot90(jax.nn.softmax(logits), -turns, (1, 2))
                total = total + _resample(back[:, :, ::-1] if mirrored else back, size)
        return jnp.log(jnp.maximum(total / (len(scales) * symmetries), jnp.finfo(jnp.float32).tiny))

    return mean


def _resample(image: Float[Array, "n h w c"], size: tuple[int, ...]) -> Float[Array, "n h2 w2 c"]:
    if image.shape[1:3] == size:
        return image
    return jax.image.resize(image, (image.shape[0], *size, image.shape[-1]), "linear", antialias=True)
