"""Overlap-tile inference (Ronneberger et al. 2015, figure 2): logits of an image of any size, computed tile by tile."""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Integer

from jaxseg.errors import InputError
from jaxseg.inference.tile_plan import REMAINDERS, Reach, Tiling, blended_tiling, cropped_tiling, exact_tiling, find_reach, legal_side
from jaxseg.ops.conv import pixels_counted
from jaxseg.ops.resize import stretching_noted
from jaxseg.parallel import AXIS, data_mesh, replicated
from jaxseg.progress import progress
from jaxseg.receptive_field import ELEMENTWISE, MOVES

Predict = Callable[[Any, Float[Array, "n *s c"]], Any]
Blend = Literal["gaussian", "linear", "crop"]
PANEL = 16
"""Tiles side by side whose weighted sums are kept at a time, however wide the image."""

Place = tuple[int, ...]
"""Of a tile: image, row and column; of volumes the tile's slices before its row."""

Region = tuple[tuple[int | slice, ...], np.ndarray]
"""Where in the logits, and the logits there: `logits[where] = values`."""


def tiled(
    apply: Predict, *, tile: int = 512, batch: int = 4, blend: Blend | None = None, overlap: float = 0.25, axes: Literal[2, 3] = 2
) -> Callable[[Any, Any], Float[np.ndarray, "*n k"]]:
    """A function (variables, image [H, W, C] or [N, H, W, C]) -> float32 logits [..., H, W, K], by tiles; the rest as `tiled_regions`.

    Keep the function: what it has compiled serves all images, whatever their size, of a model that shrinks its image, and those whose sides
    leave the same remainders by the model's stride, of a padded one. (On CPUs wide models are computed in cells, and one that shrinks its
    image is compiled for up to 4 remainders of each side.)

    >>> mean = lambda variables, image: jax.lax.reduce_window(image, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME") / 9
    >>> image = np.random.default_rng(0).uniform(size=(50, 60, 1)).astype(np.float32)
    >>> bool((tiled(mean, tile=16)((), image) == jax.jit(mean)((), image[None])[0]).all())
    True
    """
    return assembled(tiled_regions(apply, tile=tile, batch=batch, blend=blend, overlap=overlap, axes=axes))


def assembled(regions: Callable[..., Iterator[Region]]) -> Callable[[Any, Any], Float[np.ndarray, "*n k"]]:
    """A function (variables, image) -> the logits that `regions` gives in parts."""

    def predict(variables: Any, image: Any) -> np.ndarray:
        logits = np.empty(0, np.float32)
        for where, values in regions(variables, image):
            if not logits.size:
                logits = np.empty((*image.shape[:-1], values.shape[-1]), np.float32)
            logits[where] = values
        return logits

    return predict


def tiled_regions(
    apply: Predict,
    *,
    tile: int = 512,
    batch: int = 4,
    blend: Blend | None = None,
    overlap: float = 0.25,
    axes: Literal[2, 3] = 2,
    classes: bool = False,
) -> Callable[..., Iterator[Region]]:
    """A function (variables, image, skip=0) -> the image's logits, region by region, each pixel once.

    Without `blend` they are bit for bit those of `jax.jit(apply)` of the whole image, which a model that shrinks its image is given with a
    border by reflection, to its next legal size. (On CPUs models that enlarge bicubically, and some with layers of one or three channels,
    have been seen to differ in the last bits: XLA rounds such maps by their shape.) How far tiles must overlap is read off the traced
    model. With `blend` tiles of any padded model overlap by `overlap` and are averaged, most weight at their middle, or with "crop" give
    their middles: cheaper, and an approximation.

    Of volumes, with axes=3, the same: [D, H, W, C] or [N, D, H, W, C], in cubes, not averaged, and exact to rounding.

    The tiles are computed `batch` at a time on all devices, the last batch filled up, while the next ones are read. Where memory runs
    out, one batch after the other, and then half as many tiles at a time.

    Args:
      apply: (variables, images [N, H, W, C]) -> logits of every pixel, or of all but a margin; pure, and not itself under jit, which
        would keep the forms chosen for another size.
      tile: the largest side of a tile as the model sees it.
      batch: tiles at a time; rounded up to the devices.
      blend: None for exact tiles; "gaussian" weights have a deviation of an eighth of the side, "linear" ones are a tent; "crop" cuts
        tiles off in the middle of their overlap.
      overlap: the least share of a tile's side that the next one computes again, with `blend`.
      axes: of an image, 2 for pictures, 3 for volumes.
      classes: give each pixel's class, uint16 [..., H, W], instead of its logits, which stay on the device where they are not averaged.

    Returns:
      a function of `image`: an array, or anything with a shape [H, W, C] or [N, H, W, C] that slices of rows and columns can be read from
      (a memory map, a Zarr array). Values are taken as float32. The regions have an order; `skip` leaves out the first ones, for work that
      goes on where it stopped.

    Raises:
      InputError: exact tiles of a model that cannot have them (a norm over the image, a field larger than the tile), with the reason;
      blending of a model that shrinks its image; an empty image; no memory for a single tile.
    """
    if tile < 1 or batch < 1 or not 0 <= overlap < 1 or blend not in (None, *get_args(Blend)) or axes not in (2, 3):
        raise InputError(
            f"tiles: got tile={tile}, batch={batch}, blend={blend!r}, overlap={overlap}, axes={axes}; required tile and batch from 1, "
            "blend None, 'gaussian', 'linear' or 'crop', an overlap from 0 to less than 1, and 2 or 3 axes."
        )
    if axes == 3 and blend in ("gaussian", "linear"):
        raise InputError(f"tiles: got blend={blend!r} of volumes, whose tiles are not averaged. Take blend='crop' (--blend crop), or none.")
    mesh = data_mesh()
    batch = -(-batch // mesh.size) * mesh.size
    known: dict[Any, Any] = {}

    def once(key: Any, f: Callable[[], Any]) -> Any:
        if key not in known:
            known[key] = f()
        return known[key]

    def reach_of(f: Callable[[Any], Any], channels: int, forms: tuple[str, ...], size: tuple[int, ...]) -> tuple[Reach, ...]:
        """Found once for all sizes that leave the same remainders by the periods, which are known from the first on."""
        modulus = known.get(("periods", channels, forms), REMAINDERS)
        if (channels, forms, *(n % modulus for n in size)) not in known:
            reach = find_reach(f, channels, tile, size, modulus)
            known["periods", channels, forms] = modulus = math.lcm(*(len(r.first) for r in reach))
            known[channels, forms, *(n % modulus for n in size)] = reach
        return known[channels, forms, *(n % modulus for n in size)]

    def plan(variables: Any, image: Any) -> tuple[tuple[Tiling, ...], Predict, int]:
        """Of each axis, the compiled model for them, and how many it may be given at a time."""
        size, channels = tuple(image.shape[-1 - axes : -1]), image.shape[-1]
        pixels = " x ".join(map(str, size))
        if blend is not None:
            shape = jax.eval_shape(apply, variables, jax.ShapeDtypeStruct((1, *(tile,) * axes, channels), jnp.float32)).shape
            if shape[1:-1] != (tile,) * axes:
                made, given = (" x ".join(map(str, sides)) for sides in (shape[1:-1], (tile,) * axes))
                raise InputError(
                    f"tiles: blend={blend!r} of a model that makes {made} of {given} pixels; required is one that "
                    "pads. Leave blend out: such tiles are exact and overlap by nothing but their margin."
                )
            tiling = cropped_tiling if blend == "crop" else blended_tiling
            return tuple(tiling(n, tile, overlap) for n in size), once("blend", lambda: jax.jit(apply)), batch

        def legal(side: int) -> int:
            return once((side, channels), lambda: legal_side(lambda x: apply(variables, x), side, channels, axes))

        # Layers choose their form by the size of what they get. The tiles' must be the whole's, whose size a model that shrinks it decides.
        whole = tuple(map(legal, size))
        for _ in range(4):
            forms, counts, stretched = once((channels, whole), lambda whole=whole: _recorded(apply, variables, (1, *whole, channels)))
            as_whole = _replayed(apply, counts)
            # Where the model stretches its maps there are no fields to find, and one tile must do.
            sides = tuple(0 if s else n for s, n in zip(stretched, whole, strict=True))
            if (alone := (size, channels, "alone")) in known:
                return known[alone]
            try:
                reach = reach_of(lambda x, f=as_whole: f(variables, x), channels, forms, sides)
            except InputError:
                if max(size) > tile or not _pads(apply, variables, (1, *size, channels)):
                    raise
                # One tile is the image, whatever it sees.
                known[alone] = tuple(Tiling(n, 0, (0,), (0, n)) for n in size), jax.jit(as_whole), mesh.size
                return known[alone]
            # Where a padded model's image is lower than a tile its tiles are longer: XLA rounds small maps by how many pixels they have.
            most = [tile if r.shrink else max(tile, tile**axes // (math.prod(size) // n)) for r, n in zip(reach, size, strict=True)]
            tilings = tuple(exact_tiling(n, m, r, legal) for n, m, r in zip(size, most, reach, strict=True))
            if any(s and len(axis.offsets) > 1 for s, axis in zip(stretched, tilings, strict=True)):
                raise InputError(
                    f"exact tiles: in an image of {pixels} pixels the model stretches a coarse map by a factor that is not "
                    "whole, and would stretch that of a tile otherwise. Take blend='gaussian' (--blend gaussian), predict the image whole, "
                    f"or give images of sides that are multiples of {max(len(r.first) for r in reach)}."
                )
            if tuple(axis.whole for axis in tilings) == whole:
                shape = (1, *(axis.side for axis in tilings), channels)
                if forms == once((shape, forms), lambda f=as_whole, shape=shape: _recorded(f, variables, shape)[0]):
                    return tilings, once((shape, forms, "step"), lambda f=as_whole: jax.jit(f)), batch
                break
            whole = tuple(axis.whole for axis in tilings)
        raise InputError(
            f"exact tiles: for an image of {pixels} pixels the model takes sums of other forms than for tiles of {tile}, which "
            "round differently. Take another tile, or blend='gaussian' (--blend gaussian; of volumes 'crop')."
        )

    def regions(variables: Any, image: Any, skip: int = 0) -> Iterator[Region]:
        if len(image.shape) - axes not in (1, 2) or 0 in image.shape:
            wanted = "[H, W, C] or [N, H, W, C]" if axes == 2 else "[D, H, W, C] or [N, D, H, W, C]"
            raise InputError(f"tiles: got an image of shape {image.shape}; required {wanted} without empty axes.")
        tilings, step, most = plan(variables, image)
        variables = jax.device_put(variables, replicated(mesh))
        lead = len(image.shape) - 1 - axes
        images = range(math.prod(image.shape[:lead]))

        def compute(places: list[Place]) -> Float[Array, "b *t k"]:
            parts = [_read(image, (n,) * lead, *zip(tilings, ks, strict=True)) for n, *ks in places]
            values = step(variables, jax.device_put(np.stack(parts), NamedSharding(mesh, PartitionSpec(AXIS))))
            return _largest(values) if classes and not averaged else values

        averaged = blend not in (None, "crop")
        if not averaged:
            places = list(itertools.product(images, *(range(len(axis.offsets)) for axis in tilings)))
            panels, todo = [], places[skip:]
        else:
            rows, columns = tilings
            cuts = itertools.pairwise([*columns.offsets[::PANEL], columns.edges[-1]])
            panels = [Panel(n, *cut, 0) for n, cut in itertools.product(images, cuts)]
            places = _places(panels, rows, columns)
            bands = len(rows.offsets)
            panels = [p._replace(band=max(skip - i * bands, 0)) for i, p in enumerate(panels) if skip < (i + 1) * bands]
            todo = _places(panels, rows, columns)
        # One tile an image is the image: nothing is filled up, since XLA rounds maps of some dozens of pixels by how many there are.
        alone = all(axis.whole == axis.side and not axis.border for axis in tilings)
        at_once = min(most, -(-len(places) // mesh.size) * mesh.size) if alone else most

        with progress("tiles", len(places), len(places) - len(todo)) as advance:
            computed = _in_batches(compute, todo, at_once, mesh.size, advance)
            if averaged:
                for n, rows_, columns_, values in _blended(computed, panels, *tilings, blend):  # type: ignore[arg-type]
                    # By NumPy: on a device it would wait for the tiles that are begun.
                    yield ((n,) * lead + (rows_, columns_)), values.argmax(-1).astype(np.uint16) if classes else values
                return
            for (n, *ks), values in computed:
                parts = [(axis.edges[k], axis.edges[k + 1], axis.offsets[k]) for axis, k in zip(tilings, ks, strict=True)]
                inner = values[tuple(slice(first - offset, end - offset) for first, end, offset in parts)]
                yield ((n,) * lead + tuple(slice(first, end) for first, end, _ in parts)), inner

    return regions


@jax.jit
def _largest(logits: Float[Array, "*n k"]) -> Integer[Array, "*n"]:
    return jnp.argmax(logits, -1).astype(jnp.uint16)


def _pads(apply: Predict, variables: Any, shape: tuple[int, ...]) -> bool:
    """Whether the model takes images of this shape and gives a logit for every pixel."""
    try:
        return jax.eval_shape(apply, variables, jax.ShapeDtypeStruct(shape, jnp.float32)).shape[:-1] == shape[:-1]
    except InputError:
        return False


def _recorded(apply: Predict, variables: Any, shape: tuple[int, ...]) -> tuple[tuple[str, ...], list[int], tuple[bool, ...]]:
    """The sums that `apply` takes for an image of this shape, the pixels by which its layers chose them, and whether it stretches maps."""
    counts, stretched = [], [(False, False)]

    def record(pixels: int) -> int:
        counts.append(pixels)
        return pixels

    with pixels_counted(record), stretching_noted(stretched.append):
        # Through a new function: of one that was traced before, JAX would take the old program, and nothing would be heard.
        traced = jax.make_jaxpr(lambda v, x: apply(v, x))(variables, jax.ShapeDtypeStruct(shape, jnp.float32))
    rows_columns = tuple(map(any, zip(*stretched, strict=True)))
    return tuple(_sums(traced.jaxpr)), counts, (*(False,) * (len(shape) - 4), *rows_columns)


def _replayed(apply: Predict, counts: list[int]) -> Predict:
    """`apply` with the forms that were chosen by these pixels, one layer after the other."""

    def as_whole(variables: Any, image: Float[Array, "n *s c"]) -> Any:
        left = iter(counts)
        with pixels_counted(lambda pixels: next(left, pixels)):
            return apply(variables, image)

    return as_whole


def _sums(jaxpr: Any) -> Iterator[str]:
    """The names of the primitives that add things up, in order."""
    for eqn in jaxpr.eqns:
        inner = [getattr(p, "jaxpr", p) for p in eqn.params.values() if hasattr(p, "eqns")]
        if inner:
            yield from itertools.chain(*map(_sums, inner))
        elif eqn.primitive.name not in MOVES | ELEMENTWISE | {"pad", "concatenate", "stack"}:
            yield eqn.primitive.name


def _read(image: Any, lead: tuple[int, ...], *places: tuple[Tiling, int]) -> Float[np.ndarray, "*t c"]:
    """A tile: one slice of the image is read, and pixels outside are taken from it by reflection, as often as needed."""
    lines, slices = [], []
    for (axis, k), length in zip(places, image.shape[len(lead) :], strict=False):
        line = np.arange(axis.side) + axis.offsets[k] - axis.border
        line = np.abs((line + length - 1) % max(2 * length - 2, 1) - (length - 1))
        slices.append(slice(int(line.min()), int(line.max()) + 1))
        lines.append(line - line.min())
    part = np.asarray(image[(*lead, *slices)], np.float32)
    for d, line in enumerate(lines):
        if len(line) != part.shape[d] or (np.diff(line) < 0).any():  # it reaches beyond the edge
            part = np.take(part, line, d)
    return part


def _in_batches(compute: Callable[[list], Array], places: list, batch: int, least: int, advance: Callable[..., None]) -> Iterator:
    """Each place with its tile's output; `batch` at a time. While one batch is computed the next is read and begun.

    Where memory runs out, from there on one batch at a time, and then of half as many.
    """
    begun: deque[tuple[list, Array]] = deque()
    done, ahead, most = 0, 0, 2  # places given out, places begun, batches at a time
    while done < len(places):
        waiting = False
        try:
            while len(begun) < most and ahead < len(places):
                now = places[ahead : ahead + batch]
                begun.append((now, compute(now + [now[-1]] * (batch - len(now)))))
                ahead += len(now)
            waiting = True
            values = np.asarray(begun[0][1])
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            if most == 1 and batch == least:
                raise InputError(f"tiles: no memory for {batch} tiles at a time, one a device. Take a smaller tile. ({error})") from error
            if most == 1:
                batch = max(batch // 2 // least, 1) * least
            if waiting:  # else there was no room beside the one that is computed
                begun.clear()
                ahead = done
            most = 1
            continue
        now = begun.popleft()[0]
        yield from zip(now, values, strict=False)
        done += len(now)
        advance(len(now))


def weights(side: int, blend: Blend) -> Float[np.ndarray, " side"]:
    """Of the outputs of a tile along one axis; nowhere 0."""
    from_middle = np.abs(np.arange(side) - (side - 1) / 2)
    if blend == "linear":
        return (1 - from_middle / ((side + 1) / 2)).astype(np.float32)
    return np.maximum(np.exp(-0.5 * (from_middle / (side / 8)) ** 2), 1e-3).astype(np.float32)


class Panel(NamedTuple):
    """Of image n the columns `left` to `right`, from band `band` of rows on: what is blended at a time."""

    n: int
    left: int
    right: int
    band: int

    def tiles(self, rows: Tiling, columns: Tiling) -> tuple[list[int], list[int]]:
        """The rows and columns of tiles that reach into it."""
        return _reaching(rows, rows.offsets[self.band], rows.edges[-1]), _reaching(columns, self.left, self.right)


def _places(panels: list[Panel], rows: Tiling, columns: Tiling) -> list[Place]:
    return [(panel.n, y, x) for panel in panels for y, x in itertools.product(*panel.tiles(rows, columns))]


def _reaching(axis: Tiling, low: int, high: int) -> list[int]:
    return [k for k, offset in enumerate(axis.offsets) if offset < high and offset + axis.side > low]


def _blended(
    computed: Iterator[tuple[Place, np.ndarray]], panels: list[Panel], rows: Tiling, columns: Tiling, blend: Blend
) -> Iterator[tuple[int, slice, slice, np.ndarray]]:
    """Weighted means, as soon as no further tile reaches a row: the image, the rows and columns, and their logits."""
    weight = np.outer(weights(rows.side, blend), weights(columns.side, blend))[..., None]
    for panel in panels:
        sums = None  # of the weighted logits and, last, of the weights
        ys, xs = panel.tiles(rows, columns)
        for y, x in itertools.product(ys, xs):
            _, values = next(computed)
            if sums is None:
                sums = np.zeros((rows.side, panel.right - panel.left, values.shape[-1] + 1), np.float32)
            offset = columns.offsets[x]
            low, high = max(offset, panel.left), min(offset + columns.side, panel.right)
            part = slice(low - offset, high - offset)
            sums[:, low - panel.left : high - panel.left, :-1] += weight[:, part] * values[:, part]
            sums[:, low - panel.left : high - panel.left, -1:] += weight[:, part]
            if x == xs[-1]:
                top, end = (*rows.offsets, rows.edges[-1])[y : y + 2]
                if y >= panel.band:
                    yield panel.n, slice(top, end), slice(panel.left, panel.right), sums[: end - top, :, :-1] / sums[: end - top, :, -1:]
                sums = np.concatenate([sums[end - top :], np.zeros_like(sums[: end - top])])
