"""What trips a newcomer: each is one sentence and never a traceback, and the README's row works."""

import csv
import json
import os
import re
import shlex
import shutil
import sys
import warnings
from pathlib import Path

import pytest

import inrun
from inrun.cli import main
from inrun.training import TrainConfig, Training, _plan, plan_training, run_training
from tests.integration.train_data import jsonl, model_folder, table, texts

README = Path(__file__).parents[2] / "README.md"
SHORT = ("--from-scratch", "--batch", 8, "--epochs", 1)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A folder with tiny models, and data good and bad."""
    folder = tmp_path_factory.mktemp("newcomer")
    model_folder(folder / "bert", "bert")
    model_folder(folder / "gpt", "gpt2")
    text = table(folder / "train.csv", texts(48)).read_text()
    (folder / "utf16.csv").write_text(text, encoding="utf-16")
    (folder / "latin.csv").write_bytes(text.replace("wave", "wäve").encode("latin-1"))
    (folder / "a file").write_text("taken")
    return folder


@pytest.fixture
def said(shop, monkeypatch, capfd):
    """The command in this process: what it printed, which never is a traceback."""
    monkeypatch.chdir(shop)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def run(*arguments, code=0):
        monkeypatch.setattr(sys, "argv", ["inrun", *map(str, arguments)])
        with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
            warnings.simplefilter("default", inrun.errors.InRunWarning)
            main()
        printed = capfd.readouterr()
        assert ended.value.code == code, printed.out + printed.err
        assert "Traceback" not in printed.out + printed.err
        return " ".join((printed.out + printed.err).split())

    return run


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("bert", "utf16.csv"), "it begins as UTF-16 does. Convert it: iconv -f UTF-16 -t UTF-8"),
        (("bert", "latin.csv"), "it may be Latin-1. Convert it: iconv -f LATIN1 -t UTF-8"),
        (("bert", "train.csv", "--label-column", "stars"), "'stars'; it has text, label, who"),
        (("bert", "train.csv", "--source-column", "from"), "'from'; it has text, label, who"),
        (("bert", "train.csv", "--out", "a file"), "a file is a file"),
        (("bert", "train.csv", "--out", "a file/x"), "a file is a file"),
        (("bert", "train.csv", "--out", "/proc/x"), "cannot be made"),
        (("bert", "train.csv", "--device", "abacus"), "no such device here, it sees"),
        (("bert", "train.csv", "--max-length", 17), "more than the 16 tokens"),
        (("gpt", "train.csv", "--max-length", 17), "more than the 16 tokens"),
        (("./nowhere", "train.csv"), "there is no such folder"),
        (("bert", "train.csv", "--task", "causal-lm"), "is an encoder"),
        (("bert", "."), "holds no rows"),
    ],
)
def test_bad_input_is_one_sentence(said, shop, arguments, says):
    model, data, *more = arguments
    out = () if "--out" in more else ("--out", "never")
    text = said("train", "--model", model, "--data", data, *SHORT, *more, *out, code=2)
    assert says in text
    assert not (shop / "never" / "run.json").exists()


def test_a_file_that_is_no_run_is_not_called_torn(said):
    text = said("audit", "train.csv", code=2)
    assert "train.csv is a file that holds no results" in text


def test_the_task_that_was_seen_is_said(said):
    text = said("train", "--model", "bert", "--data", "train.csv", "--max-length", 99, code=2)
    assert "Task: text-classification, seen by the column 'label'" in text


def test_missing_labels_and_labels_that_are_likely_one_are_told(said, shop):
    rows = texts(48)
    for number, label in enumerate(("NaN", "None", "null")):
        rows[number]["label"] = label
    table(shop / "missing.csv", rows)
    text = said("train", "--model", "bert", "--data", "missing.csv", *SHORT, code=2)
    assert "3 of the rows cannot be used" in text
    for line in (2, 3, 4):
        assert f"line {line}: no 'label'" in text
    for row in rows[:24]:
        row["label"] = {"sea": "Sea ", "wood": "1"}.get(row["label"], "sea")
    table(shop / "alike.csv", rows)
    with pytest.warns(inrun.errors.InRunWarning) as told:
        Training(TrainConfig("text-classification", str(shop / "bert"), str(shop / "alike.csv"),
                             from_scratch=True, batch=8))  # fmt: skip
    assert any("'Sea' and 'sea' differ in case" in str(w.message) for w in told)
    assert any("numbers (1) and some are names" in str(w.message) for w in told)


# ---- the README's row


@pytest.fixture(scope="module")
def readme(tmp_path_factory):
    """A folder with what the README's block names."""
    from transformers import AutoModelForSequenceClassification

    folder = tmp_path_factory.mktemp("readme")
    model = model_folder(folder / "MODEL", "bert")
    AutoModelForSequenceClassification.from_config(
        __import__("transformers").AutoConfig.from_pretrained(model)
    ).save_pretrained(model)
    rows = [
        {"nr": f"{number:03d}", "review": row["text"] + "\n", "stars": row["label"],
         "shop": "a name that is long and ends in " + "xy"[number % 2]}
        for number, row in enumerate(texts(60))
    ]  # fmt: skip
    table(folder / "train.csv", rows)
    table(folder / "questions.csv", [{"review": "wave ship", "stars": "sea"}])
    return folder


@pytest.fixture(scope="module")
def trained(readme, tmp_path_factory):
    """Such a folder with a run in it; a test is not to need what another one left."""
    folder = tmp_path_factory.mktemp("trained") / "readme"
    shutil.copytree(readme, folder, ignore=shutil.ignore_patterns("inrun-run", "kept.csv"))
    columns = "--text-column review --label-column stars --source-column shop".split()
    command = ["inrun", "train", "--model", "MODEL", "--data", "train.csv", *columns]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", command)
        patch.setattr(warnings, "showwarning", warnings.showwarning)  # the command puts its own
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 0
    return folder


def test_every_command_of_the_readme_works_in_its_row(readme, said, monkeypatch):
    monkeypatch.chdir(readme)
    block = re.search(
        r"<!-- test: commands -->\n```console\n(.*?)```", README.read_text(), re.S
    ).group(1)
    whole_audit = inrun.Attribution.audit
    monkeypatch.setattr(
        inrun.Attribution, "audit",
        lambda self, **settings: whole_audit(self, **settings | {"seconds": 0.5}),
    )  # fmt: skip
    lines = [shlex.split(line[2:], comments=True) for line in block.splitlines()]
    assert lines[0][:2] == ["pip", "install"]
    printed = {line[1]: said(*line[1:]) for line in lines[1:]}
    assert set(printed) == {
        "train", "report", "prune", "rollup", "explain", "trace", "audit", "validate",
    }  # fmt: skip
    assert "Task: text-classification, seen by the column 'stars'" in printed["train"]
    assert (readme / "inrun-run" / "report.html").stat().st_size > 100_000
    for name in "xy":
        assert f"a name that is long and ends in {name}" in printed["rollup"]
    assert "Ranked by value (look-ahead)" in printed["trace"]
    assert "Pearson R with exact Shapley values" in printed["audit"]
    assert "surely harmful" in printed["prune"]  # a column
    assert re.search(r"harms most label rather text", printed["prune"])
    whole, kept = ((readme / name).read_bytes() for name in ("train.csv", "kept.csv"))
    assert kept.startswith(b"nr,review,stars,shop\r\n")
    before, left = (list(csv.DictReader(t.decode().splitlines(True))) for t in (whole, kept))
    dropped = [row for row in before if row not in left]
    assert 0 < len(dropped) == len(before) - len(left) <= 3
    without = whole
    for row in dropped:
        line = f'{row["nr"]},"{row["review"]}",{row["stars"]},{row["shop"]}\r\n'.encode()
        assert without.count(line) == 1
        without = without.replace(line, b"")
    assert without == kept


def test_on_a_narrow_terminal_groups_keep_what_tells_them_apart(trained, said, monkeypatch):
    monkeypatch.chdir(trained)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    text = said("rollup", "inrun-run")
    assert len(set(re.findall(r"ends in [xy]|s in [xy]|in [xy]", text))) == 2


def test_prune_never_drops_a_sample_that_helped(trained):
    run = inrun.load(trained / "inrun-run")
    most = inrun.prune(run, 0.9, balanced=None)
    harmful = sum(value < 0 for value in run.values()["value"].to_pylist())
    assert len(most.dropped) == harmful < most.asked
    assert f"{most.asked} were asked for" in most.sentences()[0]
    with pytest.raises(inrun.errors.MisuseError, match="'doubt' is not one of gradient, harm"):
        inrun.prune(run, 3, by="doubt")
    doubted = inrun.prune(run, 3, by="label_doubt")
    samples = run.samples().sort_by("doubt_rank")
    assert doubted.dropped == samples["sample_id"].to_pylist()[:3]


def test_a_file_that_is_not_the_one_trained_on_is_not_cut(trained, said, monkeypatch):
    monkeypatch.chdir(trained)
    whole = (trained / "train.csv").read_text()
    try:
        (trained / "train.csv").write_text("\n".join(whole.splitlines()[:3]) + "\n")
        text = said("prune", "inrun-run", "--by", "label_doubt", "--out", "cut.csv", code=2)
    finally:
        (trained / "train.csv").write_text(whole, newline="")
    assert "not what the run was trained on" in text
    assert not list(trained.glob("cut.csv*"))


def test_lines_come_while_it_trains_and_a_plan_ends_in_time(shop, tmp_path, monkeypatch, capsys):
    from inrun.cli._terminal import heard, terminal

    monkeypatch.setattr(_plan, "LONGEST", 0.0)
    config = TrainConfig(
        "text-classification", str(shop / "bert"), str(shop / "train.csv"), from_scratch=True,
        batch=8, trainer={"logging_strategy": "no"},
    )  # fmt: skip
    training, told, console = Training(config), [], terminal()
    with heard(console, "loading", 1e-3) as at:
        run_training(training, tmp_path / "run", console, at=at)
    said = capsys.readouterr().out
    phases = [r"loading \(", r"attaching.* \(", "step 1 of 15, the first, is the longest",
              r"step 1 of 15: validation loss .* left \(", r"step \d+ of 15: ",
              "writing the model"]  # fmt: skip
    places = [re.search(f"^{phase}", said, re.M) for phase in phases]
    assert all(places), said
    assert [p.start() for p in places[:4]] == sorted(p.start() for p in places[:4])
    planned = plan_training(training, told.append)
    assert planned.steps == 15
    assert told[0].startswith("Training 8 steps plainly")
    assert told[1].startswith("A plain step takes")


def test_a_text_is_one_line(shop, said):
    rows = [row | {"text": row["text"] + "\nnext line"} for row in texts(48)]
    jsonl(shop / "lines.jsonl", rows)
    said("train", "--model", "bert", "--data", "lines.jsonl", *SHORT, "--out", "lines")
    os.environ["COLUMNS"] = "200"
    text = said("trace", "lines", "--target", "sea")
    assert "Ranked by how far a sample's visits stand out" in text
    assert "stands out +" in text
    kept = said("prune", "lines", "--drop", "5%", "--out", "kept.jsonl")
    assert "samples kept" in kept
    lines = set((shop / "lines.jsonl").read_text().splitlines())
    assert {json.dumps(json.loads(line)) for line in (shop / "kept.jsonl").open()} < lines
