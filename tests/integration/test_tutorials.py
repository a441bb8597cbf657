"""The tutorials run as they stand there, and come to what they tell."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "tutorials"
pytest.importorskip("matplotlib", reason="the tutorials draw with matplotlib")


def said(name, folder):
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py")],
        cwd=folder, capture_output=True, text=True, check=False,
        env=os.environ | {"MPLBACKEND": "agg"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


def number(text, before):
    return float(re.search(rf"{before}\s+(-?[\d.]+)", text).group(1))


def test_wrong_labels_are_found_and_mending_them_helps(tmp_path):
    text = said("find_wrong_labels", tmp_path)
    assert number(text, "AUC of the doubts") > 0.98
    assert number(text, r"\d+ most doubtful mended") > number(text, "as it came") + 1


def test_the_sentence_is_forgotten_without_its_sources(tmp_path):
    text = said("trace_a_sentence", tmp_path)
    on_all = number(text, "trained on all")
    best, random = (
        number(text, f"without {w}") for w in ("the six best sources", "six random ones")
    )
    assert best > random >= 0.8 * on_all
    assert re.search(r"^1\. score +[\d.]+  try: ", text, re.MULTILINE)


def test_a_false_fact_is_gone_without_the_rows_that_taught_it(tmp_path):
    pytest.importorskip("trl", reason="the tutorial tunes with TRL")
    text = said("what_taught_it", tmp_path)
    assert number(text, "recall@12: by value") > 0.9
    assert number(text, "recall@12: by value [0-9.]+, by words") < 0.9
    assert number(text, "trained on all rows:") >= 3
    assert number(text, "without the twelve first:") == 0
    assert number(text, "without twelve random:") >= 3


def test_the_chosen_are_better_than_random_ones(tmp_path):
    text = said("choose_while_training", tmp_path)
    assert number(text, "by value +accuracy") > number(text, "at random +accuracy") + 2
    assert number(text, r"by value +accuracy [\d.]+%,") < 20


def test_every_tutorial_is_run():
    tested = re.findall(r'said\("(\w+)", tmp_path\)', Path(__file__).read_text())
    assert {path.stem for path in FOLDER.glob("*.py")} == set(tested)
