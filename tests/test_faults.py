"""Bad input through the command line: exit code 2 and one message that names the culprit and the way out, never a traceback."""

import contextlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import types
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from jaxseg.cli import main


class Place:
    """Where a case is set up: `tmp`, the prepared discs and the run trained on them."""

    def __init__(self, tmp: Path, discs: Path, trained: Path):
        self.tmp, self.discs, self.trained = tmp, discs, trained

    def train(self, *options: str, config: Path | None = None, data_dir: Path | None = None) -> list[str]:
        where = ["--data-dir", str(data_dir or self.discs / "data"), "--workdir", str(self.tmp / "run")]
        return ["train", str(config or self.discs / "tiny.py"), *where, *options]

    def predict(self, *inputs: Path, run: Path | None = None) -> list[str]:
        return ["predict", str(run or self.trained), *map(str, inputs), "--out", str(self.tmp / "out")]

    def prepare(self) -> list[str]:
        return ["data", "prepare", "folder", "--source", str(self.tmp / "source"), "--data-dir", str(self.tmp / "data")]

    def source(self) -> Path:
        return Path(shutil.copytree(self.discs / "source", self.tmp / "source"))

    def run(self, **changes) -> Path:
        """A copy of the trained run whose run.json has other parts."""
        folder = Path(shutil.copytree(self.trained, self.tmp / "copy"))
        description = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps({**description, **changes}))
        return folder

    def config(self, text: str) -> Path:
        path = self.tmp / "mine.py"
        path.write_text(text)
        return path

    def file(self, name: str, content: bytes | np.ndarray = b"hello") -> Path:
        path = self.tmp / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            Image.fromarray(content).save(path)
        return path


GREY = np.full((8, 8), 7, np.uint8)


def bomb(side: int = 100_000) -> bytes:
    """A PNG of a few bytes that says it is side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def case(function):
    """A case: a function of Place to argv, whose docstring lists what the message must say, separated by |."""
    CASES[function.__name__] = function, [word.strip() for word in function.__doc__.split("|")]
    return function


CASES: dict[str, tuple] = {}

# ---- Commands and options -----------------------------------------------------------------------------------------------


@case
def options_before_the_config(p):
    """the config file comes first"""
    return ["train", "--workdir", str(p.tmp), str(p.discs / "tiny.py")]


@case
def steps_beyond_all_numbers(p):
    """steps: got 99999999999999999999|2147483647"""
    return p.train("--steps", "99999999999999999999")


@case
def config_that_raises(p):
    """get_config: ValueError: no such thing|correct the config"""
    return p.train(config=p.config("def get_config(steps: int = 1):\n    raise ValueError('no such thing')\n"))


@case
def config_that_returns_something_else(p):
    """returned int|jaxseg.config.Config"""
    return p.train(config=p.config("def get_config(steps: int = 1):\n    return 5\n"))


@case
def config_that_exits(p):
    """mine.py: does not run: SystemExit"""
    return p.train(config=p.config("import sys\nsys.exit(0)\n"))


@case
def output_among_the_images(p):
    """--out|is the folder of q.png|Choose another folder"""
    return p.predict(p.file("out/q.png", GREY))


@case
def two_images_write_the_same_overlay(p):
    """q_overlay.png and|q.png: both would write|Rename one"""
    return p.predict(p.file("in/q.png", GREY), p.file("in/q_overlay.png", GREY))


@case
def predict_into_a_file(p):
    """--out|is a file|folder"""
    p.file("out")
    return p.predict(p.file("in/q.png", GREY))


@case
def image_of_another_type(p):
    """in/q.png: has uint16 pixels|trained on uint8|Convert"""
    return p.predict(p.file("in/q.png", GREY.astype(np.uint16)))


@case
def one_bad_image_of_two(p):
    """1 of 2 images were not predicted|bad.png"""
    return p.predict(p.file("in/bad.png"), p.file("in/q.png", GREY))


@case
def run_without_a_test_split(p):
    """run.json: splits missing or of the wrong type"""
    return ["evaluate", str(p.run(splits={}))]


@case
def data_that_moved(p):
    """not prepared|--data-dir where the data set is now"""
    return ["evaluate", str(p.run(data_dir=str(p.tmp / "nowhere")))]


@case
def unknown_command(p):
    """no such command|'trian'|train|evaluate|predict"""
    return ["trian"]


@case
def train_without_workdir(p):
    """--workdir"""
    return ["train", str(p.discs / "tiny.py")]


@case
def unknown_option(p):
    """--learning-rte|--learning-rate"""
    return p.train("--learning-rte", "0.1")


@case
def unknown_choice(p):
    """--upsample|deconvolution|pixel_shuffle"""
    return p.train("--upsample", "deconvolution")


@case
def not_a_number(p):
    """--steps|many"""
    return p.train("--steps", "many")


@case
def predict_without_out(p):
    """--out"""
    return ["predict", str(p.trained), str(p.discs / "source")]


@case
def evaluate_without_workdir(p):
    """WORKDIR"""
    return ["evaluate"]


@case
def negative_steps(p):
    """steps|-5|from 1"""
    return p.train("--steps", "-5")


@case
def learning_rate_0(p):
    """learning_rate|0.0|above 0"""
    return p.train("--learning-rate", "0")


@case
def batch_of_nothing(p):
    """batch_size|0|from 1"""
    return p.train("--batch-size", "0")


@case
def crops_of_nothing(p):
    """size|at least 1"""
    return p.train("--size", "0")


@case
def illegal_size_of_unpadded_convolutions(p):
    """19|nearest legal sizes|18|20|padding"""
    return p.train("--padding", "valid", "--size", "19")


@case
def workdir_is_a_file(p):
    """--workdir|run: is a file|another path"""
    p.file("run")
    return p.train()


# ---- Configs ------------------------------------------------------------------------------------------------------------


@case
def missing_config(p):
    """absent.py|no such config file|configs/"""
    return p.train(config=p.tmp / "absent.py")


@case
def config_is_no_python_file(p):
    """mine.yaml|.py"""
    return p.train(config=p.file("mine.yaml"))


@case
def config_without_get_config(p):
    """mine.py|get_config()|configs/"""
    return p.train(config=p.config("steps = 3\n"))


@case
def config_with_a_syntax_error(p):
    """mine.py|SyntaxError|Correct the file"""
    return p.train(config=p.config("def get_config(:\n"))


@case
def config_that_fails(p):
    """mine.py|ModuleNotFoundError|no_such_module"""
    return p.train(config=p.config("import no_such_module\n"))


@case
def config_with_an_option_of_the_script(p):
    """get_config|workdir|Rename"""
    return p.train(config=p.config("def get_config(workdir: int = 3):\n    pass\n"))


@case
def config_for_another_split(p):
    """eval_split|'validation'|train|test"""
    text = (p.discs / "tiny.py").read_text().replace("eval_every=4", "eval_every=4, eval_split='validation'")
    return p.train(config=p.config(text))


# ---- Data sets ----------------------------------------------------------------------------------------------------------


@case
def unknown_data_set(p):
    """'cels'|did you mean cells?"""
    return ["data", "prepare", "cels", "--data-dir", str(p.tmp)]


@case
def data_set_not_prepared(p):
    """not prepared|jaxseg data prepare folder --data-dir"""
    return p.train(data_dir=p.tmp / "nowhere")


@case
def missing_source(p):
    """folder|--source"""
    return ["data", "prepare", "folder", "--data-dir", str(p.tmp / "data")]


@case
def source_that_is_not_there(p):
    """no folder|source|images"""
    return p.prepare()


@case
def empty_folder(p):
    """images|holds no image|.png"""
    for kind in ("images", "labels"):
        (p.tmp / "source" / kind).mkdir(parents=True)
    return p.prepare()


@case
def label_of_another_size(p):
    """disc03.png|8 x 8|32 x 32|same size"""
    Image.fromarray(GREY // 7).save(p.source() / "labels" / "disc03.png")
    return p.prepare()


@case
def label_out_of_range(p):
    """disc05.tif|-1|0..254"""
    source = p.source()
    (source / "labels" / "disc05.png").unlink()
    tifffile.imwrite(source / "labels" / "disc05.tif", np.full((32, 32), -1, np.int16))
    return p.prepare()


@case
def colours_without_a_table(p):
    """disc02.png|colours|classes.csv"""
    Image.new("RGB", (32, 32), (9, 20, 30)).save(p.source() / "labels" / "disc02.png")
    return p.prepare()


@case
def bad_table_of_classes(p):
    """classes.csv|name,red,green,blue"""
    (p.source() / "classes.csv").write_text("class;colour\na;red\n")
    return p.prepare()


@case
def truncated_label(p):
    """disc07.png|damaged or cut short"""
    path = p.source() / "labels" / "disc07.png"
    path.write_bytes(path.read_bytes()[:60])
    return p.prepare()


@case
def truncated_training_image(p):
    """disc07.png|damaged or cut short|re-export"""
    path = p.source() / "images" / "disc07.png"
    path.write_bytes(path.read_bytes()[:200])
    return p.prepare()


@case
def image_without_label(p):
    """disc01.png|has no label"""
    (p.source() / "labels" / "disc01.png").unlink()
    return p.prepare()


@case
def duplicated_stems(p):
    """disc01.png|disc01.tif|twice|rename"""
    tifffile.imwrite(p.source() / "images" / "disc01.tif", np.zeros((32, 32), np.uint8))
    return p.prepare()


@case
def image_of_other_channels(p):
    """disc04.png|3 channels|1"""
    Image.new("RGB", (32, 32)).save(p.source() / "images" / "disc04.png")
    return p.prepare()


@case
def nan_in_a_training_image(p):
    """disc04.tif|nan"""
    source = p.source()
    (source / "images" / "disc04.png").unlink()
    tifffile.imwrite(source / "images" / "disc04.tif", np.full((32, 32), np.nan, np.float32))
    return p.prepare()


# ---- Runs ---------------------------------------------------------------------------------------------------------------


@case
def no_run_folder(p):
    """nowhere|run.json is missing|--workdir"""
    return ["evaluate", str(p.tmp / "nowhere")]


@case
def run_without_checkpoints(p):
    """copy|no finished checkpoint|training command"""
    folder = p.run()
    shutil.rmtree(folder / "checkpoints")
    return ["evaluate", str(folder)]


@case
def corrupt_description(p):
    """run.json|not JSON|train again"""
    folder = p.run()
    (folder / "run.json").write_text((folder / "run.json").read_text()[:300])
    return ["evaluate", str(folder)]


@case
def corrupt_description_when_training_goes_on(p):
    """run.json|not JSON|train again"""
    p.run().rename(p.tmp / "run")
    (p.tmp / "run" / "run.json").write_text("{")
    return p.train()


@case
def checkpoint_of_another_model(p):
    """checkpoint 8|another model|down1_conv1/kernel"""
    model = json.loads((p.trained / "run.json").read_text())["model"]
    model["fields"]["features"] = [4, 16]
    return ["evaluate", str(p.run(model=model))]


@case
def damaged_checkpoint(p):
    """checkpoint 8|Remove its folder"""
    folder = p.run()
    for path in (folder / "checkpoints" / "8" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:50])
    return ["evaluate", str(folder)]


@case
def unknown_split(p):
    """'validation'|'val'|'test'"""
    return ["evaluate", str(p.trained), "--split", "validation"]


@case
def data_of_other_classes(p):
    """folder|class 0, class 1|background, foreground|same kind"""
    source = p.source()
    for path in (source / "labels").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) * 255).save(path)
    assert main(p.prepare()) == 0
    return ["evaluate", str(p.trained), "--data-dir", str(p.tmp / "data")]


# ---- Predictions --------------------------------------------------------------------------------------------------------


@case
def missing_input(p):
    """absent.png|no such file"""
    return p.predict(p.tmp / "absent.png")


@case
def folder_without_images(p):
    """notes|no images|PNG, JPEG, TIFF or .npy files"""
    p.file("notes/a.txt")
    return p.predict(p.tmp / "notes")


@case
def input_of_other_channels(p):
    """rgb.png|3 channels|Convert"""
    return p.predict(p.file("rgb.png", np.arange(192, dtype=np.uint8).reshape(8, 8, 3)))


@case
def input_of_16_bit_colours(p):
    """deep.png|3 channels|Convert"""
    return p.predict(p.file("deep.png", bytes(imagecodecs.png_encode(np.arange(192, dtype=np.uint16).reshape(8, 8, 3)))))


@case
def inputs_of_the_same_stem(p):
    """a/x.png|b/x.png|Rename"""
    return p.predict(p.file("a/x.png", GREY), p.file("b/x.png", GREY))


@case
def input_over_itself(p):
    """out|x.png|written over"""
    return p.predict(p.file("out/x.png", GREY))


@case
def text_that_is_called_png(p):
    """fake.png|PNG, JPEG or TIFF is required"""
    return p.predict(p.file("fake.png"))


@case
def empty_file(p):
    """empty.png|empty file"""
    return p.predict(p.file("empty.png", b""))


@case
def truncated_input(p):
    """cut.png|damaged or cut short"""
    data = (p.discs / "source" / "images" / "disc00.png").read_bytes()
    return p.predict(p.file("cut.png", data[:150]))


@case
def image_bomb(p):
    """bomb.png|10000000000 pixels|tiles"""
    return p.predict(p.file("bomb.png", bomb()))


@case
def nan_in_an_input(p):
    """nan.tif|nan"""
    tifffile.imwrite(p.tmp / "nan.tif", np.full((8, 8), np.nan, np.float32))
    return p.predict(p.tmp / "nan.tif")


@case
def transparent_input(p):
    """clear.png|transparen"""
    return p.predict(p.file("clear.png", np.zeros((8, 8, 4), np.uint8)))


@case
def predict_without_a_run(p):
    """nowhere|run.json is missing"""
    return p.predict(p.file("x.png", GREY), run=p.tmp / "nowhere")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # as in tests/test_checkpoint.py
@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_named_with_the_way_out(name, tmp_path, discs, trained, capsys):
    build, words = CASES[name]
    argv = build(Place(tmp_path, discs, trained))
    capsys.readouterr()
    raised = types.SimpleNamespace(code=None)
    with contextlib.suppress(SystemExit):
        try:
            raised.code = main(argv)
        except SystemExit as stop:  # of tyro
            raised.code = stop.code
            raise
    error = capsys.readouterr().err
    assert raised.code == 2, error
    assert "Traceback" not in error
    flat = re.sub(r"[│╭╮╰╯─\s-]*\n[│╭╮╰╯─\s]*", " ", error)
    assert [word for word in words if word not in flat] == [], flat
    lines = [line for line in error.splitlines() if line.startswith(f"jaxseg {argv[0]}: error: ")]
    assert len(lines) == 1 or (not lines and "--help" in flat)  # or tyro's, with the help to ask for
    assert len(flat) < 3000


def test_a_batch_that_does_not_divide_over_the_devices(tmp_path, discs):
    argv = ["train", str(discs / "tiny.py"), "--data-dir", str(discs / "data"), "--workdir", str(tmp_path / "run"), "--batch-size", "9"]
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-m", "jaxseg.cli", *argv], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--batch-size: got 9 for 4 devices" in done.stderr
    assert "8 or 12" in done.stderr


@pytest.mark.parametrize("words", [["models", "--help"], ["predict", "--help"], ["train", "--help"]], ids=" ".join)
def test_a_reader_that_stops_is_no_error(words):
    """As `| head` does."""
    command = [sys.executable, "-c", "import sys; from jaxseg.cli import main; sys.exit(main())", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert not process.stderr.read()
    assert process.returncode == 141  # as of a program that SIGPIPE ends
