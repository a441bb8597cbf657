"""The examples run as they stand there."""

import importlib
import re
import sys
import warnings
from pathlib import Path

import pytest

import inrun

FOLDER = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.stem for path in FOLDER.glob("with_*.py"))
STEPS = 6


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for name in [*NAMES, "digits", "counting"]:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_scores_every_step_and_closes_its_books(name, tmp_path, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("error", inrun.errors.InRunWarning)
        attribution = importlib.import_module(name).main(tmp_path, STEPS)
    ledger = attribution.ledger()
    assert ledger.num_rows >= STEPS
    assert attribution.covered == 1.0
    assert attribution.residual_share < 0.1
    assert re.search(r"\d+ of the 30 most harmful", capsys.readouterr().out)


def test_a_killed_example_goes_on(tmp_path):
    example = importlib.import_module("with_checkpoints")
    whole = example.main(tmp_path / "whole", 30)
    example.main(tmp_path / "parts", 25)  # its checkpoint is of step 20
    resumed = example.main(tmp_path / "parts", 30)
    assert resumed.values().equals(whole.values())
    assert resumed.ledger().equals(whole.ledger())


def test_every_example_is_on_the_page():
    page = (FOLDER.parent / "docs" / "stacks.md").read_text()
    assert [name for name in NAMES if f"examples/{name}.py" not in page] == []
