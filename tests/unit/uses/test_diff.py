"""Two runs beside each other: what is common, what changed, and the books of both."""

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr

import inrun
from inrun.errors import MisuseError
from tests.integration.stored import random_run


def told(run, ids, wrong=()):
    labels = ["x" if (i % 2) ^ (i in wrong) else "y" for i in ids]
    texts = [f"text {i}{'!' if i in wrong[:1] else ''}" for i in ids]
    run.describe({"sample_id": ids, "label": labels, "text": texts, "source": ["s"] * len(ids)})
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Samples 0 to 49, and 10 to 69 of another training: 40 are common, 12 and 13 differ."""
    folder, second = tmp_path_factory.mktemp("runs"), list(range(10, 70))
    a = random_run(folder / "a", 50, targets=("x", "y"))
    b = random_run(folder / "b", 60, targets=("x", "y"), ids=second, seed=1)
    return told(a, list(range(50))), told(b, second, wrong=(12, 13))


def test_common_samples_have_both_runs_values_and_ranks(runs):
    found = inrun.diff(*runs)
    assert found.only == (10, 20)
    sides = [{r["sample_id"]: r for r in run.values().to_pylist()} for run in runs]
    common = sorted(sides[0].keys() & sides[1].keys())
    rows = {r["sample_id"]: r for r in found.table.to_pylist()}
    assert sorted(rows) == common
    scores = [[side[i]["value_normalised"] for i in common] for side in sides]
    ranks = [(rankdata(s) - 1) / (len(common) - 1) for s in scores]
    for at, i in enumerate(common):
        assert (rows[i]["value_a"], rows[i]["value_b"]) == tuple(s[i]["value"] for s in sides)
        assert (rows[i]["rank_a"], rows[i]["rank_b"]) == pytest.approx([r[at] for r in ranks])
    assert found.agreement == pytest.approx(spearmanr(*scores).statistic)
    moved = np.abs(found.table["moved"].to_numpy())
    assert (moved[:-1] >= moved[1:]).all()


def test_what_became_another_thing_is_said(runs):
    changed = {r["sample_id"]: r["changed"] for r in inrun.diff(*runs).table.to_pylist()}
    assert {i: what for i, what in changed.items() if what} == {12: "content, label", 13: "label"}
    assert "1 with another content; 2 with another label" in str(inrun.diff(*runs))


def test_books_are_those_of_both_runs_and_add_up(runs):
    found = inrun.diff(*runs)
    books = {row["entry"]: row for row in found.books.to_pylist()}
    for side, run in zip("ab", runs, strict=True):
        assert books["fall of the loss"][side] == pytest.approx(run.balance()["fall"])
        entries = [r[side] for n, r in books.items() if not n.endswith("loss")]
        assert sum(entries) == pytest.approx(books["fall of the loss"][side], abs=1e-12)
    labels = [row for row in found.groups.to_pylist() if row["column"] == "label"]
    assert sum(row["samples_b"] for row in labels) == 60
    assert sum(row["value_a"] for row in labels) == pytest.approx(
        books["samples, in their own steps"]["a"]
    )
    assert found.settings.to_pylist() == [{"name": "scored steps", "a": "20", "b": "24"}]


def test_a_run_beside_itself_differs_in_nothing(runs):
    found = inrun.diff(runs[0].path, runs[0])
    assert found.only == (0, 0)
    assert found.agreement == pytest.approx(1.0)
    assert not found.settings.num_rows
    assert not any(found.table["changed"].to_pylist())
    assert not np.abs(found.table["moved"].to_numpy()).any()


def test_runs_without_a_common_sample_have_books_and_no_agreement(runs, tmp_path):
    other = random_run(tmp_path / "far", 20, targets=("x", "y"), ids=list(range(900, 920)))
    found = inrun.diff(runs[0], other)
    assert found.table.num_rows == 0
    assert "Too few common samples" in str(found)


def test_ids_of_another_kind_are_refused(runs, tmp_path):
    named = random_run(tmp_path / "named", 20, ids=[f"row {i}" for i in range(20)])
    with pytest.raises(MisuseError, match="int64 and string"):
        inrun.diff(runs[0], named)
