"""Joint image and label augmentation on the device, inside the jitted step.

Every augmentation is a pure keyed function of one example, `(key, example) -> example`; options are keywords, for `functools.partial`:

    functions = (flip, rot90, functools.partial(elastic, std_px=10.0), functools.partial(brightness, delta=0.1))
    batch = augment_batch(functions, jax.random.split(key, batch_size), batch)

An example is `{"image": float32 [h,w,C] in 0..1, "label": int32 [h,w]}` and perhaps `"weight": float32 [h,w]`; shapes and dtypes stay
as they are (`crop` alone changes h and w). Geometry samples image and weight linearly and the label at the nearest pixel of the same
coordinates, so class numbers are never mixed and the ignore index survives. Coordinates beyond the border are mirrored about the centre
of the outermost pixel for all three, as the U-Net mirrors its input at the border: no pixel is invented and none need be ignored.
Options at their neutral value (0, or (1, 1)) give back exactly the example. Intensities are not clipped to 0..1.

`elastic`, `affine` and `scale` are names for parts of `warp`; use `warp` itself for several of them at once: it resamples only once.
Geometry first, then intensities: XLA on the CPU computes the input of a resampling once for each of the four neighbours.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxseg.errors import InputError

Example = Mapping[str, Array]
Augmentation = Callable[[PRNGKeyArray, Example], dict[str, Array]]


def augment(functions: tuple[Augmentation, ...], key: PRNGKeyArray, example: Example) -> dict[str, Array]:
    """Applies the functions in order to one example; function i gets `fold_in(key, i)`.

    >>> import jax
    >>> example = {"image": jax.numpy.zeros((4, 4, 1)), "label": jax.numpy.zeros((4, 4), int)}
    >>> sorted(augment((flip, rot90), jax.random.key(0), example))
    ['image', 'label']
    """
    _check(example, "augment")
    for i, function in enumerate(functions):
        example = function(jax.random.fold_in(key, i), example)
    return dict(example)


def augment_batch(functions: tuple[Augmentation, ...], keys: PRNGKeyArray, batch: Example) -> dict[str, Array]:
    """`augment` over the first axis: image [N,h,w,C], label [N,h,w], weight [N,h,w] and one key an example, `jax.random.split(key, N)`."""
    n = {name: value.shape[0] for name, value in batch.items()} | {"keys": keys.shape[0] if keys.ndim else 0}
    if len(set(n.values())) != 1:
        raise InputError(f"augment_batch: needs one key an example, got first axes {n}; use keys = jax.random.split(key, batch_size)")
    return jax.vmap(lambda key, example: augment(functions, key, example))(keys, dict(batch))


# Exact geometry: pixels move, none is resampled.


def flip(key: PRNGKeyArray, example: Example, *, vertical: bool = True, horizontal: bool = True) -> dict[str, Array]:
    """Mirrors the rows (`vertical`) and the columns (`horizontal`), each with probability 1/2."""
    height, width = _check(example, "flip")
    flips = jax.random.bernoulli(key, shape=(2,)) & jnp.array([vertical, horizontal])
    rows, columns = _ramp(height, flips[0])[:, None], _ramp(width, flips[1])[None, :]
    return {name: _take(value, rows, columns) for name, value in example.items()}


def rot90(key: PRNGKeyArray, example: Example) -> dict[str, Array]:
    """Turns by 0, 90, 180 or 270 degrees, equally likely. Square examples only; `flip` already has the half turn of other ones."""
    height, width = _check(example, "rot90")
    if height != width:
        raise InputError(f"rot90: needs square examples, got {height}x{width}; crop to a square, or use flip, which includes the half turn")
    turns = jax.random.randint(key, (), 0, 4)
    up, down = _ramp(height, turns >= 2), _ramp(height, (turns == 1) | (turns == 2))
    odd = turns % 2 == 1
    rows, columns = jnp.where(odd, up[None, :], down[:, None]), jnp.where(odd, down[:, None], up[None, :])
    return {name: _take(value, rows, columns) for name, value in example.items()}


def crop(key: PRNGKeyArray, example: Example, *, size: int | tuple[int, int]) -> dict[str, Array]:
    """A random window of `size` pixels, (height, width) or one number for both: image [height,width,C], label [height,width]."""
    height, width = _check(example, "crop")
    h, w = (size, size) if isinstance(size, int) else size
    if not (0 < h <= height and 0 < w <= width):
        raise InputError(f"crop: cannot cut {h}x{w} from an example of {height}x{width}; choose a size of at least 1 and at most that")
    start = jax.random.randint(key, (2,), 0, jnp.array([height - h + 1, width - w + 1]))
    rows, columns = start[0] + jnp.arange(h)[:, None], start[1] + jnp.arange(w)[None, :]
    return {name: _take(value, rows, columns) for name, value in example.items()}


# Resampling geometry.


def warp(
    key: PRNGKeyArray,
    example: Example,
    *,
    rotate_degrees: float = 0.0,
    zoom: tuple[float, float] = (1.0, 1.0),
    shear_degrees: float = 0.0,
    shift_px: float = 0.0,
    elastic_px: float = 0.0,
    elastic_grid: int = 3,
) -> dict[str, Array]:
    """Rotation, zoom, shear, shift and elastic deformation in one resampling; about the centre, at the same size.

    Args:
      rotate_degrees: the angle is uniform in ±rotate_degrees.
      zoom: the magnification is log-uniform between these two; above 1 enlarges.
      shear_degrees: columns lean by an angle uniform in ±shear_degrees, below 90.
      shift_px: rows and columns shift by uniform ±shift_px each.
      elastic_px: standard deviation of the displacement vectors on the coarse grid; see `elastic`.
      elastic_grid: nodes of the coarse grid along each axis, at least 2.
    """
    height, width = _check(example, "warp")
    low, high = _range("warp", "zoom", zoom)
    for name, value in {"rotate_degrees": rotate_degrees, "shift_px": shift_px, "elastic_px": elastic_px}.items():
        _at_least_0("warp", name, value)
    if not 0 <= shear_degrees < 90:
        raise InputError(f"warp: shear_degrees must be at least 0 and below 90, got {shear_degrees}")
    if elastic_grid < 2:
        raise InputError(f"warp: elastic_grid must be at least 2 nodes an axis, got {elastic_grid}")

    affine_key, elastic_key = jax.random.split(key)
    angle, log_zoom, lean, *shift = jax.random.uniform(affine_key, (5,), minval=-1.0, maxval=1.0)
    angle, lean = angle * np.deg2rad(rotate_degrees), jnp.tan(lean * np.deg2rad(shear_degrees))
    # In this form a range of (1, 1) gives exp(0), exactly 1.
    magnification = jnp.exp(0.5 * (np.log(low) + np.log(high)) + log_zoom * (0.5 * (np.log(high) - np.log(low))))

    # Where a pixel of the result is read: displaced, over the zoom, sheared, rotated, shifted. All of it is linear in the row and column
    # polynomials below, so that two small matrix products give all coordinates; XLA on the CPU would fuse the elementwise form into the
    # gathers and repeat it for every neighbour and channel.
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    linear = jnp.array([[cos - sin * lean, -sin], [sin + cos * lean, cos]]) / magnification
    nodes = elastic_px * jax.random.normal(elastic_key, (2, elastic_grid, elastic_grid))
    nodes = jnp.einsum("de,eij->dij", linear, nodes, precision="highest")
    centre, size = np.array([height - 1, width - 1]) / 2, elastic_grid
    terms = jnp.pad(nodes, ((0, 0), (0, 2), (0, 2)))
    terms = terms.at[:, size + 1, size].set(linear[:, 0]).at[:, size, size + 1].set(linear[:, 1])
    terms = terms.at[:, size, size].set(shift_px * jnp.stack(shift) + centre)
    y, x = jnp.einsum("hi,dij,wj->dhw", _polynomials(height, size), terms, _polynomials(width, size), precision="highest")
    return resample(example, y, x)


def elastic(key: PRNGKeyArray, example: Example, *, std_px: float = 10.0, grid: int = 3) -> dict[str, Array]:
    """The U-Net paper's deformation: Gaussian displacement vectors on a coarse grid over the example, bicubic in between.

    The outer nodes lie on the outermost pixels. `std_px` is the standard deviation, in pixels, of each of the two components.
    Source: Ronneberger et al., U-Net, 2015, section 3.1 (3x3 grid, 10 pixels).
    """
    return warp(key, example, elastic_px=std_px, elastic_grid=grid)


def scale(key: PRNGKeyArray, example: Example, *, zoom: tuple[float, float] = (0.8, 1.25)) -> dict[str, Array]:
    """Zooms about the centre at the same size, log-uniform between the two magnifications; smaller ones show the mirrored surroundings."""
    return warp(key, example, zoom=zoom)


def affine(
    key: PRNGKeyArray,
    example: Example,
    *,
    rotate_degrees: float = 180.0,
    zoom: tuple[float, float] = (0.8, 1.25),
    shear_degrees: float = 10.0,
    shift_px: float = 10.0,
) -> dict[str, Array]:
    """Random rotation, zoom, shear and shift about the centre; the options are those of `warp`."""
    return warp(key, example, rotate_degrees=rotate_degrees, zoom=zoom, shear_degrees=shear_degrees, shift_px=shift_px)


def resample(example: Example, y: Float[Array, "h w"], x: Float[Array, "h w"]) -> dict[str, Array]:
    """Reads the example at rows `y` and columns `x`, in pixels: image and weight linearly, label at the nearest pixel; border mirrored."""
    height, width = _check(example, "resample")
    y, x = _mirror(y, height), _mirror(x, width)
    out = dict(example)
    out["label"] = _take(example["label"], jnp.round(y).astype(jnp.int32), jnp.round(x).astype(jnp.int32))

    top, left = jnp.floor(y).astype(jnp.int32), jnp.floor(x).astype(jnp.int32)
    bottom, right = jnp.minimum(top + 1, height - 1), jnp.minimum(left + 1, width - 1)
    down, across = y - top, x - left

    def linear(value: Array) -> Array:
        v, u = (f.reshape(f.shape + (1,) * (value.ndim - 2)) for f in (down, across))
        above = _take(value, top, left) * (1 - u) + _take(value, top, right) * u
        below = _take(value, bottom, left) * (1 - u) + _take(value, bottom, right) * u
        return (above * (1 - v) + below * v).astype(value.dtype)

    return out | {name: linear(example[name]) for name in ("image", "weight") if name in example}


def cubic_matrix(size: int, nodes: int) -> np.ndarray:
    """[size,nodes] float32: row i interpolates at pixel i between `nodes` equidistant values, the first and last on the outermost pixels.

    Source: Keys, Cubic convolution interpolation, 1981 (a = -1/2); nodes beyond the ends repeat the end.

    >>> cubic_matrix(5, 3)[2].tolist()
    [0.0, 1.0, 0.0]
    """
    position = np.linspace(0.0, nodes - 1.0, size)
    matrix = np.zeros((size, nodes))
    for k in range(-1, nodes + 1):
        d = np.abs(position - k)
        near, far = (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2
        matrix[:, min(max(k, 0), nodes - 1)] += np.where(d <= 1, near, np.where(d < 2, far, 0.0))
    return matrix.astype(np.float32)


# Intensities: the label and the weight stay.


def brightness(key: PRNGKeyArray, example: Example, *, delta: float = 0.2) -> dict[str, Array]:
    """Adds one number uniform in ±delta to the whole image."""
    _check(example, "brightness")
    _at_least_0("brightness", "delta", delta)
    return {**example, "image": example["image"] + jax.random.uniform(key, (), minval=-delta, maxval=delta)}


def contrast(key: PRNGKeyArray, example: Example, *, factor: tuple[float, float] = (0.75, 1.33)) -> dict[str, Array]:
    """Multiplies the distance from the image's mean by a factor uniform between the two."""
    _check(example, "contrast")
    low, high = _range("contrast", "factor", factor)
    drawn = jax.random.uniform(key, (), minval=low, maxval=high)
    image = example["image"]
    return {**example, "image": image * drawn + jnp.mean(image) * (1 - drawn)}


def gamma(key: PRNGKeyArray, example: Example, *, exponent: tuple[float, float] = (0.7, 1.4)) -> dict[str, Array]:
    """Raises the image to a power log-uniform between the two; negative values, which have no power, become 0."""
    _check(example, "gamma")
    low, high = _range("gamma", "exponent", exponent)
    if low == high == 1:
        return dict(example)
    drawn = jnp.exp(jax.random.uniform(key, (), minval=np.log(low), maxval=np.log(high)))
    return {**example, "image": jnp.maximum(example["image"], 0) ** drawn}


def noise(key: PRNGKeyArray, example: Example, *, std: float = 0.03) -> dict[str, Array]:
    """Adds independent Gaussian noise of this standard deviation to every value of the image."""
    _check(example, "noise")
    _at_least_0("noise", "std", std)
    image = example["image"]
    return {**example, "image": image + std * jax.random.normal(key, image.shape, image.dtype)}


def _check(example: Example, who: str) -> tuple[int, int]:
    """(height, width) of a well-formed example."""
    if not {"image", "label"} <= set(example) <= {"image", "label", "weight"}:
        raise InputError(f"{who}: an example has image, label and perhaps weight, got {sorted(example)}; the rest would not move along")
    image, label = example["image"], example["label"]
    shapes = {name: tuple(value.shape) for name, value in example.items()}
    if image.ndim != 3 or not all(shape == image.shape[:2] for name, shape in shapes.items() if name != "image"):
        raise InputError(f"{who}: needs image [h,w,C], label and weight [h,w], got {shapes}; for a batch use augment_batch")
    if not jnp.issubdtype(image.dtype, jnp.floating) or not jnp.issubdtype(label.dtype, jnp.integer):
        raise InputError(f"{who}: needs a float image in 0..1 and an integer label, got {image.dtype} and {label.dtype}; convert first")
    return image.shape[0], image.shape[1]


def _polynomials(size: int, nodes: int) -> np.ndarray:
    """[size,nodes+2] float32: the cubic interpolation of the nodes, 1, and the pixel's position from the centre."""
    return np.column_stack([cubic_matrix(size, nodes), np.ones(size), np.arange(size) - (size - 1) / 2]).astype(np.float32)


def _range(who: str, name: str, values: tuple[float, float]) -> tuple[float, float]:
    low, high = values
    if not 0 < low <= high < np.inf:
        raise InputError(f"{who}: {name} must be (low, high) with 0 < low <= high, got {values}")
    return low, high


def _at_least_0(who: str, name: str, value: float) -> None:
    if not 0 <= value < np.inf:
        raise InputError(f"{who}: {name} must be a finite number of at least 0, got {value}")


def _ramp(size: int, backwards: Array) -> Int[Array, "size"]:
    return jnp.where(backwards, jnp.arange(size - 1, -1, -1), jnp.arange(size))


def _take(x: Array, rows: Int[Array, "#h #w"], columns: Int[Array, "#h #w"]) -> Array:
    """x[rows, columns], all in bounds. Flips are read this way too: a `where` of both directions has XLA compute its input twice."""
    return x.reshape(-1, *x.shape[2:]).at[rows * x.shape[1] + columns].get(mode="promise_in_bounds")


def _mirror(position: Float[Array, "h w"], size: int) -> Float[Array, "h w"]:
    """Reflects into [0, size-1] about the centres of the first and the last pixel; positions inside at pixel centres stay exact."""
    if size == 1:
        return jnp.zeros_like(position)
    period = 2.0 * (size - 1)
    position = position - period * jnp.floor(position / period)
    return jnp.clip(jnp.minimum(position, period - position), 0.0, size - 1.0)
