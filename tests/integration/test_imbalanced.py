"""Imbalanced digits with right labels, by the command from rows to the report: none is harmful."""

import re
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import inrun
from inrun.cli import main
from inrun.uses import judge_notes, rank

LARGE, EPOCHS = 60, 8


@pytest.fixture(scope="module")
def command():
    """Runs `inrun` with arguments, in this process."""

    def run(*arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["inrun", *map(str, arguments)])
            with pytest.raises(SystemExit) as ended:
                main()
        assert ended.value.code == 0

    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory, command):
    """Three classes with 60 rows each and three with 15; ten validation rows of each class."""
    found, rng = load_digits(), np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("imbalanced")
    for k in range(6):
        own = rng.permutation(np.flatnonzero(found.target == k))
        size = LARGE if k < 3 else LARGE // 4
        for part, rows in (("train", own[10 : 10 + size]), ("validation", own[:10])):
            (folder / part / f"digit {k}").mkdir(parents=True)
            for i in rows.tolist():
                pixels = (found.images[i] * 15.9).astype(np.uint8)
                Image.fromarray(pixels).save(folder / part / f"digit {k}" / f"{i}.png")
    command(
        "train", "--model", "cnn", "--data", folder / "train", "--validation",
        folder / "validation", "--epochs", EPOCHS, "--batch", 25, "--learning-rate", 5e-3, "--out",
        folder / "run",
    )  # fmt: skip
    return inrun.load(folder / "run")


HURTS = re.compile("Which source or class hurts[?].*?(digit [0-9]|None is told to hurt)", re.S)


def hurting(run, command, judge):
    """What the page of a report names first below its question."""
    page = run.path.parent / f"{judge}.html"
    command("report", run.path, "--judge", judge, "--out", page)
    return HURTS.search(page.read_text())[1]


def test_the_command_weighs_by_training_shares_and_names_no_class(run, command):
    labels = run.samples()["label"].to_pylist()
    shares = {name: labels.count(name) / len(labels) for name in run.targets}
    assert run.weights == pytest.approx(shares)
    assert hurting(run, command, "training") == "None is told to hurt"
    assert hurting(run, command, "even") in ("digit 0", "digit 1", "digit 2")  # what it was for


def test_judged_by_training_shares_no_class_is_harmful(run):
    table = inrun.rollup(run, "label", judge="training").table.to_pylist()
    assert all(row["value"] > 0 for row in table)
    assert all(row["harmful"] < 0.5 for row in table)


def test_judged_evenly_large_classes_look_worse_and_it_is_said(run):
    even, training = (inrun.rollup(run, "label", judge=j).table for j in ("even", "training"))
    harmful = [
        np.mean(
            [
                row["harmful"]
                for row in t.to_pylist()
                if row["group"] in ("digit 0", "digit 1", "digit 2")
            ]
        )
        for t in (even, training)
    ]
    assert harmful[0] > harmful[1] + 0.1
    even = run.judged_by(dict.fromkeys(run.targets, 1.0))
    assert any("look harmful for that reason alone" in note for note in judge_notes(even))
    assert not any("look harmful for that reason alone" in note for note in judge_notes(run))


def test_no_sample_of_a_clean_class_is_surely_harmful_by_its_class(run):
    """Few are called so at all, and no class has many of them."""
    ranked = rank(run.visits(), run.targets, "normalised")
    label = np.array(run.samples()["label"].to_pylist())
    for k in range(6):
        assert (ranked.confidence[label == f"digit {k}"] >= 0.95).mean() < 0.2


def test_the_ranking_holds_at_least_as_far_as_is_said(run):
    found = inrun.agreement(run)
    assert found.visits == EPOCHS
    assert 0 < found.table["another_training"][0].as_py() < 1
    assert "With other validation rows: one half of them against the other half" in str(found)
    assert found.table["between_labels"][0].as_py() > 0.2
