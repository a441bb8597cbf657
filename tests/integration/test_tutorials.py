"""The tutorials run as they stand there, and come to what they tell."""

import re
import runpy
import sys
from pathlib import Path

import pytest

UNSEEN = DeprecationWarning, PendingDeprecationWarning, ResourceWarning, ImportWarning  # by default
FOLDER = Path(__file__).parents[2] / "examples" / "tutorials"
pyplot = pytest.importorskip("matplotlib.pyplot", reason="the tutorials draw with matplotlib")


@pytest.fixture
def said(tmp_path, monkeypatch, capsys, recwarn):
    """What a tutorial prints; it runs in this process, which has the imports, in a fresh folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tutorial"])
    pyplot.switch_backend("agg")

    def run(name):
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
        pyplot.close("all")
        printed = capsys.readouterr()
        assert "Warning" not in printed.err
        assert [str(w.message) for w in recwarn if not issubclass(w.category, UNSEEN)] == []
        return printed.out

    return run


def number(text, before):
    return float(re.search(rf"{before}\s+(-?[\d.]+)", text).group(1))


def test_wrong_labels_are_found_and_mending_them_helps(said):
    text = said("find_wrong_labels")
    assert number(text, "AUC of the doubts") > 0.98
    assert number(text, r"\d+ most doubtful mended") > number(text, "as it came") + 1


def test_the_sentence_is_forgotten_without_its_sources(said):
    text = said("trace_a_sentence")
    on_all = number(text, "trained on all")
    best, random = (
        number(text, f"without {w}") for w in ("the six best sources", "six random ones")
    )
    assert best > random >= 0.8 * on_all
    assert re.search(r"^1\. score +[\d.]+  try: ", text, re.MULTILINE)


def test_a_false_fact_is_gone_without_the_rows_that_taught_it(said):
    pytest.importorskip("trl", reason="the tutorial tunes with TRL")
    text = said("what_taught_it")
    assert number(text, "recall@12: by value") > 0.9
    assert number(text, "recall@12: by value [0-9.]+, by words") < 0.9
    assert number(text, "trained on all rows:") >= 3
    assert number(text, "without the twelve first:") == 0
    assert number(text, "without twelve random:") >= 3


def test_the_chosen_are_better_than_random_ones(said):
    text = said("choose_while_training")
    assert number(text, "by value +accuracy") > number(text, "at random +accuracy") + 2
    assert number(text, r"by value +accuracy [\d.]+%,") < 20


def test_every_tutorial_is_run():
    tested = re.findall(r'said\("(\w+)"\)', Path(__file__).read_text())
    assert {path.stem for path in FOLDER.glob("*.py")} == set(tested)
