"""Colours for classes that bring none."""

RGB = tuple[int, int, int]


def palette(num_classes: int) -> tuple[RGB, ...]:
    """The colours of Pascal VOC: class 0 black, the others far apart; all different up to 256 classes.

    >>> palette(3)
    ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    """
    return tuple(_colour(number) for number in range(num_classes))


def _colour(number: int) -> RGB:
    channels = [0, 0, 0]
    for shift in range(7, -1, -1):  # three bits of the number at a time, most visible bit of the colour first
        for channel in range(3):
            channels[channel] |= (number >> channel & 1) << shift
        number >>= 3
    return channels[0], channels[1], channels[2]
