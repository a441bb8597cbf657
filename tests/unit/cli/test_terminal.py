"""What is printed is text: no control character of the data reaches a terminal or a spreadsheet."""

import io
import json
import re
import shlex
import shutil
import subprocess
from importlib import resources
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from inrun.cli._terminal import PIPED, Cells, Terminal, command, plain, printable
from inrun.cli._train import introduce
from inrun.cli._written import defused

ESCAPES = [
    "\x1b]0;title\x07", "\x1b[2J\x1b[H", "\x1b[31mred", "\x9b31m", "\x08\x08\x08", "\r overwritten",
    "\x00", "\x7f", "\u202egnihtemos", "\u2066x\u2069", "\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\",
]  # fmt: skip


def printed(*what, **how):
    console = Terminal(file=io.StringIO(), width=100)
    console.print(*what, **how)
    return console.file.getvalue()


@pytest.mark.parametrize("text", ESCAPES, ids=ascii)
def test_no_way_of_printing_sends_an_escape(text):
    table = Table(text, title=text)
    table.add_row(text)
    table.add_row(Text(text))
    ways = [text, Text(text), table, plain(text), f"[bold]{plain(text)}[/bold]", ["list", text]]
    for way in ways:
        for markup in (True, False):
            found = printed(way, markup=markup)
            assert all(c == "\n" or c == " " or c.isprintable() for c in found), ascii(found)


def test_ordinary_text_stays_as_it_is():
    text = "naïve 日本 café\u00a0\u3000ok 🙂 [not markup]"
    assert printable(text) == text
    assert printed(plain(text)).rstrip("\n") == text


FORMULAS = [
    "=1+1", "+1+1", "-1+cmd", "@SUM(A1)", " =1+1", "\u00a0=1", "\t=1", "\r=1", "\n=1", "|=1", ";=1",
    "; ;| =1", "a;=1", "a ; =1", "a|=1", "a\t=1", "a\n=1", "\uff1d1+1", "=cmd|' /C calc'!A0",
]  # fmt: skip


def cells_as_a_spreadsheet_splits(text):
    return [cell.strip() for cell in re.split(r"[;|\t\r\n]", text)]


@pytest.mark.parametrize("text", FORMULAS, ids=ascii)
def test_no_cell_begins_a_formula_however_it_is_split(text):
    found = defused(text)
    assert found.startswith("'") == (text[0] != "a")
    for cell in [found.strip(), *cells_as_a_spreadsheet_splits(found)]:
        assert not re.match(r"[=+\-@\uff0b\uff0d\uff1d\uff20]", cell)


@given(st.text(alphabet="=+-@;|\t\r\n a1,\"'", max_size=12))
def test_whatever_the_text_no_part_of_it_is_a_formula(text):
    for cell in cells_as_a_spreadsheet_splits(defused(text)):
        assert not re.match(r"[=+\-@]", cell) or re.fullmatch(r"[+-]?[\d.]+", text)


@pytest.mark.parametrize("text", ["-5", "+1.5e-3", "-.5", "3", "plain", "a - b", "a = b", ""])
def test_numbers_and_prose_stay(text):
    assert defused(text) == text


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_reports_script_writes_the_same_cells():
    code = (resources.files("inrun.report") / "assets" / "export.js").read_text(encoding="utf-8")
    function = re.search(r"function csvCell\(x\) \{.*?\n  \}\n", code, re.DOTALL).group()
    texts = [*FORMULAS, "-5", "+1.5e-3", "a - b", "plain", 'say "x"', ""]
    program = (
        f"{function} console.log(JSON.stringify({json.dumps(texts)}.map(csvCell).map(function (c) "
        """{ return c[0] === '"' ? c.slice(1, -1).replaceAll('""', '"') : c; })))"""
    )
    done = subprocess.run(["node", "-e", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [defused(text) for text in texts]


NUMBERS = ["+1.2345e-05", "-98.7 %", "1,234,567"]
NAME = "beginning " + "of a long text " * 9 + "end"


def drawn(width, *, piped=False):
    cells = Cells("sample", "share", "visits", "text")
    cells.add_row(*map(plain, NUMBERS), plain(NAME.replace(" of", "\n of")))
    console = Terminal(file=io.StringIO(), width=width, force_terminal=not piped)
    console.print(cells)
    return re.sub(r"\x1b\[[\d;]*m", "", console.file.getvalue())


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
def test_a_table_never_cuts_a_number(width):
    assert all(number in drawn(width).replace("\n", " ").replace("- ", "-") for number in NUMBERS)


def test_a_name_is_cut_in_the_middle_and_that_is_told():
    found = drawn(80)
    assert "beginning" in found
    assert re.search(r"\.\.\..*end", found)
    assert "is left out of a name" in found
    assert "..." not in drawn(300)


def test_what_is_piped_is_whole_plain_and_a_line_for_each_row():
    lines = drawn(PIPED, piped=True).splitlines()
    assert len(lines) == 2
    assert " ".join(lines[1].split()) == " ".join([*NUMBERS, NAME])


@pytest.mark.parametrize("judges", ["ab", "a"])
def test_labels_that_no_validation_row_has_are_said_before_training(judges):
    samples = [SimpleNamespace(label=label) for label in "aab"]
    training = SimpleNamespace(
        config=SimpleNamespace(task="text-classification", model="bert"), device="cpu",
        splits=SimpleNamespace(training=samples, test=[], classes=("a", "b"), skipped=()),
        judges=lambda: [SimpleNamespace(label=label) for label in judges], steps=lambda: 3,
    )  # fmt: skip
    console = Terminal(file=io.StringIO(), width=200)
    introduce(console, training)
    said = "No validation row has the label b: nothing can be said of 1 of the 3 training rows."
    assert (said in console.file.getvalue()) == (judges == "a")


@pytest.mark.parametrize("folder", ["run", "my run", "it's", "$(rm x)"])
def test_a_command_to_copy_is_one_that_a_shell_reads_so(folder):
    assert shlex.split(command("inrun", "report", folder)) == ["inrun", "report", folder]
