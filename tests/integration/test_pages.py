"""The pages' code runs as it stands there, links lead somewhere, and nothing public is left out."""

import csv
import os
import re
from pathlib import Path

import pytest

import inrun
import inrun.owners
from tests.test_layering import ROWS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
MADE = {"tutorials/index"}  # by the build
READ_IN_ORDER = ("index", "value", "books", "trust", "uses/prune", "uses/rollup", "uses/explain",
                 "uses/behaviour", "uses/diff",
                 "uses/lookahead", "uses/select", "extending", "samples")  # fmt: skip


def written():
    """Pages by name, without what a build leaves."""
    names = (path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md"))
    return {n for n in names if not n.startswith(("_build", "tutorials"))}


def blocks(path):
    return re.findall(r"<!-- test: (\w+) -->\n```python\n(.*?)```", path.read_text(), re.DOTALL)


def run(path, namespace):
    for name, code in blocks(path):
        exec(compile(code, f"{path.name}:{name}", "exec"), namespace)


def test_the_readmes_code_runs(tmp_path, capsys):
    text = (ROOT / "README.md").read_text()
    assert text.count("```python") == len(blocks(ROOT / "README.md")) >= 1
    namespace = {"folder": tmp_path}
    run(ROOT / "README.md", namespace)
    assert namespace["attribution"].values().num_rows == 200
    assert namespace["attribution"].covered == 1.0


def test_the_pages_code_runs_one_page_after_the_other(tmp_path, capsys):
    namespace = {"folder": tmp_path}
    for page in READ_IN_ORDER:
        assert blocks(DOCS / f"{page}.md"), page
        run(DOCS / f"{page}.md", namespace)
    printed = capsys.readouterr().out
    assert "worst_target" in printed
    assert "of the entries are unexplained" in printed
    assert "Pearson R with exact Shapley values" in printed
    assert "trust" in printed
    assert "['halfway']" in printed


def test_the_page_on_samples_names_every_family_of_rules():
    assert "(owners.csv)" in (DOCS / "samples.md").read_text()
    with (DOCS / "owners.csv").open(newline="") as file:
        named = re.findall(r"`(\w+)`", "".join(row[0] for row in csv.reader(file)))
    assert sorted(named) == sorted(inrun.owners.families())


def test_no_page_with_tested_code_is_left_out():
    assert {page for page in written() if blocks(DOCS / f"{page}.md")} == set(READ_IN_ORDER)


def test_every_page_is_reached_from_the_first_one():
    reached, waiting = set(), ["index"]
    while waiting:
        page = waiting.pop()
        if page in reached or page in MADE or page == "self":
            continue
        reached.add(page)
        folder = Path(page).parent
        for tree in re.findall(
            r"```\{toctree\}\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.S
        ):
            names = [line for line in tree.split("\n") if line and not line.startswith(":")]
            waiting += [(folder / n).as_posix() if n != "self" else n for n in names]
    assert reached == written()


@pytest.mark.parametrize("page", sorted([*written(), "../README", "../CONTRIBUTING"]))
def test_links_lead_to_files_that_exist(page):
    path = DOCS / f"{page}.md"
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if link.startswith(("http:", "https:")):
            continue
        target = link.split("#")[0]
        beside = Path(os.path.normpath(path.parent / target))
        made = beside.relative_to(DOCS).as_posix() if beside.is_relative_to(DOCS) else ""
        assert not target or beside.exists() or Path(f"{beside}.md").exists() or made in MADE, link


def test_everything_public_is_in_the_reference():
    text = "".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    named = set(re.findall(r":: inrun\.(\w+)(?:\(\))?$", text, re.MULTILINE))
    modules = {"errors", "optim", "select", "truth"}
    assert set(inrun.__all__) - {"__version__"} - modules <= named
    assert {"errors", "truth"} <= named
    assert "inrun.optim.register" in text  # the parts for rules of one's own
    assert all(f":: inrun.select.{name}" in text for name in ("online", "offline", "check"))
    for integration in ("transformers", "lightning"):
        assert f":: inrun.integrations.{integration}" in text


def test_the_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    for command in ("demo", "quick", "test", "check", "docs", "dist"):
        assert re.search(rf"^{command}:", makefile, re.MULTILINE)


def test_the_rooms_in_contributing_are_the_rooms_on_disk():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    listed = set(re.findall(r"^  (\w+)/ ", text.split("tests/\n")[0], re.MULTILINE))
    on_disk = {p.name for p in (ROOT / "src/inrun").iterdir() if (p / "__init__.py").exists()}
    assert listed == on_disk


def test_the_architecture_page_has_the_rows_of_the_layering_test():
    text = (DOCS / "architecture.md").read_text().split("```text\n")[1].split("```")[0]
    rows = [set(re.split(", ", re.split("  +", line)[0])) for line in text.strip().split("\n")]
    assert rows == ROWS
