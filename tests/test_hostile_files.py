"""Broken and hostile files: exit code 2 with one message that names the file, bounded memory, and nothing in them is executed."""

import contextlib
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from test_faults import GREY, Place

from jaxseg.cli import main

MEMORY = 400 << 20
"""Bytes that a refusal may take; the bombs below would take 1 GiB and more."""
STACK = np.random.default_rng(0).integers(0, 255, (3, 64, 64), dtype=np.uint8)


class Spy:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def pickled(p: Place) -> bytes:
    import pickle

    return pickle.dumps(Spy(p.tmp / "executed"))


def deflated_gibibyte() -> bytes:
    """Zeros, a mebibyte compressed once and repeated."""
    compressor = zlib.compressobj(9)
    head, blocks = compressor.compress(b""), []
    for _ in range(2):  # the first one carries zlib's header
        blocks.append(compressor.compress(bytes(1 << 20)) + compressor.flush(zlib.Z_FULL_FLUSH))
    return head + blocks[0] + blocks[1] * 1023 + compressor.flush()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, *more: bytes) -> bytes:
    rows = chunk(b"IDAT", zlib.compress(bytes(height * (1 + width * depth // 8) if height < 100 else 100)))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0))
        + b"".join(more)
        + rows
        + chunk(b"IEND", b"")
    )


def tiff(p: Place, array: np.ndarray, tags: dict[str, int] | None = None, **options) -> Path:
    """A TIFF file of which the values of some tags of the first page are changed after writing."""
    path = p.tmp / "in.tif"
    tifffile.imwrite(path, array, photometric="minisblack", metadata=None, **options)
    with tifffile.TiffFile(path, mode="r+") as file:
        for name, value in (tags or {}).items():
            file.pages.first.tags[name].overwrite(value)
    return path


def zarr_array(p: Place, shape=(64, 64), **options):
    zarr = pytest.importorskip("zarr")
    array = zarr.create_array(p.tmp / "in.zarr", shape=shape, chunks=(32, 32), dtype="uint8", **options)
    array[:64, :64] = STACK[0]
    return p.tmp / "in.zarr"


def case(function):
    """A case: a function of Place to argv, whose docstring lists what the message must say, separated by |."""
    CASES[function.__name__] = function, [word.strip() for word in function.__doc__.split("|")]
    return function


CASES: dict[str, tuple] = {}

# ---- TIFF -----------------------------------------------------------------------------------------------------------------


@case
def tiff_stack_cut_short(p):
    """in.tif|damaged or cut short"""
    path = tiff(p, STACK, compression="zlib")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return p.predict(path)


@case
def tiff_of_absurd_size(p):
    """in.tif|damaged or cut short"""
    return p.predict(tiff(p, GREY, {"ImageWidth": 2**31 - 1, "ImageLength": 2**31 - 1}))


@case
def tiff_of_an_absurd_strip(p):
    """in.tif|chunks of|at most"""
    size = {"ImageWidth": 2**20, "ImageLength": 2**20, "RowsPerStrip": 2**20}
    return p.predict(tiff(p, STACK[0], size, compression="zlib", rowsperstrip=64))


@case
def tiff_that_inflates(p):
    """in.tif|damaged or cut short"""
    path = tiff(p, STACK[0], compression="zlib", rowsperstrip=64)
    bomb = deflated_gibibyte()
    with tifffile.TiffFile(path, mode="r+") as file:
        tags = file.pages.first.tags
        tags["StripOffsets"].overwrite(path.stat().st_size)
        tags["StripByteCounts"].overwrite(len(bomb))
    path.write_bytes(path.read_bytes() + bomb)
    return p.predict(path)


@case
def tiff_of_nothing_but_its_first_bytes(p):
    """in.tif|damaged or cut short"""
    return p.predict(p.file("in.tif", b"II*\0\x08\0\0\0\xff\xff"))


# ---- PNG and JPEG ---------------------------------------------------------------------------------------------------------


@case
def png_of_16_bits_and_absurd_size(p):
    """in.png|at most|tiles"""
    return p.predict(p.file("in.png", png(2**31 - 1, 2**31 - 1, 16)))


@case
def png_with_a_text_that_inflates(p):
    """in.png|damaged or cut short|too large"""
    return p.predict(p.file("in.png", png(8, 8, 8, chunk(b"zTXt", b"Comment\0\0" + deflated_gibibyte()))))


@case
def index_png_named_jpg(p):
    """in.jpg|3 channels|Convert"""
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 3, "P")
    image.putpalette([9, 0, 0, 0, 200, 0, 0, 0, 90])
    image.save(p.tmp / "in.jpg", "PNG")
    return p.predict(p.tmp / "in.jpg")


@case
def link_in_a_circle(p):
    """in.png|no such file|Check the path"""
    (p.tmp / "in.png").symlink_to(p.tmp / "in.png")
    return p.predict(p.tmp / "in.png")


@case
def picture_that_never_ends(p):
    """in.png|is no file"""
    (p.tmp / "in.png").symlink_to("/dev/zero")
    return p.predict(p.tmp / "in.png")


@case
def picture_of_a_tebibyte(p):
    """in.png|1099511627776 bytes|at most"""
    with p.file("in.png", png(8, 8, 8)).open("r+b") as file:
        file.truncate(1 << 40)  # a hole, which takes no room
    return p.predict(p.tmp / "in.png")


# ---- NumPy and Zarr ---------------------------------------------------------------------------------------------------------


@case
def npy_of_pickled_objects(p):
    """in.npy|damaged"""
    np.save(p.tmp / "in.npy", np.array([[Spy(p.tmp / "executed")]], object), allow_pickle=True)
    return p.predict(p.tmp / "in.npy")


@case
def npy_of_absurd_size(p):
    """in.npy|damaged or cut short"""
    with (p.tmp / "in.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (2**31 - 1, 2**31 - 1)})
        file.write(bytes(64))
    return p.predict(p.tmp / "in.npy")


@case
def zarr_without_a_chunk(p):
    """in.zarr|1 of 4 chunks are missing"""
    folder = zarr_array(p)
    (folder / "c" / "1" / "0").unlink()
    return p.predict(folder)


@case
def zarr_of_absurd_size(p):
    """in.zarr|chunks are missing"""
    return p.predict(zarr_array(p, shape=(2**40, 2**40)))


@case
def zarr_whose_chunk_inflates(p):
    """in.zarr|damaged"""
    folder = zarr_array(p, compressors={"name": "gzip", "configuration": {"level": 1}})
    raw = deflated_gibibyte()[2:-4]
    (folder / "c" / "0" / "0").write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + raw + struct.pack("<II", 0, 1 << 30))
    return p.predict(folder)


@case
def zarr_of_pickled_objects(p):
    """in.zarr|pickle"""
    folder = p.tmp / "in.zarr"
    about = {"zarr_format": 2, "shape": [1, 1], "chunks": [1, 1], "dtype": "|O", "fill_value": None, "order": "C", "compressor": None}
    p.file("in.zarr/.zarray", json.dumps({**about, "filters": [{"id": "pickle", "protocol": 5}]}).encode())
    p.file("in.zarr/0.0", pickled(p))
    return p.predict(folder)


# ---- Weights and run folders ------------------------------------------------------------------------------------------------


@case
def safetensors_with_a_header_of_exabytes(p):
    """in.safetensors|no safetensors file"""
    file = p.file("in.safetensors", struct.pack("<Q", 2**60) + b"{}")
    return ["weights", "import", "milesial_unet", str(file), "--out", str(p.tmp / "out")]


@case
def run_description_that_is_pickled(p):
    """run.json|not JSON"""
    folder = p.run()
    (folder / "run.json").write_bytes(pickled(p))
    return p.predict(p.file("in.png", GREY), run=folder)


@case
def run_description_of_a_function_to_call(p):
    """run.json|unknown 'os.system'"""
    return p.predict(p.file("in.png", GREY), run=p.run(model={"name": "os.system", "fields": {"command": "mkdir executed"}}))


@case
def checkpoint_that_is_pickled(p):
    """checkpoints: metrics are unreadable|Remove the folder"""
    folder = p.run()
    for path in (folder / "checkpoints" / "8").rglob("*"):
        if path.is_file():
            path.write_bytes(pickled(p))
    return p.predict(p.file("in.png", GREY), run=folder)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # as in tests/test_checkpoint.py
@pytest.mark.parametrize("name", CASES)
def test_a_hostile_file_is_one_clear_error(name, tmp_path, discs, trained, capsys, monkeypatch):
    build, words = CASES[name]
    argv = build(Place(tmp_path, discs, trained))
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    before = peak_memory(reset=True)
    code = main(argv)
    error = capsys.readouterr().err
    assert code == 2, error
    assert "Traceback" not in error
    assert not [word for word in words if word not in " ".join(error.split())], error
    assert not (tmp_path / "executed").exists()
    assert not [path for path in (tmp_path / "out").glob("*") if path.stat().st_size > 1 << 20]
    assert peak_memory() - before < MEMORY


def test_directories_in_a_circle_come_to_an_end(tmp_path, discs, trained):
    """A BigTIFF whose only directory names itself as the next one: its one picture is predicted."""
    p = Place(tmp_path, discs, trained)
    path = tiff(p, STACK[0], bigtiff=True)
    data = bytearray(path.read_bytes())
    first = struct.unpack_from("<Q", data, 8)[0]
    struct.pack_into("<Q", data, first + 8 + 20 * struct.unpack_from("<Q", data, first)[0], first)
    path.write_bytes(data)
    assert main(p.predict(path)) == 0
    assert np.asarray(Image.open(tmp_path / "out" / "in.png")).shape == (64, 64)


def test_what_else_lies_in_a_run_folder_is_ignored(tmp_path, discs, trained):
    """Pickles and programs, where other frameworks keep theirs: the run predicts as if they were not there."""
    p = Place(tmp_path, discs, trained)
    folder, spy = p.run(), tmp_path / "executed"
    program = f"import os\nos.mkdir({str(spy)!r})\n"
    for name in ("model.pkl", "checkpoints/model.pt", "checkpoints/8/state.pickle", "checkpoints/8/state/data.pkl"):
        (folder / name).write_bytes(pickled(p))
    for name in ("tiny.py", "__init__.py", "sitecustomize.py", "conftest.py", "checkpoints/8/load.py"):
        (folder / name).write_text(program)
        (folder / name).chmod(0o755)
    assert main(p.predict(p.file("in.png", GREY), run=folder)) == 0
    assert (tmp_path / "out" / "in.png").exists()
    assert not spy.exists()


def peak_memory(*, reset: bool = False) -> int:
    """Bytes of this process at their peak since the last reset, where Linux has one, or else ever."""
    if reset:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) << 10
