import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from jaxseg.data import images
from jaxseg.errors import InputError

RNG = np.random.default_rng(0)


def _bytes(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _tiff(array, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
@pytest.mark.parametrize("channels", [(), (1,), (2,), (3,), (4,), (7,)])
def test_encode_decode_is_exact(dtype, channels):
    shape = (9, 1 + 5 * len(channels), *channels)
    array = (RNG.standard_normal(shape) if dtype == "float32" else RNG.integers(0, np.iinfo(dtype).max, shape)).astype(dtype)
    for example in (array, (array % 3).astype(dtype), np.abs(array.astype(dtype)) * 0):
        back = images.decode(images.encode(example))
        assert back.dtype == example.dtype
        assert back.shape == example.shape
        np.testing.assert_array_equal(back, example)


def test_negative_labels_survive():
    label = np.array([[-1, 3]], np.int32)
    np.testing.assert_array_equal(images.decode(images.encode(label)), label)


@pytest.mark.parametrize(
    "make",
    [
        lambda a: _bytes(Image.fromarray(a)),
        lambda a: _bytes(Image.fromarray(a), "JPEG"),
        lambda a: _tiff(a, compression="zlib", photometric="rgb"),
        lambda a: _tiff(a, photometric="rgb"),
    ],
)
@pytest.mark.parametrize("part", [0.9, 0.5, 0.1, 0.004])
def test_truncated_file_is_named(make, part, tmp_path):
    data = make(RNG.integers(0, 255, (40, 40, 3), dtype=np.uint8))
    path = tmp_path / "broken_one"
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(InputError, match="broken_one"):
        images.read_image(path)


def test_missing_file_and_other_formats_are_named(tmp_path):
    with pytest.raises(InputError, match="nothing_here"):
        images.read_image(tmp_path / "nothing_here.png")
    with pytest.raises(InputError, match=r"a\.gif.*PNG, JPEG or TIFF"):
        images.read_image(_bytes(Image.new("L", (2, 2)), "GIF"), "a.gif")


def test_bombs_are_refused_before_decoding():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    jpeg = bytearray(_bytes(Image.new("L", (8, 8)), "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 60000, 60000)
    for data in (png, bytes(jpeg)):
        with pytest.raises(InputError, match=r"big.*pixels"):
            images.read_image(data, "big")
    with pytest.raises(InputError, match=r"big.*pixels"):
        images.read_label(png, "big")


def test_sixteen_bits_stay_sixteen():
    import imagecodecs

    for shape in ((6, 5), (6, 5, 3)):
        array = RNG.integers(0, 2**16, shape, dtype=np.uint16)
        image = images.read_image(imagecodecs.png_encode(array))
        assert image.dtype == np.uint16
        np.testing.assert_array_equal(image, array.reshape(6, 5, -1))


def test_palette_is_colours_as_image_and_indices_as_label():
    indices = np.array([[0, 1], [2, 1]], np.uint8)
    picture = Image.fromarray(indices)
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    assert picture.mode == "P"
    data = _bytes(picture)
    np.testing.assert_array_equal(images.read_label(data), indices)
    np.testing.assert_array_equal(images.read_image(data), 255 * np.eye(3, dtype=np.uint8)[indices])


def test_few_bit_grey_labels_are_numbers():
    def png(rows, depth):
        def chunk(kind, data):
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        header = struct.pack(">IIBBBBB", 4, 1, depth, 0, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")

    np.testing.assert_array_equal(images.read_label(png(bytes([0, 0b00011011]), 2)), [[0, 1, 2, 3]])
    np.testing.assert_array_equal(images.read_label(png(bytes([0, 0x07, 0xF2]), 4)), [[0, 7, 15, 2]])
    np.testing.assert_array_equal(images.read_label(png(bytes([0, 0b01010000]), 1)), [[0, 1, 0, 1]])
    np.testing.assert_array_equal(images.read_image(png(bytes([0, 0b01010000]), 1))[..., 0], [[0, 255, 0, 255]])


def test_alpha_is_dropped_only_when_opaque():
    rgba = RNG.integers(0, 255, (4, 4, 4), dtype=np.uint8)
    rgba[..., 3] = 255
    np.testing.assert_array_equal(images.read_image(_bytes(Image.fromarray(rgba))), rgba[..., :3])
    rgba[0, 0, 3] = 0
    with pytest.raises(InputError, match=r"see_through.*transparency"):
        images.read_image(_bytes(Image.fromarray(rgba)), "see_through")


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert images.read_image(_bytes(Image.new("RGB", (8, 4)), "JPEG", exif=exif)).shape == (8, 4, 3)


def test_tiff_layouts():
    array = RNG.integers(0, 2**16, (3, 6, 5), dtype=np.uint16)
    last = np.moveaxis(array, 0, -1)
    np.testing.assert_array_equal(images.read_image(_tiff(array, photometric="rgb", planarconfig="separate")), last)
    np.testing.assert_array_equal(images.read_image(_tiff(array, photometric="minisblack", metadata={"axes": "CYX"})), last)
    np.testing.assert_array_equal(images.read_image(_tiff(np.ascontiguousarray(last), photometric="rgb", compression="lzw")), last)
    grey = RNG.standard_normal((6, 5)).astype(np.float32)
    np.testing.assert_array_equal(images.read_image(_tiff(grey))[..., 0], grey)
    with pytest.raises(InputError, match=r"stack.*split it"):
        images.read_image(_tiff(array, photometric="minisblack", metadata={"axes": "ZYX"}), "stack")
    with pytest.raises(InputError, match=r"odd.*uint32"):
        images.read_image(_tiff(array[0].astype(np.uint32)), "odd")
    grey[0, 0] = np.nan
    with pytest.raises(InputError, match=r"odd.*nan"):
        images.read_image(_tiff(grey), "odd")


def test_label_refusals():
    with pytest.raises(InputError, match=r"l\.jpg.*PNG"):
        images.read_label(_bytes(Image.new("L", (4, 4)), "JPEG"), "l.jpg")
    with pytest.raises(InputError, match="integers"):
        images.read_label(_tiff(np.zeros((4, 4), np.float32)), "l.tif")
    instances = RNG.integers(0, 2**20, (4, 4), dtype=np.int32)
    np.testing.assert_array_equal(images.read_label(_tiff(instances)), instances)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_pillow_does(orientation):
    from PIL import ImageOps

    array = RNG.integers(0, 255, (3, 5, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    png = _bytes(Image.fromarray(array), exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(png))))
    tiff = _tiff(array, photometric="rgb", extratags=[(images.ORIENTATION, "H", 1, orientation, True)])
    for data in (png, tiff):
        np.testing.assert_array_equal(images.read_image(data), expected)
        np.testing.assert_array_equal(images.read_label(data), expected)
    deep = _bytes(Image.fromarray(array[..., 0].astype(np.uint16) * 256), exif=exif)
    np.testing.assert_array_equal(images.read_image(deep)[..., 0], expected[..., 0].astype(np.uint16) * 256)
    np.testing.assert_array_equal(images.read_label(deep), expected[..., 0].astype(np.uint16) * 256)
