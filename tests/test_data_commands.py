"""`jaxseg data`: what it prints, what it returns."""

import re

import numpy as np
import pytest
from PIL import Image

from jaxseg.data import DATASETS, commands
from jaxseg.data.catalogue import CATALOGUE
from jaxseg.data.images import read_image
from jaxseg.errors import InputError


@pytest.fixture
def source(tmp_path):
    """A good folder of six samples."""
    for kind in ("images", "labels"):
        (tmp_path / "source" / kind).mkdir(parents=True)
    for number in range(6):
        image = np.random.default_rng(number).integers(0, 256, (16, 20, 3), np.uint8)
        Image.fromarray(image).save(tmp_path / "source" / "images" / f"s{number}.png")
        Image.fromarray(np.resize(np.array([0, 1, 2, 255], np.uint8), (16, 20))).save(tmp_path / "source" / "labels" / f"s{number}.png")
    return tmp_path / "source"


def test_list_names_every_set(capsys):
    assert commands.main(["list"]) == 0
    text = capsys.readouterr().out
    for name in [*DATASETS, *CATALOGUE]:
        assert name in text
    assert "--source FOLDER" in text
    assert "TensorFlow" in text


@pytest.mark.parametrize("command", [[], ["list"], ["prepare"], ["check"], ["show"]])
def test_help_teaches_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        commands.main([*command, "--help"])
    assert stop.value.code == 0
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "For example" in text
    assert f"jaxseg data {command[0] if command else 'prepare'}" in text


def test_prepare_check_and_show_a_folder(source, tmp_path, capsys):
    data = str(tmp_path / "data")
    assert commands.main(["prepare", "folder", "--source", str(source), "--data-dir", data]) == 0
    text = capsys.readouterr().out
    assert str(tmp_path / "data" / "folder") in text
    assert "3 classes, 3 channels: train 4, val 1, test 1" in text
    for line in re.findall(r"jaxseg data (.*)", text):  # the next commands that it names are right as they stand
        words = line.split()
        assert commands.main([str(tmp_path / word) if word == "folder.png" else word for word in words]) == 0
    assert read_image(tmp_path / "folder.png").shape[1] > 700
    assert "0 faults, 0 warnings" in capsys.readouterr().out


def test_images_in_no_split_file_are_counted(source, tmp_path, capsys):
    (source / "train.txt").write_text("s0\ns1\ns2\n")
    (source / "val.txt").write_text("s4\n")
    assert commands.main(["check", "folder", "--source", str(source)]) == 0
    assert commands.main(["prepare", "folder", "--source", str(source), "--data-dir", str(tmp_path / "data")]) == 0
    assert capsys.readouterr().out.count("2 images are in no split file") == 2


def test_damaged_prepared_set_gives_exit_code_2(source, tmp_path, capsys):
    data = str(tmp_path / "data")
    commands.main(["prepare", "folder", "--source", str(source), "--data-dir", data])
    next((tmp_path / "data").rglob("*val.array_record*")).unlink()
    assert commands.main(["check", "folder", "--data-dir", data]) == 2
    assert "folder/val: record 0 is damaged or missing" in capsys.readouterr().out


def test_faults_give_exit_code_2_and_are_listed(source, capsys):
    for number in (1, 3):
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(source / "images" / f"s{number}.png")
    assert commands.main(["check", "folder", "--source", str(source)]) == 2
    text = capsys.readouterr().out
    assert "s1.png is 9 x 9" in text
    assert "s3.png is 9 x 9" in text
    assert "2 faults" in text


def test_truncated_image_is_a_fault_of_check(source, capsys):
    path = source / "images" / "s1.png"
    path.write_bytes(path.read_bytes()[:200])
    assert commands.main(["check", "folder", "--source", str(source)]) == 2
    assert "s1.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["check", "camvd", "--data-dir", "D"], ("'camvd'", "did you mean camvid?")),
        (["prepare", "xyz", "--data-dir", "D"], ("'xyz'", "cells", "jaxseg data list")),
        (["prepare", "cells", "--data-dir", "D", "--seed", "-1"], ("seed=-1", "0 <= seed < 2**63", "--seed")),
        (["check", "folder", "--source", "S", "--seed", str(2**63)], (f"seed={2**63}", "--seed")),
        (["check", "camvid"], ("neither of --data-dir and --source",)),
        (["check", "camvid", "--data-dir", "D", "--source", "S"], ("both of --data-dir and --source",)),
        (["prepare", "folder", "--data-dir", "D"], ("--source FOLDER",)),
        (["prepare", "cells", "--data-dir", "D", "--source", "S"], ("leave --source out",)),
        (["check", "cells", "--data-dir", "D"], ("not prepared", "jaxseg data prepare cells")),
        (["prepare", "cityscapes", "--data-dir", "D"], ("not prepared", "pip install tensorflow", "gtFine_trainvaltest.zip")),
        (["prepare", "cityscapes", "--data-dir", "D", "--source", "S"], ("leave --source out", "pip install tensorflow")),
        (["show", "cityscapes", "--source", "S", "--out", "a.png"], ("pass --data-dir",)),
        (["prepare", "folder", "--source", "S", "--data-dir", "D"], ("no folder", "--source")),
    ],
)
def test_input_errors_pass_through_with_the_remedy(argv, parts, tmp_path):
    argv = [str(tmp_path / word) if word in ("D", "S") else word for word in argv]
    with pytest.raises(InputError) as error:
        commands.main(argv)
    assert all(part in str(error.value) for part in parts)
    assert not list(tmp_path.iterdir())


def test_wrong_options_end_with_code_2(capsys):
    with pytest.raises(SystemExit) as stop:
        commands.main(["show", "cells"])
    assert stop.value.code == 2
    assert "--out" in capsys.readouterr().err
