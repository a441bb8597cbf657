"""What decisions return: a glance in a terminal, a table in a notebook, rows for other tools."""

from dataclasses import dataclass

import pyarrow as pa
import pytest

import inrun
from inrun.answers import LONGEST, SHOWN, Answer


@dataclass(frozen=True, repr=False)
class Found(Answer):
    table: pa.Table

    def sentences(self):
        return [f"{self.table.num_rows} rows."]


def found(rows):
    names = [f"row {i}" for i in range(rows)]
    return Found(pa.table({"name": names, "value": [i / 3 for i in range(rows)]}))


def test_it_prints_its_sentences_and_its_first_rows_in_columns():
    said = repr(found(2)).splitlines()
    assert said == ["2 rows.", " name   value", "row 0       0", "row 1  0.3333"]


@pytest.mark.parametrize("rows", [0, SHOWN, SHOWN + 1])
def test_it_says_how_many_rows_it_does_not_show(rows):
    for said in (repr(found(rows)), found(rows)._repr_html_()):
        assert said.count("row ") == min(rows, SHOWN)
        assert ("1 more rows" in said) == (rows > SHOWN)


def test_rows_go_to_arrow_and_pandas_as_they_are():
    pytest.importorskip("pandas")
    answer = found(30)
    assert answer.to_arrow() is answer.table
    assert answer.to_pandas()["value"].tolist() == answer.table["value"].to_pylist()


def test_texts_are_no_markup_and_no_terminal_escapes():
    hostile = "<script>alert(1)</script>\x1b[2J\n" + "x" * 100
    answer = Found(pa.table({hostile: [hostile, None]}))
    html, text = answer._repr_html_(), repr(answer)
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "\x1b" not in text
    assert text.count("\n") == 3
    assert all(len(line) <= max(LONGEST, len(hostile)) for line in text.splitlines())


def test_every_public_answer_is_one():
    names = ("Comparison", "HarmProfile", "LabelDoubts", "Lookahead", "Pruning", "Rollup", "Trace")
    kinds = [getattr(inrun, name) for name in names] + [inrun.select.OfflineSelection]
    assert all(issubclass(kind, inrun.Answer) for kind in kinds)
    assert all(kind.__repr__ is Answer.__repr__ for kind in kinds)
