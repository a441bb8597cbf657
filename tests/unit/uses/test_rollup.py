"""Roll-ups: sums that add up to the books, duplicates across providers, intervals."""

import numpy as np
import pyarrow as pa
import pytest

import inrun
from inrun.errors import InRunWarning, InvariantError, MisuseError, StoreError
from inrun.uses import duplicate_groups
from tests.integration.stored import as_older_version, random_run, stored_run
from tests.oracles import decisions as oracle

TEXTS = ["one", "Two", "three", "two ", "two", "six", "seven", "one", "nine", "ten"]
SOURCES = ["a", "a", "a", "b", "c", "b", "c", "a", None, "b"]


@pytest.fixture
def run(tmp_path):
    stored = random_run(tmp_path / "run", 10, targets=("x", "y"))
    stored.describe({"sample_id": list(range(10)), "text": TEXTS, "source": SOURCES})
    return stored


def test_groups_and_the_other_entries_add_up_to_the_fall_of_the_loss(run):
    for duplicates in ("split", "booked"):
        found = inrun.rollup(run, duplicates=duplicates)
        groups = sum(found.table["value"].to_pylist())
        rest = sum(found.books[name] for name in ("momentum", "weight_decay", "residual"))
        ledger = run.ledger()
        fall = ledger["opening_loss"][0].as_py() - ledger["closing_loss"][-1].as_py()
        assert groups + rest == pytest.approx(fall, abs=1e-12)
        assert sum(found.table["share"].to_pylist()) == pytest.approx(1.0)
        assert sum(found.table["samples"].to_pylist()) == 10


def test_split_sums_are_the_oracles(run):
    values = dict(enumerate(run.values()["value"].to_pylist()))
    content = dict(enumerate(text.strip().lower() for text in TEXTS))
    group = {i: "(not described)" if s is None else s for i, s in enumerate(SOURCES)}
    wanted = oracle.rollup(values, group, content)
    table = inrun.rollup(run).table.to_pylist()
    assert {row["group"]: row["value"] for row in table} == pytest.approx(wanted)
    assert {row["group"]: row["duplicated"] for row in table} == {
        "a": 1, "b": 1, "c": 1, "(not described)": 0,
    }  # fmt: skip


def test_copies_from_one_provider_earn_it_no_more(tmp_path):
    one = stored_run(tmp_path / "one", np.ones((2, 1)), np.arange(2), np.ones(2, int), [0, 1])
    many = stored_run(
        tmp_path / "many", np.ones((4, 1)) / 2, np.arange(4), np.ones(4, int), range(4)
    )
    one.describe({"sample_id": [0, 1], "text": ["t", "t"], "source": ["a", "b"]})
    many.describe({"sample_id": range(4), "text": ["t"] * 4, "source": ["a", "a", "a", "b"]})
    for run in (one, many):
        assert inrun.rollup(run).table["value"].to_pylist() == pytest.approx([1.0, 1.0])
    assert sorted(inrun.rollup(many, duplicates="booked").table["value"].to_pylist()) == [0.5, 1.5]


def test_intervals_cover_the_mean_of_what_providers_draw_from(tmp_path):
    rng, hits = np.random.default_rng(1), 0
    for trial in range(40):
        values = rng.normal(0.3, 1.0, (60, 1))
        run = stored_run(tmp_path / str(trial), values, np.arange(60), np.ones(60, int), range(60))
        run.describe({"sample_id": range(60), "source": ["a", "b"] * 30})
        for row in inrun.rollup(run).table.to_pylist():
            hits += row["low"] <= 30 * 0.3 <= row["high"]
    assert 70 <= hits <= 80  # of 80; 95 % would be 76


def test_a_single_row_has_no_interval(tmp_path):
    run = stored_run(tmp_path / "run", np.ones((3, 1)), np.arange(3), np.ones(3, int), range(3))
    run.describe({"sample_id": range(3), "source": ["a", "b", "b"]})
    low = {r["group"]: r["low"] for r in inrun.rollup(run).table.to_pylist()}
    assert np.isnan(low["a"])
    assert low["b"] == pytest.approx(2.0)


def test_books_that_do_not_fit_the_values_are_refused(run):
    part = sorted((run.path / "ledger").glob("*.parquet"))[0]
    part.unlink()
    with pytest.raises(StoreError, match=f"{part.name} is missing"):
        inrun.load(run.path)
    as_older_version(run.path)  # which does not say how many parts there were
    with pytest.warns(InRunWarning, match="no checksums"):
        stored = inrun.load(run.path)
    with pytest.raises(InvariantError, match="add up to"):
        inrun.rollup(stored)


def test_missing_samples_and_columns_are_said(tmp_path, run):
    with pytest.raises(MisuseError, match="no column 'domain'"):
        inrun.rollup(run, "domain")
    with pytest.raises(MisuseError, match="not told what its samples are"):
        inrun.rollup(random_run(tmp_path / "other", 4))
    with pytest.raises(MisuseError, match="not one of split, booked"):
        inrun.rollup(run, duplicates="halve")


def test_labels_are_no_part_of_a_samples_content(run):
    text = pa.table({"sample_id": [0, 1, 2], "text": ["a", "A ", "b"], "label": [1, 2, 3]})
    assert duplicate_groups(text).tolist() == [0, 0, -1]
    rows = pa.table({"sample_id": [0, 1, 2], "x": [1.5, 1.5, 2.0], "label": [1, 2, 1]})
    assert duplicate_groups(rows).tolist() == [0, 0, -1]
    bare = pa.table({"sample_id": [0, 1], "label": [1, 1]})
    assert duplicate_groups(bare).tolist() == [-1, -1]


def test_samples_whose_ids_are_of_another_kind_are_refused(run):
    samples = pa.table({"sample_id": ["x", "y"], "source": ["a", "b"]})
    with pytest.raises(MisuseError, match="cannot be joined"):
        inrun.rollup(run, samples=samples)
