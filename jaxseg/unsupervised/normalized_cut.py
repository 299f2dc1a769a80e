"""Normalised cuts of a graph of superpixels."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxseg.ops.shapes import integer
from jaxseg.unsupervised.features import checked, consecutive, need_numbers, pixel_features
from jaxseg.unsupervised.kmeans import lloyd, nearest, variance_split
from jaxseg.unsupervised.regions import region_means, sizes
from jaxseg.unsupervised.slic import superpixels


def normalized_cut(
    image: Float[Array, "h w c"], *, parts: int = 6, contrast: float = 10.0, distance: float = 0.15, segments: int = 300
) -> Int[Array, "h w"]:
    """Superpixels in at most `parts` groups, alike within and unlike without: [H,W,C] in 0..1 -> int32 [H,W], labels 0..n-1.

    Two superpixels are as alike as exp(-(d / contrast)² / 2 - (r / distance)² / 2), d the distance of their mean L*a*b* and texture
    energies, r that of their centres. The first eigenvectors of the graph are clustered (`lloyd`). A constant image is cut by position.

    Args:
      parts: at most; the scale parameter.
      contrast: units of L*a*b*.
      distance: in units of the image's longer side.
      segments: about so many superpixels.

    Raises:
      InputError: see `jaxseg.unsupervised.features.checked`; parts or segments is no positive integer,
        or another option is out of its range.

    Source: Shi & Malik 2000, Normalized cuts and image segmentation, eq. 5 to 7 and section 3 (simultaneous K-way cut).
    """
    image = checked("normalized_cut", image)
    need_numbers("normalized_cut", zero=False, contrast=contrast, distance=distance)
    parts, segments = integer("normalized_cut", "parts", parts, 1), integer("normalized_cut", "segments", segments, 1)
    return _normalized_cut(image, parts, contrast, distance, segments)


@functools.partial(jax.jit, static_argnames=("parts", "segments"))
def _normalized_cut(image: Array, parts: int, contrast: float, distance: float, segments: int) -> Array:
    features = pixel_features(image, 1.0, 1.0, oriented=False)
    label, bound = superpixels(features[..., :3], segments, compactness=10.0, iterations=10)
    size = sizes(label, bound)
    x = region_means(features, label, size) / jnp.array([contrast] * 6 + [distance] * 2)
    affinity = jnp.exp(-0.5 * ((x[:, None] - x) ** 2).sum(-1)) * (size > 0) * (size > 0)[:, None]
    return consecutive(cut(affinity, parts)[label], bound)


def cut(affinity: Float[Array, "r r"], parts: int) -> Int[Array, "r"]:
    """The nodes in at most `parts` groups with a small `ncut`: k-means on the generalised eigenvectors of smallest eigenvalues."""
    degree = affinity.sum(-1)
    root = 1 / jnp.sqrt(jnp.maximum(degree, 1e-12))
    _, vectors = jnp.linalg.eigh(root[:, None] * affinity * root)
    y = root[:, None] * vectors[:, ::-1][:, :parts]  # solve (D - W) y = l D y; the first is constant
    return nearest(y, lloyd(y, variance_split(y, parts), 30))


def ncut(affinity: Float[Array, "r r"], group: Int[Array, "r"], parts: int) -> Float[Array, ""]:
    """The sum over the groups of their affinity to the rest divided by that to all nodes; groups without any count 0.

    Source: Shi & Malik 2000, eq. 2 and, for more than two groups, section 3.
    """
    member = jax.nn.one_hot(group, parts, dtype=affinity.dtype)
    whole = member.T @ affinity.sum(-1)
    inner = jnp.einsum("rk,rs,sk->k", member, affinity, member)
    return jnp.where(whole > 0, (whole - inner) / jnp.maximum(whole, 1e-12), 0).sum()
