"""The table of scores."""

import numpy as np

from jaxseg.evaluate import print_scores
from jaxseg.metrics import scores


def test_class_names_are_not_markup(capsys):
    names = ["[/x] ground", "[bold]cell"]
    matrix = np.array([[3, 1], [0, 4]])
    print_scores("runs/[red]a", scores(matrix, names), matrix, {"Otsu": 0.25})
    shown = capsys.readouterr().out
    assert all(text in shown for text in [*names, "runs/[red]a", "0.7500", "0.2500"])


def test_an_absent_class_is_called_absent(capsys):
    matrix = np.array([[3, 0], [0, 0]])
    print_scores("title", scores(matrix, ["a", "b"]), matrix, {})
    assert "absent" in capsys.readouterr().out
