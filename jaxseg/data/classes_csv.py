"""classes.csv: the names of the classes of a folder, and perhaps their colours and numbers.

Header `name` or `name,red,green,blue`, either with `index`; one row a class, in class order where there is no `index`.
Rows of index 255 name colours that are ignored.
"""

import csv
import dataclasses
from pathlib import Path

from jaxseg.errors import InputError
from jaxseg.pictures import default_colours

RGB = tuple[int, int, int]

IGNORE = 255
COLOURS = ("red", "green", "blue")


@dataclasses.dataclass(frozen=True)
class ClassTable:
    """What classes.csv says: `values[i]` is the class number, or 255, of the i-th row's colour."""

    names: tuple[str, ...]
    colours: tuple[RGB, ...] | None
    values: tuple[int, ...]

    def number_of_colour(self) -> dict[int, int]:
        """Class number by `code` of the colour."""
        return {code(colour): value for colour, value in zip(self.colours or (), self.values, strict=False)}


def read_classes(path: Path) -> ClassTable | None:
    """None where there is no file.

    Raises:
      InputError: wrong columns, numbers, names or colours.
    """
    if not path.is_file():
        return None
    rows = list(csv.DictReader(path.read_text("utf-8-sig", "replace").splitlines(), skipinitialspace=True))
    head = set(rows[0]) if rows else set()
    hint = "The header is `name` or `name,red,green,blue`, either with `index` if you like: one row a class"
    if "name" not in head or (head & set(COLOURS) and not head >= set(COLOURS)):
        raise InputError(f"folder: {path} has the columns {sorted(map(str, head))} and {len(rows)} rows. {hint}: correct it")
    try:
        values = tuple(int(row["index"]) for row in rows) if "index" in head else tuple(range(len(rows)))
        colours = tuple((int(row["red"]), int(row["green"]), int(row["blue"])) for row in rows) if "red" in head else None
    except (TypeError, ValueError) as error:
        raise InputError(f"folder: {path}: {error}; index, red, green and blue are whole numbers. {hint}: correct it") from None
    classes = sorted((value, (row["name"] or "").strip()) for value, row in zip(values, rows, strict=True) if value != IGNORE)
    if [value for value, _ in classes] != list(range(len(classes))) or not 1 <= len(classes) <= IGNORE:
        raise InputError(
            f"folder: {path} has the indices {list(values)}; "
            f"required are 0, 1, 2 ... each once (and {IGNORE} for what is ignored): correct it"
        )
    names = tuple(name for _, name in classes)
    if "" in names or len(set(names)) < len(names):
        raise InputError(f"folder: {path} has the names {list(names)}; each class needs a name of its own: correct it")
    if colours and (len(set(colours)) != len(colours) or not all(0 <= part <= 255 for colour in colours for part in colour)):
        raise InputError(f"folder: {path}: colours must differ and lie in 0..255: correct it")
    return ClassTable(names, colours, values)


def class_colours(listed: ClassTable | None, num_classes: int) -> tuple[RGB, ...]:
    """One colour a class, from the table or else from the palette."""
    if listed is None or listed.colours is None:
        return default_colours(num_classes)
    colour_of = dict(zip(listed.values, listed.colours, strict=True))
    return tuple(colour_of[number] for number in range(num_classes))


def code(colour: RGB) -> int:
    """One number a colour."""
    return colour[0] << 16 | colour[1] << 8 | colour[2]
