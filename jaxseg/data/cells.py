"""The default data set: generated pictures in the manner of fluorescence microscopy, so that everything runs without a download.

Nuclei are ellipses with smooth random outlines, alone and in touching clusters, of varied brightness and texture, under uneven light,
blurred, with photon and camera noise, amid debris. One global threshold fails on them; the edges are sharp enough for a small U-Net.
"""

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy import ndimage

from jaxseg.data.listing import DataInfo, Item, Listing, Record

SIZE = 256
GENERATOR = 1
"""Raise it when the pictures change: a prepared set of other pictures is then recognised when it is prepared or opened."""

SPLITS = {"train": 300, "val": 50, "test": 100}
BORDER_PX = 2
"""The border class reaches this far to either side of an outline."""

INFO = DataInfo(
    name="cells",
    class_names=("background", "nucleus", "border"),
    channels=1,
    colours=((24, 26, 46), (64, 156, 210), (250, 202, 60)),
    description="Generated fluorescence-like pictures of touching cell nuclei, 256x256 grey; the border class is 4 px wide.",
)


def listing(seed: int = 0) -> Listing:
    """The generated set: 300 / 50 / 100 pictures (train / val / test); picture i of a split depends on (seed, split, i) only."""

    def read(item: Item) -> Record:
        split_number, index, _ = item.key
        image, instances = generate(np.random.default_rng((seed, split_number, index)))
        return {"name": item.name, "image": image[..., None], "label": border_label(instances), "instances": instances}

    splits = {
        split: [Item(f"{split}_s{seed}_{index:04d}", (split_number, index, GENERATOR)) for index in range(length)]
        for split_number, (split, length) in enumerate(SPLITS.items())
    }
    return Listing(INFO, splits, read, generator=GENERATOR)


def border_label(instances: Int[np.ndarray, "h w"], border_px: int = BORDER_PX) -> Int[np.ndarray, "h w"]:
    """Classes 0 background, 1 nucleus, 2 border: pixels with another instance (or background) within `border_px` pixels' distance.

    >>> border_label(np.repeat([[0, 0, 0, 0, 7, 7, 7, 7]], 3, axis=0))[1].tolist()
    [0, 0, 2, 2, 2, 2, 1, 1]
    """
    label = (instances > 0).astype(np.int32)
    height, width = instances.shape
    for dy in range(border_px + 1):
        for dx in range(-border_px, border_px + 1):
            if (dy == 0 and dx <= 0) or dy * dy + dx * dx > border_px * border_px:
                continue
            here = (slice(0, max(height - dy, 0)), slice(max(-dx, 0), max(width - max(dx, 0), 0)))
            there = (slice(dy, height), slice(max(dx, 0), max(width + min(dx, 0), 0)))
            differs = instances[here] != instances[there]
            label[here][differs] = 2
            label[there][differs] = 2
    return label


def otsu_baseline(image: UInt8[np.ndarray, "h w 1"]) -> Int[np.ndarray, "h w"]:
    """What one can have without learning: smooth a little, one global threshold (Otsu 1979), connected components, the same border rule."""
    from skimage.filters import threshold_otsu

    smooth = ndimage.gaussian_filter(image[..., 0].astype(np.float32), 1.0)
    instances = np.zeros(smooth.shape, np.int32)
    ndimage.label(smooth > threshold_otsu(smooth), output=instances)
    return border_label(instances)


def generate(rng: np.random.Generator, size: int = SIZE) -> tuple[UInt8[np.ndarray, "h w"], Int[np.ndarray, "h w"]]:
    """One picture [size,size] uint8 and its instance map [size,size] int32 (0 = background)."""
    instances, depth = _nuclei(rng, size)
    return _camera(rng, instances, depth), instances


def _nuclei(rng: np.random.Generator, size: int) -> tuple[Int[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """Instance map, and for each pixel how far out it lies in its nucleus: 0 at the centre, 1 at the outline."""
    instances = np.zeros((size, size), np.int32)
    depth = np.ones((size, size), np.float32)
    scale = rng.uniform(0.85, 1.2)  # one magnification a picture
    number = 0
    for _ in range(rng.integers(9, 14)):
        radius = scale * rng.uniform(10, 17)
        centre = rng.uniform(-4, size + 4, 2)
        members = 1 if rng.random() < 0.25 else rng.integers(2, 8)
        for _ in range(members):
            number += _draw(rng, instances, depth, centre, radius, number + 1)
            next_radius = scale * rng.uniform(10, 17)
            angle = rng.uniform(0, 2 * np.pi)
            centre = centre + rng.uniform(0.85, 1.0) * (radius + next_radius) * np.array([np.sin(angle), np.cos(angle)])
            radius = next_radius
    return _whole_instances(instances), depth


def _draw(rng, instances, depth, centre, radius: float, number: int) -> bool:
    """Paints one nucleus into both maps unless it would hide too much of another or of itself; says whether it did."""
    size = instances.shape[0]
    reach = int(1.9 * radius) + 2
    if not np.all((centre > -reach) & (centre < size + reach - 1)):
        return False
    box = tuple(slice(max(int(c) - reach, 0), min(int(c) + reach + 1, size)) for c in centre)
    y, x = np.mgrid[box].astype(np.float32)
    y, x = y - np.float32(centre[0]), x - np.float32(centre[1])
    theta = np.arctan2(y, x)
    stretch, tilt = rng.uniform(1.0, 1.35), rng.uniform(0, np.pi)
    outline = radius / np.sqrt((np.cos(theta - tilt) / stretch) ** 2 + (np.sin(theta - tilt) * stretch) ** 2)
    for wave, strength in ((2, 0.05), (3, 0.06), (4, 0.04), (5, 0.025)):
        outline = outline * (1 + rng.normal(0, strength) * np.cos(wave * theta + rng.uniform(0, 2 * np.pi)))
    own_depth = np.hypot(y, x) / np.maximum(outline, 3.0)
    inside = own_depth < 1
    new = inside & (own_depth < depth[box])
    if inside.sum() < 30 or new.sum() < 0.75 * inside.sum() or (new & (instances[box] > 0)).sum() > 0.12 * inside.sum():
        return False
    instances[box][new] = number
    depth[box][new] = own_depth[new]
    return True


def _whole_instances(instances: Int[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
    """Keeps the largest connected piece of each instance, drops crumbs, renumbers 1..n."""
    result = np.zeros_like(instances)
    number = 0
    for old, box in enumerate(ndimage.find_objects(instances), start=1):
        if box is None:
            continue
        pieces = np.zeros(instances[box].shape, np.int32)
        ndimage.label(instances[box] == old, output=pieces)
        areas = np.bincount(pieces.ravel())[1:]
        if areas.max() >= 30:
            number += 1
            result[box][pieces == areas.argmax() + 1] = number
    return result


def _camera(rng: np.random.Generator, instances: Int[np.ndarray, "h w"], depth: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Light, blur and noise: what the microscope would make of the nuclei."""
    size = instances.shape[0]
    count = int(instances.max())
    brightness = np.concatenate([[0.0], rng.uniform(0.34, 1.0, count)]).astype(np.float32)
    texture = 1 + rng.uniform(0.1, 0.22) * _unit(_noise(rng, size, 1.6)) + 0.10 * _unit(_noise(rng, size, 5.0))
    dome = 1 - 0.22 * np.minimum(depth, 1) ** 2  # thicker in the middle
    seam = ndimage.gaussian_filter(_touching(instances).astype(np.float32), 0.8)
    signal = brightness[instances] * np.clip(texture, 0.45, 1.6) * dome * (1 - rng.uniform(0.45, 0.75) * seam)
    _add_spots(rng, signal, int(rng.integers(6, 18)), (0.7, 1.3), (0.4, 1.1))  # specks of dirt
    signal = ndimage.gaussian_filter(signal, rng.uniform(0.8, 1.1))
    _add_spots(rng, signal, int(rng.integers(2, 6)), (7.0, 15.0), (0.10, 0.32))  # out of focus
    haze = 0.06 + 0.30 * _bump(rng, size)
    photons = rng.uniform(160, 360)
    light = 0.17 + 0.83 * _bump(rng, size)
    camera = rng.poisson(photons * light * (signal + haze)) / photons + rng.normal(0.04, 0.012, (size, size))
    return np.clip(np.round(camera * 215), 0, 255).astype(np.uint8)


def _touching(instances: Int[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Pixels beside another instance (background does not count)."""
    seam = np.zeros(instances.shape, bool)
    for a, b in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        meets = (instances[a] != instances[b]) & (instances[a] > 0) & (instances[b] > 0)
        seam[a] |= meets
        seam[b] |= meets
    return seam


def _noise(rng: np.random.Generator, size: int, sigma: float) -> Float[np.ndarray, "h w"]:
    return ndimage.gaussian_filter(rng.standard_normal((size, size), np.float32), sigma, truncate=3.0)


def _unit(field: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    return field / field.std()


def _bump(rng: np.random.Generator, size: int) -> Float[np.ndarray, "h w"]:
    """A slowly varying field in 0..1: a broad spot of light off the middle."""
    y, x = np.ogrid[0 : 1 : size * 1j, 0 : 1 : size * 1j]
    cy, cx = rng.uniform(-0.1, 1.1, 2)
    width_y, width_x = rng.uniform(0.35, 0.6, 2)
    return np.exp(-(((y - cy) / width_y) ** 2) / 2) * np.exp(-(((x - cx) / width_x) ** 2) / 2)


def _add_spots(rng, signal: Float[np.ndarray, "h w"], count: int, sigma: tuple[float, float], height: tuple[float, float]) -> None:
    """Adds `count` round spots in place: separable, so that a large one costs little."""
    grid = np.arange(signal.shape[0], dtype=np.float32)
    for _ in range(count):
        s = rng.uniform(*sigma)
        cy, cx = rng.uniform(0, signal.shape[0], 2)
        reach = int(4 * s) + 1
        rows = slice(max(int(cy) - reach, 0), int(cy) + reach + 1)
        columns = slice(max(int(cx) - reach, 0), int(cx) + reach + 1)
        spot = np.exp(-(((grid[rows] - cy) / s) ** 2) / 2)[:, None] * np.exp(-(((grid[columns] - cx) / s) ** 2) / 2)
        signal[rows, columns] += rng.uniform(*height) * spot
