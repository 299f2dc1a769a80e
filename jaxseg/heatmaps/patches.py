"""For a filter, the parts of images that excite it most."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxseg.errors import InputError
from jaxseg.receptive_field import Lines


class Patch(NamedTuple):
    """Where a filter is strongly activated: place `row`, `column` of its map of an image, which sees the image's `rows` and `columns`.

    The part seen is `image[slice(*rows), slice(*columns)]`.
    """

    image: int
    row: int
    column: int
    value: float
    rows: tuple[int, int]
    columns: tuple[int, int]


def strongest_patches(maps: Sequence[Float[np.ndarray, "h w"]], fields: Sequence[tuple[Lines, ...]], count: int) -> list[Patch]:
    """Up to `count` patches over a set of images, strongest first, of which no two of an image share a pixel.

    Of overlapping ones the strongest is taken, and of equals the first. Places that see padding alone are left out.

    Args:
      maps: one channel of a layer's map of each image, of any sizes.
      fields: of each, what its rows and columns see (`jaxseg.receptive_field.fields_of_maps`).

    Raises:
      InputError: `count` is below 1, or maps and fields do not belong together.

    Source: Zeiler & Fergus 2014, Visualizing and Understanding Convolutional Networks, section 4 and figure 2.
    """
    sizes = [m.shape for m in maps], [tuple(len(first) for first, _ in both) for both in fields]
    if count < 1 or sizes[0] != sizes[1]:
        raise InputError(
            f"strongest_patches: got maps {sizes[0]}, fields of {sizes[1]}, count={count}; required equal sizes, and 1 at least."
        )
    found = []
    for n, (values, ((top, bottom), (left, right))) in enumerate(zip(maps, fields, strict=True)):
        free = np.outer(top <= bottom, left <= right)
        for _ in range(count):
            if not free.any():
                break
            row, column = np.unravel_index(np.where(free, values, -np.inf).argmax(), free.shape)
            rows, columns = (int(top[row]), int(bottom[row]) + 1), (int(left[column]), int(right[column]) + 1)
            found.append(Patch(n, int(row), int(column), float(values[row, column]), rows, columns))
            free &= ~np.outer((top < rows[1]) & (bottom >= rows[0]), (left < columns[1]) & (right >= columns[0]))
    return sorted(found, key=lambda patch: -patch.value)[:count]
