"""The report of a run names what was trained, whatever the model."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxseg.config import load_get_config
from jaxseg.model_json import model_to_json
from jaxseg.models import MODELS
from jaxseg.report_run import _facts

CONFIG = load_get_config(Path(__file__).parent.parent / "configs" / "cells_models.py")


@pytest.mark.parametrize("name", MODELS)
def test_facts_of_every_model(name):
    model = CONFIG(model=name).model(num_classes=2)
    description = {"model": model_to_json(model), "steps": 1, "jaxseg": "0", "jax": "0", "command": "jaxseg train"}
    dataset = SimpleNamespace(info=SimpleNamespace(name="cells"), splits={"test": 1})
    run = SimpleNamespace(model=model, description=description, variables={"params": {}}, step=1)
    facts = _facts(run, dataset, "test", [])  # type: ignore[arg-type]
    assert facts["model"].startswith(type(model).__name__)
    assert isinstance(facts.get("upsampler", ""), str)
