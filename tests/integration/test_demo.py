"""`inrun demo` of the wheel, with its extra only, in a fresh folder: prints and report."""

import json
import re
import sys
import warnings
from html.parser import HTMLParser

import pytest

import inrun
from inrun.cli import main
from inrun.report import Page, Section, Table, charts
from tests.integration.fresh import Fresh

BRIEFLY = """
from inrun.demo import _experiment
_experiment.AUDIT_SECONDS = 4  # of 15: as many checks as that allows
from inrun.cli import main
main()
"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    done = Fresh(folder, "demo").run("python", "-c", BRIEFLY, "demo", "--seeds", "2", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "inrun-demo", done.stdout


def test_the_summary_says_what_was_found(demo):
    _, said = demo
    found = float(re.search(r"AUC (\d\.\d+)", said).group(1))
    assert 0.9 < found <= 1
    assert said.index("Labels to fix") < said.index("AUC")  # what is wanted before what proves it
    agreement = re.search(r"exact Shapley values (\d\.\d{4})", said)
    assert 0.99 < float(agreement.group(1)) <= 1
    assert "mean training loss" in said
    assert "without random ones (control)" in said


def test_the_run_is_stored_and_its_books_close(demo):
    folder, _ = demo
    run = inrun.load(folder / "run")
    assert run.values().num_rows == 1000
    ledger = run.ledger()
    unexplained = sum(abs(r) for r in ledger["residual"].to_pylist())
    entries = sum(abs(s) for s in ledger["samples"].to_pylist())
    assert unexplained < 0.02 * entries
    assert set(run.coverage()["status"].to_pylist()) == {"captured"}


class Reader(HTMLParser):
    """Collects what a page would load and how its text reads."""

    def __init__(self):
        super().__init__()
        self.sources, self.headings, self.open, self.json = [], [], None, None

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.open = tag if tag in {"h2"} else None
        self.sources += [attributes[k] for k in ("src", "href") if k in attributes]
        if attributes.get("type") == "application/json":
            self.open = "json"

    def handle_data(self, data):
        if self.open == "h2":
            self.headings.append(data)
        elif self.open == "json":
            self.json = data
        self.open = None


def test_the_report_is_one_small_file_that_loads_nothing(demo):
    folder, _ = demo
    text = (folder / "report.html").read_text()
    assert len(text) < 6e6
    reader = Reader()
    reader.feed(text)
    assert all(source.startswith(("data:", "#")) for source in reader.sources)
    assert "default-src 'none'" in text
    assert "was not audited" not in text
    specs = json.loads(reader.json)
    assert len(specs["fixed"]) == text.count('data-chart="') == 4
    assert set(specs["live"]) == {
        "books", "steps", "distribution", "groups", "harm", "map", "worth",
    }  # fmt: skip
    assert {
        "The books",
        "Agreement with exact Shapley values",
        "What pruning gains",
        "The validation rows",
    } <= set(reader.headings)
    run = inrun.load(folder / "run")
    assert run.samples().num_rows == 1000
    assert run.samples("validation").num_rows == 300
    assert run.audit().num_rows >= 1  # as many as a busy machine has time for


@pytest.fixture
def command(capsys, monkeypatch):
    """The command in this process, which has imported it: (exit code, output, errors)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["inrun", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # the command puts its own
    return run


def test_a_second_demo_into_the_same_folder_is_one_clear_line(demo, command):
    folder, _ = demo
    code, _, errors = command("demo", "--out", str(folder))
    assert code == 2
    assert "holds a demo already" in errors
    assert "Traceback" not in errors


def test_the_command_explains_itself(command):
    assert "demo" in command()[1]
    code, version, _ = command("--version")
    assert code == 0
    assert version.strip() == inrun.__version__


def test_text_from_the_data_stays_text(tmp_path):
    hostile = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    chart = charts.bars([(hostile, 0.7)], hostile, (0.0, 1.0))
    section = Section(hostile, [hostile], [chart], tables=[Table([hostile], [[hostile]])])
    Page(hostile, hostile, [], [section], hostile).write(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert hostile not in text
    assert "<img src=x" not in text
    assert "alert(1)</script>" not in text
