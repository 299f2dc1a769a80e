"""A prediction at every pixel from a model with an output stride, by its coarse map instead of enlarging it."""

import functools
import types
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.errors import InputError
from jaxseg.inference.shift_and_stitch import shift_and_stitch
from jaxseg.inference.whole import Predict, predict_whole
from jaxseg.models import FCN, DirectHeatmap, FCNResNet, PlainEncoder

Method = Literal["shift_and_stitch", "a_trous"]
_AT_ONCE = 8  # shifted images in memory


class _Cells(NamedTuple):
    """Where the cells of a coarse map lie: cell `first` + i over the pixel stride * i + centre - 1/2."""

    stride: int
    centre: int
    first: int = 0


def dense(model: nn.Module, method: Method, **preprocess: Any) -> Predict:
    """(variables, image [N,H,W,C] in 0..1) -> logits [N,H,W,K] that the net computes at each pixel; of a run:
    `dense(run.model, method, **run.description["preprocess"])(run.variables, image)`.

    "shift_and_stitch" runs the coarse net for all stride^2 shifts of the image, 8 at a time; called outside jit it is compiled once.
    "a_trous" runs the same weights once, strides turned into dilation, with feature maps of the image's size. Both give the same but near
    the border, where the one pads the shifted image and the other each map. The logits stand over the middle of what they see, to half a
    pixel, as in the enlarged map. Nothing is learned: the net was trained on the enlarged map, which may still score higher.

    Args:
      model: `DirectHeatmap`, `FCN` or `FCNResNet`; a-trous needs a `DirectHeatmap` on `PlainEncoder`.
      preprocess: mean, std, resize and percentiles as `predict_whole` takes them.

    Raises:
      InputError: a model or a method for which this has no meaning.

    Source: Long, Shelhamer & Darrell 2015, section 3.2.
    """
    if method not in ("shift_and_stitch", "a_trous"):
        raise InputError(f"dense: got method={method!r}; required 'shift_and_stitch' or 'a_trous'.")
    if not isinstance(model, DirectHeatmap | FCN | FCNResNet):
        raise InputError(
            f"dense: {type(model).__name__} has no coarse map that is only enlarged; {method} has a meaning for DirectHeatmap, FCN and "
            "FCNResNet. Leave the method out."
        )
    if method == "shift_and_stitch":
        apply = functools.partial(_stitched, model, jax.jit(_coarse(model)))
    elif isinstance(model, DirectHeatmap) and getattr(model.encoder, "func", model.encoder) is PlainEncoder:
        encoder: Any = functools.partial(model.encoder, dilated=True)
        apply = functools.partial(_dilated, model, model.clone(encoder=encoder, enlarge=None))
    else:
        raise InputError(
            f"dense: {type(model).__name__} cannot be run a trous with the weights it has: required is a DirectHeatmap on PlainEncoder, "
            "whose every layer can be dilated. Take shift_and_stitch."
        )
    whole: Any = types.SimpleNamespace(apply=apply)  # predict_whole asks no more of a model
    return functools.partial(predict_whole, whole, **preprocess)


def _stitched(model: nn.Module, net: Predict, variables: Any, image: Float[Array, "n h w c"]) -> Float[Array, "n h w k"]:
    stride, centre, first = _cells(model, variables, image.shape[-1])

    def coarse(shifted: Array) -> Array:
        maps = [net(variables, shifted[i : i + _AT_ONCE]) for i in range(0, len(shifted), _AT_ONCE)]
        rows, columns = (side // stride for side in shifted.shape[1:3])
        return jnp.concatenate(maps)[:, first : first + rows, first : first + columns].astype(jnp.float32)

    return shift_and_stitch(coarse, _moved(image, centre), stride)


def _dilated(model: nn.Module, dilated: nn.Module, variables: Any, image: Float[Array, "n h w c"]) -> Any:
    return dilated.apply(variables, _moved(image, _cells(model, variables, image.shape[-1]).centre))


def _moved(image: Float[Array, "n h w c"], pixels: int) -> Float[Array, "n h2 w2 c"]:
    """What the net gives at a pixel is what it sees from there on down and right: the image is moved by half of that."""
    return jnp.pad(image, [(0, 0), (pixels, 0), (pixels, 0), (0, 0)])


def _cells(model: nn.Module, variables: Any, channels: int) -> _Cells:
    if isinstance(model, FCN):
        # Cell i of the last upscoring's input lies over pixel stride * i + stride - 1/2 - crop.
        stride, crop = {"32s": (32, 19), "16s": (16, 27)}.get(model.variant, (8, 31))
        return _Cells(stride, -crop % stride, -(-crop // stride) - 1)
    side = 1024  # a multiple of any encoder's stride
    stride = side // jax.eval_shape(_coarse(model), variables, jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)).shape[1]
    return _Cells(stride, stride // 2)


def _coarse(model: nn.Module) -> Predict:
    """The model without its enlargement."""
    if isinstance(model, FCN):
        return _seen(model, {"32s": "upscore", "16s": "upscore16"}.get(model.variant, "upscore8"), "input")
    return _seen(model, "logits", "output")


def _seen(model: nn.Module, layer: str, what: Literal["input", "output"]) -> Predict:
    """The model up to the input or the output of one layer; under jit what follows is left out."""

    def apply(variables: Any, image: Array) -> Array:
        seen = []

        def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            result = call(*args, **kwargs)
            if context.module.name == layer and context.method_name == "__call__":
                seen.append(args[0] if what == "input" else result)
            return result

        with nn.intercept_methods(watch):
            model.apply(variables, image)
        return seen[-1]

    return apply
