"""`jaxseg heatmaps`: what a trained network makes of images, layer by layer, and what of them it sees."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import tyro
from jaxtyping import Array, Float, UInt8

from jaxseg.data import to_float
from jaxseg.errors import InputError
from jaxseg.heatmaps import drawing
from jaxseg.heatmaps.effective_field import effective_field
from jaxseg.heatmaps.grad_cam import seg_grad_cam
from jaxseg.heatmaps.layers import OUTPUT, check_layer, layers
from jaxseg.heatmaps.page import Heat, Layer, Picture, write_page
from jaxseg.heatmaps.patches import strongest_patches
from jaxseg.image_files import find_images, need_all, outputs_of, read
from jaxseg.inference.whole import Predict, predict_whole, resized, stretched
from jaxseg.model_json import plain
from jaxseg.ops.conv import pixels_counted
from jaxseg.pictures import to_rgb
from jaxseg.progress import progress
from jaxseg.receptive_field import Lines, fields_of_maps, regular
from jaxseg.run_folder import Run, load_run

CHANNELS = 8  # of a layer that are shown, chosen in the first image
PATCHES = 8  # of each
ON_PAGE = 12  # images: a page of hundreds would be hundreds of megabytes
Fields = tuple[Lines, ...]


class Seen(NamedTuple):
    """An image as the network sees it, what it gives, and of each layer some channels, the fields and the class activation maps.

    `output` are probabilities of classes, or the logits as they are where a run separates objects.
    """

    name: str
    rgb: UInt8[np.ndarray, "h w 3"]
    image: Float[np.ndarray, "h w c"]
    output: Float[np.ndarray, "h w k"]
    maps: dict[str, Float[np.ndarray, "h2 w2 f"]]
    cams: dict[str, Float[np.ndarray, "h2 w2 k"]]
    fields: Mapping[str, Fields]


def heatmaps(
    workdir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="WORKDIR")],
    inputs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE_OR_FOLDER...")] = (),
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    layer: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME...")] = (),
    listing: Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(name="layers")] = False,
) -> int:
    """Look inside a trained network: heat maps as PNGs, and heatmaps.html, where a click on a map shows what that pixel sees.

    For example: `jaxseg heatmaps runs/cells my_images/ --layer down3_conv2 --out heatmaps`. Of each image NAME: NAME_classes.png, the
    probabilities of the classes over the image; of each layer NAME_LAYER_channels.png, channels that differ most, beside the receptive
    field of the middle, and NAME_LAYER_cam.png, gradient-weighted class activation maps (Seg-Grad-CAM). Over all images LAYER_patches.png,
    where these channels are activated most, and LAYER_effective_field.png. Images that the model resamples are shown as it sees them.

    Args:
      workdir: run folder of `jaxseg train`.
      inputs: PNG, JPEG or TIFF files, or folders of them, of the channels that the model was trained on. Required without `--layers`.
      out: folder for the results, made when missing. Required without `--layers`.
      layer: layers to look into, by their names, which `--layers` lists.
      listing: only list the layers, with their sizes and receptive fields for an image of the training's size.
    """
    if listing:
        _list(load_run(workdir))
        return 0
    files = find_images(inputs)
    if out is None:
        raise InputError("--out: got none; required is a folder, made when missing. Give its path.")
    outputs_of(files, out, lambda _: ("_classes.png",))
    run = load_run(workdir)
    names = tuple(dict.fromkeys(name for name in layer if name != OUTPUT))
    seen, channels, failed = _look(run, files, names)
    if not seen:
        need_all(files, failed, "read")
    out.mkdir(parents=True, exist_ok=True)
    _write_output(out, seen, run)
    for name in names:
        _write_layer(out, seen, name, channels[name], run)
    note = f"{ON_PAGE} of {len(seen)} images are shown." if len(seen) > ON_PAGE else ""
    page = [_picture(each, run, channels) for each in seen[:ON_PAGE]]
    write_page(out / "heatmaps.html", f"{type(run.model).__name__} of {workdir.name}, step {run.step}", page, note)
    print(f"{len(seen)} images: {out / 'heatmaps.html'}")
    need_all(files, failed, "read")
    return 0


def _look(run: Run, files: Sequence[Path], names: Sequence[str]) -> tuple[list[Seen], dict[str, list[int]], list[str]]:
    """Every image through the network, which channels of each layer were kept, and what was wrong with images that cannot be read."""
    apply, factor = _network(run)
    look = jax.jit(functools.partial(_maps, apply, names, run.route is None))

    @functools.lru_cache
    def fields(shape: tuple[int, int, int, int]) -> Mapping[str, Fields]:
        return _fields(apply, run.variables, shape, (*names, OUTPUT))

    seen, channels, failed = [], {}, []
    with progress("looking", len(files)) as advance:
        for file in files:
            advance(1, note=file.name)
            try:
                picture = read(file, run)
            except InputError as error:
                failed.append(str(error))
                continue
            image = jnp.asarray(to_float(picture))
            if percentiles := run.description["preprocess"].get("percentiles"):  # which see all of the image, as no layer does
                image = stretched(image[None], percentiles)[0]
            if factor != 1:
                height, width, depth = image.shape
                image = jax.image.resize(image, (*resized((height, width), factor), depth), "linear", antialias=True)
            if not seen:
                for name in names:
                    check_layer(name, jax.eval_shape(layers(apply), run.variables, image[None]))
            output, maps, cams = jax.device_get(look(run.variables, image[None]))
            channels = channels or {name: _channels(maps[name]) for name in names}
            maps = {name: maps[name][..., kept] for name, kept in channels.items()}
            rgb = to_rgb(picture if factor == 1 else np.asarray(image))
            seen.append(Seen(file.stem, rgb, np.asarray(image), output, maps, cams, fields((1, *image.shape))))
    return seen, channels, failed


def _network(run: Run) -> tuple[Predict, float]:
    """The run's prediction without its resampling, and the factor of that: what a pixel sees is counted in pixels that the network gets."""
    preprocess = run.description["preprocess"]
    return functools.partial(predict_whole, run.model, **{**preprocess, "resize": 1.0, "percentiles": None}), preprocess["resize"]


def _maps(
    apply: Predict, names: Sequence[str], of_classes: bool, variables: Any, image: Float[Array, "1 h w c"]
) -> tuple[Array, dict[str, Array], dict[str, Array]]:
    found = layers(apply)(variables, image)
    logits = found[OUTPUT][0]
    cams = {name: seg_grad_cam(apply, variables, image, layer=name, classes=range(logits.shape[-1]))[0] for name in names}
    return jax.nn.softmax(logits, -1) if of_classes else logits, {name: found[name][0].astype(jnp.float32) for name in names}, cams


def _fields(apply: Predict, variables: Any, shape: tuple[int, int, int, int], names: Sequence[str] | None = None) -> Mapping[str, Fields]:
    def chosen(image: Array) -> dict[str, Array]:
        found = layers(apply)(variables, image)
        return {name: found[name] for name in names or found}

    with pixels_counted(lambda _: 0):  # without Winograd's cells, which see more, by rounding alone
        return fields_of_maps(chosen, shape)


def _list(run: Run) -> None:
    apply, _ = _network(run)
    shape = (1, *plain(run.description["example_size"], tuple[int, int], "example_size"), run.info.channels)
    sizes = jax.eval_shape(layers(apply), run.variables, jax.ShapeDtypeStruct(shape, jnp.float32))
    found = _fields(apply, run.variables, shape)
    width = max(map(len, sizes))
    print(f"layers of an image of {shape[1]} x {shape[2]} pixels: height x width x channels, and the receptive field of a value")
    for name, size in sizes.items():
        print(f"{name.ljust(width)}  {' x '.join(map(str, size.shape[1:])):>17}  {_said(found[name], shape)}")


def _said(fields: Fields, shape: Sequence[int]) -> str:
    """Size, stride and offset of a layer's fields, or how much of such an image they see where that is not to be told."""
    try:
        rows, columns = (regular(lines, side) for lines, side in zip(fields, shape[1:3], strict=True))
    except InputError:
        rows, columns = ((last - first).max() + 1 for first, last in fields)
        return f"up to {rows} x {columns} pixels, cut by the image's border"
    if rows == columns:
        return f"{rows.size} x {columns.size} pixels, stride {rows.stride:g}, offset {rows.offset}"
    stride, offset = f"{rows.stride:g} x {columns.stride:g}", f"{rows.offset}, {columns.offset}"
    return f"{rows.size} x {columns.size} pixels, stride {stride}, offset {offset}"


def _middle(fields: Fields) -> drawing.Box:
    """What the middle of a map sees."""
    (top, bottom), (left, right) = ((int(first[len(first) // 2]), int(last[len(last) // 2]) + 1) for first, last in fields)
    return (top, bottom), (left, right)


def _outputs(run: Run) -> Sequence[str]:
    return run.info.class_names if run.route is None else run.route.outputs


def _output_heats(seen: Seen, run: Run) -> list[Heat]:
    low, high = (0.0, 1.0) if run.route is None else (float(seen.output.min()), float(seen.output.max()))
    return [Heat(name, seen.output[..., i], low, high) for i, name in enumerate(_outputs(run))]


def _channels(maps: Float[np.ndarray, "h w f"]) -> list[int]:
    """The channels that together show most: each the one whose variance those before it explain least."""
    flat = maps.reshape(-1, maps.shape[-1]).astype(np.float64)
    return scipy.linalg.qr(flat - flat.mean(0), mode="r", pivoting=True)[-1][:CHANNELS].tolist()


def _channel_heats(seen: Seen, name: str, channels: Sequence[int]) -> list[Heat]:
    maps = zip(channels, np.moveaxis(seen.maps[name], -1, 0), strict=True)
    return [Heat(f"channel {i}", values, float(values.min()), float(values.max())) for i, values in maps]


def _cam_heats(seen: Seen, name: str, run: Run) -> list[Heat]:
    cams = seen.cams[name]
    return [Heat(f"speaks for {output}", cams[..., i], 0.0, float(cams[..., i].max())) for i, output in enumerate(_outputs(run))]


def _write_output(out: Path, seen: Sequence[Seen], run: Run) -> None:
    label = "probability" if run.route is None else "logit"
    for each in seen:
        (out / f"{each.name}_classes.png").write_bytes(drawing.over_image(each.rgb, _output_heats(each, run), label))


def _write_layer(out: Path, seen: Sequence[Seen], name: str, channels: Sequence[int], run: Run) -> None:
    """What there is of one layer: channels and class activation maps of each image, and of all of them patches and the effective field."""
    file = name.replace("/", "-")
    for each in seen:
        box = _middle(each.fields[name])
        (out / f"{each.name}_{file}_channels.png").write_bytes(drawing.of_layer(each.rgb, box, _channel_heats(each, name, channels)))
        (out / f"{each.name}_{file}_cam.png").write_bytes(drawing.of_layer(each.rgb, box, _cam_heats(each, name, run)))
    fields = [each.fields[name] for each in seen]
    found = {f"channel {i}": strongest_patches([each.maps[name][..., k] for each in seen], fields, PATCHES) for k, i in enumerate(channels)}
    (out / f"{file}_patches.png").write_bytes(drawing.of_patches([each.rgb for each in seen], found))

    shape, apply = seen[0].image.shape, _network(run)[0]
    derivative = jax.jit(functools.partial(effective_field, apply, layer=name))
    field = np.mean([derivative(run.variables, each.image[None]) for each in seen if each.image.shape == shape], 0)
    if field.max() > 0:
        (out / f"{file}_effective_field.png").write_bytes(drawing.of_effective_field(field, _middle(fields[0])))


def _picture(seen: Seen, run: Run, channels: Mapping[str, Sequence[int]]) -> Picture:
    def layer(name: str, heats: Sequence[Heat]) -> Layer:
        high, wide = heats[0].values.shape
        said = f"{high} x {wide} values; receptive field {_said(seen.fields[name], (1, *seen.image.shape))}."
        return Layer(name, heats, seen.fields[name], said)

    shown = [layer(OUTPUT, _output_heats(seen, run))]
    shown += [layer(name, _cam_heats(seen, name, run) + _channel_heats(seen, name, chosen)) for name, chosen in channels.items()]
    return Picture(seen.name, seen.rgb, shown)
