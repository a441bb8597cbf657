"""Decisions over runs of `inrun train`: they need no code of the user's."""

import csv
import json
import sys

import pytest

import inrun
from inrun.cli import main
from tests.integration.train_data import jsonl, model_folder, texts

ROWS = 60


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    model_folder(folder / "bert", "bert")
    model_folder(folder / "gpt", "gpt2")
    jsonl(folder / "train.jsonl", texts(ROWS))
    return folder


@pytest.fixture
def command(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments, codes=(0,)):
        monkeypatch.setattr(sys, "argv", ["inrun", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert ended.value.code in codes, printed.out + printed.err
        return printed.out + " ".join(printed.err.split())

    return run


@pytest.fixture
def classified(place, command):
    if not (place / "texts").exists():
        command(
            "train", "--model", "bert", "--from-scratch", "--data", "train.jsonl",
            "--source-column", "who", "--batch", 8, "--epochs", 2, "--out", "texts",
        )  # fmt: skip
    return place / "texts"


def test_report_and_rollup_know_the_rows(classified, command):
    command("report", "texts")
    page = (classified / "report.html").read_text()
    assert "Labels to check" in page
    command("rollup", "texts", "--by", "source", "--out", "by.csv")
    with open(classified.parent / "by.csv") as file:
        assert {row["group"] for row in csv.DictReader(file)} == {f"author {k}" for k in range(3)}


def test_prune_check_trains_as_the_run_did_and_says_how_far_it_is(classified, command, monkeypatch):
    monkeypatch.setattr("inrun.cli._terminal.SILENCE", 0.05)
    said = command("prune", "texts", "--drop", "20%", "--check", "--seeds", 2, codes=(0, 3))
    assert "training again: 0 of 6 done (" in said
    assert "random control" in said
    assert ("Supported" in said) != ("Not supported" in said)


def test_trace_needs_the_query_and_the_recording_alone(place, command):
    command("train", "--model", "gpt", "--from-scratch", "--data", "train.jsonl", "--task",
            "causal-lm", "--batch", 8, "--epochs", 2, "--record", "--out", "words")  # fmt: skip
    run = inrun.load(place / "words")
    source = run.samples().to_pylist()[5]
    (place / "query.txt").write_text(source["text"])
    said = command("trace", "words", "--query", "query.txt", "--top", 3, "--out", "sources.csv",
                   "--page", "sources.html")  # fmt: skip
    assert "Ranked by value (look-ahead)" in said
    with open(place / "sources.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == run.values().num_rows
    page = (place / "sources.html").read_text()
    assert page.count('class="token"') > 3 * 2


def test_a_query_for_a_classifier_needs_its_label(place, classified, command):
    (place / "query.jsonl").write_text(json.dumps({"text": "wave ship"}) + "\n")
    said = command("trace", "texts", "--query", "query.jsonl", codes=(2,))
    assert "no trajectory" in said or "not a recorded run" in said


def test_explain_trains_a_recorded_step_again(place, command, monkeypatch):
    command("train", "--model", "bert", "--from-scratch", "--data", "train.jsonl", "--batch", 8,
            "--epochs", 1, "--record", "--out", "recorded")  # fmt: skip
    monkeypatch.setattr("inrun.uses._explain.STANDS_OUT", 0.0)  # somebody does
    said = command("explain", "recorded", "--step", 4, "--check")
    assert "In step 4 the validation loss" in said
    assert "without the rows named by" in said
    assert "learning rate" in said
