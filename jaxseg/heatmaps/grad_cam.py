"""Gradient-weighted class activation maps for segmentation."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxseg.errors import InputError
from jaxseg.heatmaps.layers import check_layer, layers, visit


def seg_grad_cam(
    apply: Callable[[Any, Float[Array, "n h w c"]], Float[Array, "n h w k"]],
    variables: Any,
    image: Float[Array, "n h w c"],
    *,
    layer: str,
    classes: Sequence[int],
    region: Bool[Array, "n h w"] | None = None,
) -> Float[Array, "n h2 w2 m"]:
    """Where in a layer's map lies what speaks for each of `classes`: [N,H,W,C] -> [N,H2,W2,M], from 0 on, in the layer's own size.

    The logits of a class are summed over the region; the gradient of that sum by the layer's map A, averaged over the map's pixels, weighs
    its channels: ReLU(sum_k mean_uv(d sum_region logit / d A_uvk) A_k). Pure; under jit, `layer` and `classes` are static.

    Args:
      apply: (variables, image) -> logits, such as `model.apply` or `run.predict`.
      layer: a name of `layers(apply)`; of the paper's choice, the bottleneck, in our U-Net the coarsest `down..` layer.
      classes: numbers of the classes wanted.
      region: the pixels whose logits are summed, all of which are explained together; by default those predicted as the class, and a class
        that is predicted nowhere has a map of 0.

    Raises:
      InputError: there is no such layer or class, or the region is not of the logits' size.

    Source: Vinogradova, Dibrov & Myers 2020, Towards Interpretable Semantic Segmentation via Gradient-weighted Class Activation Mapping,
      equations 1 and 2.
    """
    shapes = jax.eval_shape(layers(apply), variables, image)
    check_layer(layer, shapes)

    def added(extra: Array) -> tuple[Array, Array]:
        found = []

        def see(name: str, x: Array) -> Array:
            if name != layer:
                return x
            found.append(x + extra)
            return found[-1]

        return visit(apply, see)(variables, image), found[0]

    logits, gradients, maps = jax.vjp(added, jnp.zeros(shapes[layer].shape, shapes[layer].dtype), has_aux=True)
    wrong = [c for c in classes if not 0 <= c < logits.shape[-1]]
    if wrong or not classes:
        raise InputError(
            f"seg_grad_cam: got the classes {list(classes)}; required some of 0 to {logits.shape[-1] - 1}. Correct the number."
        )
    if region is not None and region.shape != logits.shape[:3]:
        raise InputError(f"seg_grad_cam: got a region of shape {region.shape}; required that of the logits, {logits.shape[:3]}.")
    wanted = jnp.asarray(classes)
    pixels = logits.argmax(-1) == wanted[:, None, None, None] if region is None else jnp.broadcast_to(region, (len(classes), *region.shape))
    summed = pixels[..., None] * jax.nn.one_hot(wanted, logits.shape[-1], dtype=logits.dtype)[:, None, None, None]
    weights = jax.vmap(lambda which: gradients(which)[0].mean((1, 2)))(summed)
    return jax.nn.relu(jnp.einsum("nhwk,mnk->nhwm", maps, weights))
