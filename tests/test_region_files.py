"""Laws of files larger than memory: a region read is the region written, of every layout; a hostile file is one error in little memory."""

import functools
import re
import tracemalloc
from contextlib import contextmanager

import numpy as np
import pytest
import tifffile
import zarr

from jaxseg.data import to_float
from jaxseg.errors import InputError
from jaxseg.inference import region_files
from jaxseg.inference.label_files import create_label_file, identity_of, open_label_file
from jaxseg.inference.region_files import is_region_file, open_regions, stretched_regions
from jaxseg.inference.region_prediction import overview, sampled
from jaxseg.inference.whole import stretched
from jaxseg.pictures import overlay

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 255, (90, 130), dtype=np.uint8)
RGB = RNG.integers(0, 255, (90, 130, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 60000, (4, 90, 130), dtype=np.uint16)
SLICES = RNG.integers(0, 255, (4, 90, 130, 3), dtype=np.uint8)
WHOLE = {"config": {"write_empty_chunks": True}}


def tiff(array, **options):
    return lambda path: tifffile.imwrite(path, array, **options)


def chunked(array, **options):
    def write(path):
        zarr.create_array(str(path), shape=array.shape, dtype=array.dtype, **WHOLE, **options)[...] = array

    return write


def ome(path):
    axes = [{"name": letter} for letter in "tczyx"]
    group = zarr.open_group(str(path), mode="w", attributes={"ome": {"multiscales": [{"axes": axes, "datasets": [{"path": "0"}]}]}})
    array = SLICES.transpose(3, 0, 1, 2)[None]
    group.create_array("0", shape=array.shape, dtype=array.dtype, chunks=(1, 1, 2, 32, 48), **WHOLE)[...] = array


TILED = {"tile": (32, 48), "compression": "zlib"}
LAYOUTS = {
    "plain.tif": (tiff(GREY), GREY[None, ..., None]),
    "tiled.tif": (tiff(GREY, **TILED), GREY[None, ..., None]),
    "big.tif": (tiff(GREY, **TILED, predictor=True, bigtiff=True, byteorder=">"), GREY[None, ..., None]),
    "strips.tif": (tiff(GREY, rowsperstrip=7, compression="lzw"), GREY[None, ..., None]),
    "jpeg.tif": (tiff(np.full((96, 96), 100, np.uint8), tile=(32, 48), compression="jpeg"), np.full((1, 96, 96, 1), 100, np.uint8)),
    "rgb.tif": (tiff(RGB, **TILED, photometric="rgb"), RGB[None]),
    "planes.tif": (tiff(RGB.transpose(2, 0, 1), **TILED, photometric="rgb", planarconfig="separate"), RGB[None]),
    "pages.tif": (tiff(DEEP, photometric="minisblack", byteorder=">"), DEEP[..., None]),
    "tiled pages.tif": (tiff(DEEP, **TILED, photometric="minisblack"), DEEP[..., None]),
    "imagej.tif": (tiff(DEEP, imagej=True, metadata={"axes": "ZYX"}), DEEP[..., None]),
    "rgb pages.tif": (tiff(SLICES, **TILED, photometric="rgb"), SLICES),
    "zcyx.ome.tif": (tiff(SLICES.transpose(0, 3, 1, 2), **TILED, photometric="minisblack", metadata={"axes": "ZCYX"}), SLICES),
    "czyx.ome.tif": (tiff(SLICES.transpose(3, 0, 1, 2), **TILED, photometric="minisblack", metadata={"axes": "CZYX"}), SLICES),
    "grey.npy": (lambda path: np.save(path, GREY), GREY[None, ..., None]),
    "fortran.npy": (lambda path: np.save(path, np.asfortranarray(RGB)), RGB[None]),
    "stack.npy": (lambda path: np.save(path, DEEP.astype(">u2")), DEEP[..., None]),
    "v3.zarr": (chunked(GREY, chunks=(32, 48)), GREY[None, ..., None]),
    "v2.zarr": (chunked(GREY, chunks=(32, 48), zarr_format=2), GREY[None, ..., None]),
    "shards.zarr": (chunked(GREY, chunks=(16, 24), shards=(32, 48)), GREY[None, ..., None]),
    "stack.zarr": (chunked(DEEP, chunks=(2, 32, 48)), DEEP[..., None]),
    "rgb.zarr": (chunked(RGB, chunks=(32, 48, 1)), RGB[None]),
    "five axes.zarr": (ome, SLICES),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_region_is_the_array_s(name, tmp_path, monkeypatch):
    monkeypatch.setattr(region_files, "LARGE", 90 * 130)
    write, array = LAYOUTS[name]
    write(tmp_path / name)
    assert is_region_file(tmp_path / name) == (name != "jpeg.tif")  # which has fewer pixels
    with open_regions(tmp_path / name, array.shape[-1]) as image:
        assert (image.shape, image.dtype, bool(image.stack)) == (array.shape, array.dtype, len(array) > 1)
        for n in range(len(array)):
            for rows, columns in ((slice(0, array.shape[1]), slice(0, array.shape[2])), (slice(33, 64), slice(11, 80))):
                np.testing.assert_array_equal(image.read(n, rows, columns), array[n, rows, columns])
        part = image[0, 5:40, 6:7]
        assert part.dtype == np.float32
        np.testing.assert_array_equal(part, array[0, 5:40, 6:7] / np.float32(np.iinfo(array.dtype).max))


def test_grey_images_saved_as_rgb_are_grey_and_others_are_refused(tmp_path):
    np.save(tmp_path / "grey.npy", np.repeat(GREY[None, ..., None], 3, -1))
    tifffile.imwrite(tmp_path / "grey.tif", np.repeat(GREY[..., None], 3, -1), photometric="rgb")
    tifffile.imwrite(tmp_path / "rgb.tif", RGB, photometric="rgb")
    np.save(tmp_path / "one.npy", np.repeat(GREY[..., None], 3, -1))
    for name in ("grey.npy", "one.npy", "grey.tif"):
        with open_regions(tmp_path / name, 1) as image:
            assert image.shape == (1, 90, 130, 1)
            np.testing.assert_array_equal(image.read(0, slice(0, 90), slice(0, 130))[..., 0], GREY)
    np.save(tmp_path / "rgba.npy", np.repeat(GREY[..., None], 4, -1))
    with pytest.raises(InputError, match=r"has 4 channels.*the model takes 1"), open_regions(tmp_path / "rgba.npy", 1):
        pass
    with open_regions(tmp_path / "rgb.tif", 1) as image, pytest.raises(InputError, match="3 channels that differ; the model takes 1"):
        image[0, 0:9, 0:9]
    with pytest.raises(InputError, match=r"has 1 channels.*the model takes 3"), open_regions(_saved(tmp_path, tiff(GREY)), 3):
        pass


def test_failures_of_the_reader_s_user_are_not_the_file_s(tmp_path):
    with pytest.raises(ZeroDivisionError), open_regions(_saved(tmp_path, tiff(GREY)), 1):
        _ = 1 / 0


def test_nan_is_refused_where_it_is_met(tmp_path):
    image = np.zeros((40, 40), np.float32)
    image[30, 30] = np.nan
    np.save(tmp_path / "a.npy", image)
    with open_regions(tmp_path / "a.npy", 1) as file:
        assert (file[0, 0:20, 0:40] == 0).all()
        with pytest.raises(InputError, match="nan or infinite"):
            file[0, 20:40, 0:40]


@pytest.mark.parametrize("zarr_", [False, True], ids=["tiff", "zarr"])
@pytest.mark.parametrize(("shape", "stack"), [((1, 700, 1100), False), ((3, 30, 40), True)])
def test_a_label_map_is_what_was_written_in_any_order(zarr_, shape, stack, tmp_path):
    path, label = tmp_path / "a.part", RNG.integers(0, 2, shape)
    create_label_file(path, shape, stack=stack, zarr=zarr_, colours=[(0, 0, 0), (255, 3, 4)], identity="abc")
    assert (identity_of(path), identity_of(tmp_path / "none")) == ("abc", None)
    corners = [(n, y, x) for n in range(shape[0]) for y in range(0, shape[1], 333) for x in range(0, shape[2], 290)]
    for n, y, x in reversed(corners):
        file = open_label_file(path, shape)
        where = n, slice(y, min(y + 333, shape[1])), slice(x, min(x + 290, shape[2]))
        file.write(*where, label[where])
    for n, y, x in corners:
        where = n, slice(y // 2, shape[1] - y // 3), slice(x // 2, shape[2] - x // 3)
        np.testing.assert_array_equal(file.read(*where), label[where])
    written = zarr.open_array(str(path), mode="r")[...] if zarr_ else tifffile.imread(path)
    np.testing.assert_array_equal(written, label if stack else label[0])
    assert written.dtype == np.uint8


@pytest.mark.parametrize("image", [GREY, SLICES, DEEP], ids=["grey", "RGB slices", "16 bit"])
def test_percentiles_of_files_are_those_of_whole_images(image, tmp_path):
    np.save(tmp_path / "a.npy", image)
    channels = image.shape[-1] if image.shape[-1] == 3 else 1
    images = image.reshape(-1, 90, 130, channels)
    with open_regions(tmp_path / "a.npy", channels) as file:
        made = stretched_regions(file, (1, 99.8))
        for n, whole in enumerate(stretched(to_float(images), (1, 99.8))):
            np.testing.assert_allclose(made[n, 10:70, 20:130], whole[10:70, 20:130], atol=2e-6)


def test_percentiles_of_float_files_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((40, 40), np.float32))
    with open_regions(tmp_path / "a.npy", 1) as file, pytest.raises(InputError, match="counted of integers, not of float32"):
        stretched_regions(file, (1, 99.8))


# ---- Hostile files ------------------------------------------------------------------------------------------------------


def _saved(folder, write, name="a.tif"):
    write(folder / name)
    return folder / name


@contextmanager
def little_memory(limit=32 * 2**20):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def truncated_tiff(path):
    """damaged or cut short"""
    tifffile.imwrite(path, GREY, **TILED)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])  # the directory of pages comes first


def truncated_plain_tiff(path):
    """damaged or cut short"""
    tifffile.imwrite(path, GREY)
    path.write_bytes(path.read_bytes()[:6000])


def absurd_tiff(path):
    """damaged or cut short|chunks of"""
    tifffile.imwrite(path, GREY, rowsperstrip=90, compression="zlib")
    with tifffile.TiffFile(path, mode="r+") as file:
        for tag in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            file.pages.first.tags[tag].overwrite(2**31 - 1)


def bomb_tiff(path):
    """chunks of \\(40000, 40000\\), 1600000000 bytes; at most"""
    tifffile.imwrite(path, np.zeros((16, 16), np.uint8), rowsperstrip=16, compression="zlib")
    with tifffile.TiffFile(path, mode="r+") as file:
        for tag in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            file.pages.first.tags[tag].overwrite(40000)


def sparse_tiff(path):
    """damaged or cut short .*0 bytes"""
    tifffile.imwrite(path, GREY, **TILED)
    with tifffile.TiffFile(path, mode="r+") as file:
        counts = list(file.pages.first.databytecounts)
        file.pages.first.tags["TileByteCounts"].overwrite([*counts[:-1], 0])


def absurd_npy(path):
    """damaged or cut short"""
    np.save(path, GREY)
    data = path.read_bytes().replace(b"(90, 130)", b"(900000, 999999)")
    path.write_bytes(data)


def object_npy(path):
    """damaged or cut short|pixels are object"""
    np.save(path, np.array([[{}]], object), allow_pickle=True)


def wide_npy(path):
    """pixels are float64; uint8, uint16 or float32 is required"""
    np.save(path, GREY.astype(float))


def zarr_without_a_chunk(path):
    """1 of 9 chunks are missing"""
    chunked(GREY, chunks=(32, 48))(path)
    (path / "c" / "1" / "1").unlink()


def absurd_zarr(path):
    """of 4000000000000 chunks are missing"""
    zarr.create_array(str(path), shape=(10**9, 10**9), dtype=np.uint8, chunks=(500, 500))


def bomb_zarr(path):
    """chunks of \\(1000000, 1000000\\), 1000000000000 bytes; at most"""
    zarr.create_array(str(path), shape=(10**6, 10**6), dtype=np.uint8, chunks=(10**6, 10**6))


def pickled_zarr(path):
    """pickle"""
    chunked(GREY, chunks=(32, 48), zarr_format=2, compressors=None)(path)
    meta = path / ".zarray"
    meta.write_text(meta.read_text().replace('"compressor": null', '"compressor": {"id": "pickle", "protocol": 5}'))


def damaged_zarr(path):
    """damaged or cut short"""
    chunked(GREY, chunks=(32, 48))(path)
    (path / "c" / "1" / "1").write_bytes(b"nonsense")


def empty_group_zarr(path):
    """without OME-Zarr's multiscales"""
    zarr.open_group(str(path), mode="w")


HOSTILE = [v for v in list(globals().values()) if getattr(v, "__name__", "").endswith(("_tiff", "_npy", "_zarr", "_chunk"))]
SUFFIX = {"tiff": ".tif", "npy": ".npy"}


@pytest.mark.parametrize("make", HOSTILE, ids=lambda f: f.__name__)
def test_a_hostile_file_is_one_error_in_little_memory(make, tmp_path):
    path = tmp_path / f"a{SUFFIX.get(make.__name__.split('_')[-1], '.zarr')}"
    make(path)
    said = pytest.raises(InputError, match=f"^{re.escape(str(path))}: .*({make.__doc__})")
    with little_memory(), said as error, open_regions(path, 1) as image:
        for y in range(0, min(image.shape[1], 90), 30):
            image[0, y : y + 30, 0 : min(image.shape[2], 130)]
    assert "\n" not in str(error.value)


def test_a_stored_tile_cannot_grow_beyond_its_size(tmp_path):
    """A tile of 32 x 48 pixels whose stream unpacks to 64 MiB."""
    import zlib

    path = _saved(tmp_path, tiff(GREY, **TILED))
    stream = zlib.compress(bytes(2**26), 9)
    with tifffile.TiffFile(path, mode="r+") as file:
        page, end = file.pages.first, path.stat().st_size
        page.tags["TileOffsets"].overwrite([end, *page.dataoffsets[1:]])
        page.tags["TileByteCounts"].overwrite([len(stream), *page.databytecounts[1:]])
    with path.open("ab") as file:
        file.write(stream)
    with little_memory(), pytest.raises(InputError, match="damaged or cut short"), open_regions(path, 1) as image:
        image[0, 0:30, 0:30]


def test_a_label_map_and_its_overview_take_little_memory(tmp_path):
    """64 MiB of labels, made and shown in an eighth of that."""
    np.lib.format.open_memmap(tmp_path / "long.npy", "w+", np.uint8, (65536, 1024))
    colours = [(0, 0, 0), (255, 0, 0)]
    with open_regions(tmp_path / "long.npy", 1) as image, little_memory(8 * 2**20):
        create_label_file(tmp_path / "long.tif", (1, 65536, 1024), stack=False, zarr=False, colours=colours, identity="")
        labels = open_label_file(tmp_path / "long.tif", (1, 65536, 1024))
        labels.write(0, slice(600, 1300), slice(500, 600), np.ones((700, 100), np.uint8))
        image, sample = sampled(image)
        image.read(0, slice(0, 3000), slice(0, 1024))
        shown = overview(image.shape, sample(), labels.read, functools.partial(overlay, colours=colours))
    assert shown.shape == (2048, 32, 3)
    assert set(map(tuple, shown[-(-600 // 32) : -(-1300 // 32), -(-500 // 32) : -(-600 // 32)].reshape(-1, 3).tolist())) == {(128, 0, 0)}
    assert (shown[:, 0] == 0).all()
