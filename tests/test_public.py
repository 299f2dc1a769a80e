"""The names that jaxseg promises, and the README's example."""

import re
from pathlib import Path

import jaxseg

ROOT = Path(__file__).parent.parent


def test_every_public_name_can_be_had():
    for name in jaxseg.__all__:
        assert getattr(jaxseg, name) is not None
    assert set(jaxseg._HOMES) == set(jaxseg.__all__)
    assert not hasattr(jaxseg, "no_such_name")


def test_the_readme_example_runs_as_printed():
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["logits"].shape == (1, 200, 300, 3)
    assert names["logits"].dtype == "float32"
