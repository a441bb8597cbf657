"""report, prune, rollup and trace from a shell, in a fresh folder, after a user's own training."""

import csv
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import inrun
from inrun.cli import main
from tests.integration import own_loop

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A fresh folder with the user's script, after it has run."""
    place = tmp_path_factory.mktemp("own")
    shutil.copy(HERE / "own_loop.py", place / "mine.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        runpy.run_path("mine.py", run_name="__main__")
    return place


def shell(folder, *arguments):
    """The installed command, as its user runs it."""
    command = [str(Path(sys.executable).with_name("inrun")), *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "120", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def command(folder, monkeypatch, capsys):
    """The same in this process, which spares the imports: (exit code, what it said)."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["inrun", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return ended.value.code, printed.out + re.sub(r"\s+", " ", printed.err)

    return run


@pytest.fixture
def said(command):
    def run(*arguments):
        code, text = command(*arguments)
        assert code == 0, text
        return text

    return run


@pytest.fixture
def refused(command):
    def run(*arguments):
        code, text = command(*arguments)
        assert code == 2, text
        return text

    return run


def test_report_is_one_file_beside_the_run(folder, said, refused):
    assert "report.html" in shell(folder, "report", "run")
    text = (folder / "run" / "report.html").read_text()
    assert "How far did the loss fall, and through what?" in text
    assert "default-src 'none'" in text
    said("report", "run", "--out", "elsewhere.html")
    assert (folder / "elsewhere.html").exists()


def test_report_takes_samples_from_a_file(folder, said, refused):
    with open(folder / "rows.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["nr", "sentence"])
        writer.writerows([i, own_loop.DATA[i][0]] for i in own_loop.TRAINING)
    said("report", "run", "--samples", "rows.csv", "--id-column", "nr",
         "--text-column", "sentence", "--out", "told.html")  # fmt: skip
    assert "--id-column" in refused("report", "run", "--samples", "rows.csv")
    assert "is not a run" in refused("report", ".")


def test_explain_names_a_step_its_books_and_its_rows(folder, said, refused):
    text = said("explain", "run", "--worst", "2", "--out", "unused.csv")
    assert text.count("It began in step") == 2
    assert not (folder / "unused.csv").exists()
    said("explain", "run", "--from", "2", "--to", "4", "--out", "visits.csv")
    with open(folder / "visits.csv") as file:
        rows = list(csv.DictReader(file))
    visits = inrun.load(folder / "run").visits().to_pylist()
    assert len(rows) == sum(visit["step"] <= 4 for visit in visits)
    assert {"put_on", "deviations", "source"} <= set(rows[0])
    assert "scored steps, from 1" in refused("explain", "run", "--step", "99999")
    assert "--worst looks" in refused("explain", "run", "--worst", "1", "--step", "3")
    assert "how to train again" in refused("explain", "run", "--check")


def test_diff_lays_two_runs_side_by_side(folder, said, refused):
    shutil.copytree(folder / "run", folder / "again")
    text = said("diff", "run", "again", "--out", "moved.csv", "--page", "diff.html")
    assert "0 in run alone, 0 in again" in text
    assert "rank correlation of +1.00" in text
    with open(folder / "moved.csv") as file:
        assert len(list(csv.DictReader(file))) == inrun.load(folder / "run").values().num_rows
    page = (folder / "diff.html").read_text()
    assert "What changed from run to again" in page
    assert "default-src 'none'" in page
    assert "is not a run" in refused("diff", "run", ".")


def test_rollup_adds_up_to_the_books(folder, said, refused):
    text = said("rollup", "run", "--out", "by.csv", "--page", "by.html")
    assert "momentum" in text
    assert "delivered by more than one group" in text
    with open(folder / "by.csv") as file:
        rows = list(csv.DictReader(file))
    samples = sum(inrun.load(folder / "run").ledger()["samples"].to_pylist())
    assert sum(float(row["value"]) for row in rows) == pytest.approx(samples)
    assert {row["group"] for row in rows} == set(own_loop.SOURCES)
    page = (folder / "by.html").read_text()
    assert all(source in page for source in own_loop.SOURCES)
    said("rollup", "run", "--page", "one.html", "--only", "wine")
    page = (folder / "one.html").read_text()
    assert "wine" in page
    assert "diabetes" not in page
    assert "No source is called" in refused("rollup", "run", "--page", "x.html", "--only", "x")
    assert "no column 'domain'" in refused("rollup", "run", "--by", "domain")


def test_prune_writes_what_is_kept_and_says_that_it_is_unchecked(folder, said, refused):
    text = said("prune", "run", "--drop", "10%", "--out", "kept.jsonl")
    assert "this is a list, not a suggestion" in text
    kept = [json.loads(line) for line in (folder / "kept.jsonl").read_text().splitlines()]
    n = len(own_loop.TRAINING)
    dropped = inrun.prune(inrun.load(folder / "run"), 0.1).dropped
    assert len(kept) == n - round(0.1 * n)
    assert {row["sample_id"] for row in kept} == set(own_loop.TRAINING) - set(dropped)
    assert "is there already" in refused("prune", "run", "--out", "kept.jsonl")
    for form in ("txt", "csv", "parquet"):
        said("prune", "run", "--drop", "5", "--by", "total", "--out", f"kept.{form}")
    assert len((folder / "kept.txt").read_text().split()) == n - 5
    assert pq.read_table(folder / "kept.parquet").num_rows == n - 5
    assert "would leave out" in refused("prune", "run", "--drop", "100%")
    assert "neither a share" in refused("prune", "run", "--drop", "some")
    (folder / "ids.txt").write_text("41\n\n7\n")
    assert "2 of " in said("prune", "run", "--drop", "ids.txt")
    (folder / "ids.txt").write_text("5")
    assert "such as 5" in refused("prune", "run", "--drop", "ids.txt")


def test_prune_copies_a_users_lines_as_they_stand(folder, said, refused):
    lines = [f'{{"nr": {i},  "more": [1, {{"x": null}}]}}' for i in own_loop.TRAINING]
    (folder / "own.jsonl").write_text("\n".join(lines) + "\n")
    said("prune", "run", "--drop", "3", "--samples", "own.jsonl", "--id-column", "nr",
         "--out", "own-kept.jsonl")  # fmt: skip
    kept = (folder / "own-kept.jsonl").read_text().splitlines()
    assert len(kept) == len(lines) - 3
    assert set(kept) < set(lines)


def test_prune_check_trains_again_and_writes_nothing_that_it_did_not_support(
    folder, command, refused
):
    arguments = ("prune", "run", "--drop", "20%", "--check", "--seeds", "2", "--entry")
    code, text = command(*arguments, "mine:retrain", "--out", "checked.txt")
    assert code in (0, 3), text
    supported = "Not supported" not in text
    assert (code == 0) == supported == (folder / "checked.txt").exists()
    assert "random control" in text
    again, text = command(*arguments, "mine:retrain", "--out", "checked2.txt")
    assert "Going on from the results" in text
    assert again == code
    assert "Pass --entry" in refused("prune", "run", "--check")
    assert "has no function" in refused(*arguments, "mine:nothing")
    assert "neither installed nor in" in refused(*arguments, "nowhere:f")
    assert "module:function" in refused(*arguments, "mine")


def query_of(folder, name, text):
    (folder / name).write_text(text)
    return name


def test_trace_finds_the_sentence_that_a_query_repeats(folder, said, refused):
    """An exact query: the training sentence itself, by all samples' effects at the end."""
    source = own_loop.TRAINING[40]
    name = query_of(folder, "query.txt", own_loop.DATA[source][0])
    text = said("trace", "run", "--query", name, "--entry", "mine:again", "--top", "3",
                "--out", "ranking.csv", "--page", "trace.html")  # fmt: skip
    assert f"1. {source} " in text
    with open(folder / "ranking.csv") as file:
        ranking = list(csv.DictReader(file))
    assert len(ranking) == len(own_loop.TRAINING)
    assert int(ranking[0]["sample_id"]) == source
    page = (folder / "trace.html").read_text()
    assert all(f">{word} </span>" in page for word in own_loop.DATA[source][0].split())
    by_states = said("trace", "run", "--query", name, "--entry", "mine:again",
                     "--method", "tracin")  # fmt: skip
    assert f" {source} " in by_states


def test_trace_takes_several_queries_and_named_targets(folder, said, refused):
    rows = [{"query": s, "text": own_loop.DATA[i][0]} for i, s in ((1, "first"), (7, "second"))]
    query_of(folder, "queries.jsonl", "\n".join(map(json.dumps, rows)))
    text = said("trace", "run", "--query", "queries.jsonl", "--entry", "mine:again")
    assert text.index("first") < text.index("second")
    assert "1. " in said("trace", "run", "--target", "wine")
    assert "no target 'cheese'" in refused("trace", "run", "--target", "cheese")
    assert "Say what to trace" in refused("trace", "run")
    assert "Pass --entry" in refused("trace", "run", "--query", "queries.jsonl")
    assert "not an inrun.Replayable" in refused(
        "trace", "run", "--query", "queries.jsonl", "--entry", "mine:sentences"
    )


def test_validate_trains_without_halves_and_compares(folder, said, refused):
    rows = [{"query": s, "text": own_loop.DATA[i][0]} for i, s in ((1, "first"), (7, "second"))]
    query_of(folder, "halves.jsonl", "\n".join(map(json.dumps, rows)))
    arguments = ("validate", "run", "--query", "halves.jsonl", "--entry", "mine:again",
                 "--subsets", 10, "--store", "trainings")  # fmt: skip
    names = ("look-ahead", "gradient dot", "BM25", "length", "random")
    arguments += tuple(part for name in names for part in ("--method", name))

    def answer(text):
        return text[: text.index("Above all")]  # what follows went to stderr

    first = answer(said(*arguments))
    assert "score over 10 trainings without" in first
    assert "could score above" in first
    rows = {re.split(r"\s{2,}", line.strip())[0]: line for line in first.splitlines()}
    assert set(names) <= rows.keys()
    kept = {file.name: file.read_bytes() for file in (folder / "trainings").iterdir()}
    assert kept.keys() == {"halves.jsonl", "removals.jsonl"}
    assert answer(said(*arguments)) == first  # of what is kept
    assert kept == {file.name: file.read_bytes() for file in (folder / "trainings").iterdir()}
    assert "another retraining" in refused(*arguments, "--seed", 1)
    assert "'same class' is unknown here" in refused(*arguments, "--method", "same class")
    assert "Pass --entry" in refused("validate", "run", "--query", "halves.jsonl")


def test_text_from_the_data_sends_nothing_to_the_terminal(folder, said):
    hostile = "\x1b]0;owned\x07 [bold]x[/bold] \x1b[31m"
    rows = [{"sample_id": i, "text": hostile, "source": hostile} for i in own_loop.TRAINING]
    (folder / "hostile.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for arguments in (("rollup", "run"), ("trace", "run", "--target", "wine")):
        text = said(*arguments, "--samples", "hostile.jsonl")
        assert "\x1b]0" not in text
        assert "\x07" not in text
        assert "[bold]x[/bold]" in re.sub(r"\s+", " ", text) or "rollup" in arguments
