"""`jaxseg models`: every model with its paper, and what can be read off it without computing it."""

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import tyro
from jax.extend import core

from jaxseg.errors import InputError
from jaxseg.models import MODELS
from jaxseg.models.nnunet import ResidualEncoderUNet
from jaxseg.receptive_field import fields, receptive_field

WHOLE = "whole image"


class Entry(NamedTuple):
    """What the table knows of a model that the model does not tell.

    `thin` are its fields for the receptive field, on which widths have no influence, and `side` that of an image that is larger than the
    field; `variants` are the rows that it has, by name, each with its fields.
    """

    paper: str
    thin: Mapping[str, Any]
    side: int
    variants: Mapping[str, Mapping[str, Any]] = {"": {}}


_FIVE = (1, 1, 1, 1, 1)
ENTRIES = {
    "unet": Entry("U-Net: Convolutional Networks, MICCAI 2015, arXiv 1505.04597", {"features": _FIVE}, 320, {"": {"padding": "same"}}),
    "fcn": Entry(
        "Fully Convolutional Networks, CVPR 2015, arXiv 1411.4038",
        {"features": _FIVE, "fc_features": 1},
        640,
        {variant: {"variant": variant} for variant in ("32s", "16s", "8s", "8s_at_once")},
    ),
    "fcn_resnet": Entry(
        "Dilated Residual Networks, CVPR 2017, arXiv 1705.09914; torchvision",
        {"width": 1},
        1152,
        {encoder: {"encoder": encoder} for encoder in ("resnet50", "resnet101")},
    ),
    "segnet": Entry("SegNet, TPAMI 2017, arXiv 1511.00561", {"features": _FIVE}, 640),
    "segnet_basic": Entry("SegNet, TPAMI 2017, arXiv 1511.00561", {"features": 1}, 400),
    "deconvnet": Entry("Learning Deconvolution Network, ICCV 2015, arXiv 1505.04366", {"features": _FIVE, "middle": 1}, 1024),
    "encoder_unet": Entry(
        "TernausNet, 2018, arXiv 1801.05746; segmentation_models.pytorch",
        {"width": 1, "decoder": _FIVE},
        1216,
        {
            **{encoder: {"encoder": encoder} for encoder in ("resnet18", "resnet34", "resnet50", "vgg16")},
            "efficientnet_lite0": {"encoder": "efficientnet_lite0", "width": 64},
        },
    ),
    "unet_plus_plus": Entry("UNet++: A Nested U-Net, DLMIA 2018, arXiv 1807.10165", {"features": _FIVE}, 320),
    "attention_unet": Entry("Attention U-Net, MIDL 2018, arXiv 1804.03999", {"features": _FIVE}, 320),
    "residual_unet": Entry("Road Extraction by Deep Residual U-Net, GRSL 2018, arXiv 1711.10684", {"features": _FIVE[:4]}, 160),
    "nnunet": Entry(
        "nnU-Net, Nature Methods 2021, arXiv 1904.08128; Revisited, MICCAI 2024, arXiv 2404.09556",
        {"features": (1,) * 8},
        256,
        {"": {}, "residual_encoder": ResidualEncoderUNet.keywords},
    ),
    "milesial": Entry("U-Net as in milesial/Pytorch-UNet", {"features": (2,) * 5}, 320),
    "basic_unet": Entry("U-Net: deep learning for cell counting, Nature Methods 2019; MONAI", {"features": (2,) * 6}, 256),
    "heatmap": Entry("Fully Convolutional Networks (section 3), CVPR 2015, arXiv 1411.4038", {}, 128),
    "conv_only": Entry("Fully Convolutional Networks (section 3), CVPR 2015, arXiv 1411.4038", {}, 64),
}


class Row(NamedTuple):
    """One line of the table. `gflop` is None where the model does not take the size."""

    name: str
    paper: str
    parameters: int
    gflop: float | None
    output_stride: int
    receptive_field: int | str


def variants(names: Sequence[str] = ()) -> dict[str, tuple[str, Callable[..., nn.Module]]]:
    """{"fcn/32s": (name of the model, partial of it)} of the named models and variants, all where none is named.

    Raises:
      InputError: there is no such model or variant.
    """
    made = {
        f"{name}/{variant}" if variant else name: (name, functools.partial(MODELS[name], **options))
        for name, entry in ENTRIES.items()
        for variant, options in entry.variants.items()
    }
    unknown = [name for name in names if name not in made and name not in ENTRIES]
    if unknown:
        raise InputError(f"models: got {', '.join(unknown)}; required some of {', '.join({**ENTRIES, **made})}. Correct the name.")
    return {key: found for key, found in made.items() if not names or key in names or found[0] in names}


def row(key: str, *, size: int = 256, classes: int = 2, channels: int = 3) -> Row:
    """The line of a model or variant for one image of size x size pixels; nothing is computed but shapes and dependences."""
    name, make = variants([key])[key]
    entry, image = ENTRIES[name], jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    thin = make(num_classes=1, dtype=jnp.bfloat16, **{**entry.thin, **make.keywords})
    # In bfloat16, so that the products counted are those of the layers and not of Winograd's form of them.
    model = make(num_classes=classes, dtype=jnp.bfloat16)
    try:
        gflop = flops(model.apply, jax.eval_shape(model.init, jax.random.key(0), image), image) / 1e9
    except InputError:
        gflop = None
    return Row(
        key,
        entry.paper,
        parameters(model, channels),
        gflop,
        output_stride(thin),
        _field(thin, entry.side),
    )


def parameters(model: nn.Module, channels: int = 3) -> int:
    """How many numbers the model learns, for images of so many channels."""
    image = jax.ShapeDtypeStruct((1, 256, 256, channels), jnp.float32)
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0), image)["params"]))


def flops(fn: Callable[..., Any], *args: Any) -> int:
    """Floating point operations of `fn`'s convolutions and matrix products, 2 for each multiplication and addition; all else is left out.

    They are counted in the traced function: padding counts as pixels do, zeros between the pixels of a transposed convolution do not, and
    what no result depends on is left out.

    >>> flops(jnp.matmul, jnp.ones((64, 32)), jnp.ones((32, 16))) == 2 * 64 * 32 * 16
    True
    """
    return 2 * _products(jax.make_jaxpr(fn)(*args).jaxpr)


def output_stride(model: nn.Module) -> int:
    """How many pixels of the image are one of the coarsest map: what the encoder leaves, before anything is enlarged.

    Two images of different sizes tell it apart from paddings: maps grow by so much less than the image does.
    """
    small, large = (list(_maps(model, side)) for side in (256, 512))
    grown = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(small, large, strict=True)]
    return max(256 // rows for rows, columns in grown if rows > 0 and columns > 0)


def models(
    names: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[NAME ...]")] = (),
    size: int = 256,
    classes: int = 2,
    channels: int = 3,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> int:
    """The table of all models: paper, parameters, FLOPs, output stride and receptive field.

    For example, the four FCNs for 21 classes at 512 x 512 pixels: `jaxseg models fcn --size 512 --classes 21`

    Args:
      names: models such as fcn, or variants such as fcn/8s; all where none is given.
      size: side of the square image that FLOPs are counted for, pixels.
      classes: that the logits tell apart.
      channels: of the image.
      as_json: print a list of objects instead of the table.
    """
    wrong = {"--size": size, "--classes": classes, "--channels": channels}
    if min(wrong.values()) < 1:
        raise InputError(f"{' '.join(f'{option} {got}' for option, got in wrong.items())}: required is at least 1 of each.")
    keys = list(variants(names))
    with ThreadPoolExecutor(2) as pool:  # most of the time XLA compiles, without Python's lock
        rows = pool.map(functools.partial(row, size=size, classes=classes, channels=channels), keys)
        if as_json:
            print(json.dumps([found._asdict() for found in rows], indent=1))
            return 0
        widths = (max(map(len, keys)), 11, 8, 6, 11)
        for line in _lines(rows, widths):
            print(line, flush=True)
    print(
        f"\nGFLOP: of one image of {size} x {size} pixels of {channels} channels, {classes} classes; convolutions and matrix products, "
        "2 operations each.\nStride: pixels of the image that are one of the coarsest map. Field: side of the image's part that a logit "
        "depends on, in pixels."
    )
    return 0


def _lines(rows: Iterator[Row], widths: Sequence[int]) -> Iterator[str]:
    def line(first: str, cells: Sequence[str], paper: str) -> str:
        return "  ".join([first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells, widths[1:], strict=True)), paper])

    yield line("model", ("parameters", "GFLOP", "stride", "field"), "paper")
    for r in rows:
        gflop = "too small" if r.gflop is None else f"{r.gflop:.3g}"
        yield line(r.name, (f"{r.parameters:,}", gflop, str(r.output_stride), str(r.receptive_field)), r.paper)


def _field(model: nn.Module, side: int) -> int | str:
    """The side of the receptive field, or that there is no end of it; our models treat rows and columns alike."""
    shape = (1, side, side, 1)

    def apply(image: jax.Array) -> jax.Array:
        return model.init_with_output(jax.random.key(0), image)[0]  # type: ignore[return-value]

    try:
        return receptive_field(apply, shape)[0].size
    except InputError:
        first, last = fields(apply, shape)[0]
        if first.max() > 0 or last.min() < side - 1:
            raise
        return WHOLE


def _maps(model: nn.Module, side: int) -> Iterator[tuple[int, int]]:
    """Height and width of every value of four axes in the traced model."""
    image = jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    for eqn in _equations(jax.make_jaxpr(model.apply)(variables, image).jaxpr):
        for var in eqn.outvars:
            if len(var.aval.shape) == 4:
                yield var.aval.shape[1:3]


def _equations(jaxpr: Any) -> Iterator[Any]:
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in _inner(eqn):
            yield from _equations(inner)


def _inner(eqn: Any) -> list[Any]:
    given = [each for value in eqn.params.values() for each in (value if isinstance(value, tuple | list) else [value])]
    return [getattr(each, "jaxpr", each) for each in given if hasattr(each, "eqns")]


def _products(jaxpr: Any) -> int:
    """Multiplications of a number by a number, of the equations that a result depends on."""
    needed = {v for v in jaxpr.outvars if not isinstance(v, core.Literal)}
    total = 0
    for eqn in reversed(jaxpr.eqns):
        if not needed.isdisjoint(eqn.outvars):
            needed.update(v for v in eqn.invars if not isinstance(v, core.Literal))
            total += _own_products(eqn) + eqn.params.get("length", 1) * sum(map(_products, _inner(eqn)))
    return total


def _own_products(eqn: Any) -> int:
    params = eqn.params
    sizes: list[tuple[int, ...]] = [getattr(v.aval, "shape", ()) for v in (*eqn.invars, *eqn.outvars)]
    if eqn.primitive.name == "dot_general":
        return math.prod(sizes[-1]) * math.prod(sizes[0][axis] for axis in params["dimension_numbers"][0][0])
    if eqn.primitive.name == "conv_general_dilated":
        kernel, features = sizes[1], params["dimension_numbers"].rhs_spec[0]
        return math.prod(sizes[-1]) * math.prod(kernel) // kernel[features] // math.prod(params["lhs_dilation"])
    return 0
