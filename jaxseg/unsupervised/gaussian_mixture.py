"""A mixture of Gaussians on colour, texture and position, fitted by expectation maximisation."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxseg.ops.shapes import integer
from jaxseg.unsupervised.features import checked, consecutive, need_numbers, pixel_features
from jaxseg.unsupervised.kmeans import nearest, variance_split


def gaussian_mixture(
    image: Float[Array, "h w c"],
    *,
    components: int = 6,
    texture: float = 1.0,
    position: float = 20.0,
    iterations: int = 20,
    floor: float = 4.0,
) -> Int[Array, "h w"]:
    """Each pixel's likeliest component of a mixture of Gaussians with full covariances: [H,W,C] in 0..1 -> int32 [H,W], labels 0..n-1.

    Features are L*a*b*, texture energy at three scales, and position. EM begins at the clusters around the seeds of `variance_split`,
    without chance. Components likeliest nowhere are left out of the numbering, so more components than pixels do no harm. A constant image
    is cut by position alone: position=0 leaves it whole.

    Args:
      components: at most; the scale parameter.
      texture: weight of the texture energy, in units of L*.
      position: units of L*a*b* that the image's longer side counts for.
      iterations: of expectation and maximisation.
      floor: least variance in any direction, squared units of L*a*b*.

    Raises:
      InputError: see `jaxseg.unsupervised.features.checked`; components or iterations is no positive integer,
        or another option is out of its range.
    """
    image = checked("gaussian_mixture", image)
    need_numbers("gaussian_mixture", zero=True, texture=texture, position=position)
    need_numbers("gaussian_mixture", zero=False, floor=floor)
    components = integer("gaussian_mixture", "components", components, 1)
    iterations = integer("gaussian_mixture", "iterations", iterations, 1)
    return _gaussian_mixture(image, components, texture, position, iterations, floor)


class Mixture(NamedTuple):
    """Weights, means and, for each component, the whitening: its columns are the covariance's axes over their standard deviations."""

    log_weight: Float[Array, "k"]
    mean: Float[Array, "k d"]
    whitening: Float[Array, "k d d"]


@functools.partial(jax.jit, static_argnames=("components", "iterations"))
def _gaussian_mixture(image: Array, components: int, texture: float, position: float, iterations: int, floor: float) -> Array:
    features = pixel_features(image, texture, position, oriented=False)
    x = features.reshape(-1, features.shape[-1])
    x = x - x.mean(0)  # second moments about far away means lose digits
    start = jax.nn.one_hot(nearest(x, variance_split(x, components)), components)
    fitted = lax.fori_loop(0, iterations, lambda _, m: maximisation(x, expectation(x, m)[0], floor), maximisation(x, start, floor))
    label = jnp.argmax(expectation(x, fitted)[0], -1).astype(jnp.int32)
    return consecutive(label.reshape(image.shape[:2]), components)


def expectation(x: Float[Array, "n d"], mixture: Mixture) -> tuple[Float[Array, "n k"], Float[Array, ""]]:
    """The components' shares of each point, and the mean log likelihood of a point."""
    k, d = mixture.mean.shape
    offset = jnp.einsum("kd,kde->ke", mixture.mean, mixture.whitening)
    white = (x @ mixture.whitening.transpose(1, 0, 2).reshape(d, k * d)).reshape(-1, k, d) - offset
    log_volume = jnp.linalg.slogdet(mixture.whitening)[1]
    joint = mixture.log_weight + log_volume - 0.5 * (white**2).sum(-1) - 0.5 * d * math.log(2 * math.pi)
    likelihood = jax.scipy.special.logsumexp(joint, axis=-1)
    return jnp.exp(joint - likelihood[:, None]), likelihood.mean()


def maximisation(x: Float[Array, "n d"], share: Float[Array, "n k"], floor: float) -> Mixture:
    """The likeliest mixture for the shares among those whose variance is at least `floor` in every direction.

    It has the axes of the weighted covariance, and the larger of its variance and the floor along each: with the floor, too, the
    likelihood cannot fall from one iteration to the next. A component without a share is given weight 0.
    """
    n, d = x.shape
    size = share.sum(0)
    per = 1 / jnp.maximum(size, 1e-6)[:, None]
    mean = share.T @ x * per
    second = (share.T @ (x[:, :, None] * x[:, None]).reshape(n, d * d) * per).reshape(-1, d, d)
    variance, axes = jnp.linalg.eigh(second - mean[:, :, None] * mean[:, None])
    return Mixture(jnp.log(size / n), mean, axes / jnp.sqrt(jnp.maximum(variance, floor))[:, None])
