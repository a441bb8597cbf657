"""Roll-ups: sums that add up to the books, duplicates across providers, intervals."""

from math import comb

import numpy as np
import pyarrow as pa
import pytest

import inrun
from inrun.errors import InRunWarning, InvariantError, MisuseError, StoreError
from inrun.uses import duplicate_groups
from inrun.uses._groups import intervals
from inrun.uses._near import near_groups
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


def test_equal_groups_are_seldom_told_from_each_other(tmp_path):
    """Ten groups of the same make: some one stands out in about one of twenty tables."""
    rng, told = np.random.default_rng(2), 0
    for _ in range(200):
        value = rng.normal(0.3, 1.0, 200)
        found = intervals(value, np.arange(200) % 10, 10, np.arange(200))
        told += any(one["told"] for one in found)
    assert 1 <= told <= 20  # 10 would be 5 %
    shifted = value + 3.0 * (np.arange(200) % 10 == 7)
    found = intervals(shifted, np.arange(200) % 10, 10, np.arange(200))
    assert [one["told"] for one in found].index("above") == 7


def test_near_duplicates_are_drawn_together(tmp_path):
    """The same rows ten times over say no more than once."""
    words = [f"word{i} " * 6 + " ".join(f"of{i}and{j}" for j in range(30)) for i in range(12)]
    texts = [f"{words[row // 10]} copy{row % 10}" for row in range(120)]
    value = np.repeat(np.random.default_rng(0).normal(1.0, 1.0, 12), 10)[:, None]
    run = stored_run(tmp_path / "run", value, np.arange(120), np.ones(120, int), range(120))
    rows = {"sample_id": range(120), "source": ["a", "b", "c"] * 40}
    document = [str(row // 10) for row in range(120)]
    tables = [
        inrun.rollup(run, samples=pa.table(rows | more), clusters=clusters).table
        for more, clusters in (
            ({"text": texts}, None), ({"document": document}, "document"), ({"x": texts}, None),
        )
    ]  # fmt: skip
    near, given, single = (t.sort_by("group")["high"].to_numpy() for t in tables)
    value_of = tables[0].sort_by("group")["value"].to_numpy()
    np.testing.assert_allclose(near, given)
    assert ((near - value_of) > 1.5 * (single - value_of)).all()


def test_shares_have_intervals_that_cover_what_is_drawn(tmp_path):
    rng, hits = np.random.default_rng(3), 0
    group = np.repeat([0, 1], [20, 60])
    for _ in range(200):
        value = rng.normal(np.where(group == 0, 2.0, 1.0), 1.0)
        first = intervals(value, group, 2, np.arange(80))[0]
        hits += first["share_low"] <= 40 / 100 <= first["share_high"]
    assert 185 <= hits <= 200  # of 200; 97.5 % of two that hold together would be 195


def test_nothing_is_told_of_one_group(run):
    found = inrun.rollup(run, samples=pa.table({"sample_id": range(10), "source": ["a"] * 10}))
    assert found.table["told"].to_pylist() == [None]
    assert "one group" in found.comparison
    with pytest.raises(MisuseError, match="no column 'document'"):
        inrun.rollup(run, clusters="document")


def test_a_single_row_has_no_interval(tmp_path):
    run = stored_run(tmp_path / "run", np.ones((3, 1)), np.arange(3), np.ones(3, int), range(3))
    run.describe({"sample_id": range(3), "source": ["a", "b", "b"]})
    low = {r["group"]: r["low"] for r in inrun.rollup(run).table.to_pylist()}
    assert np.isnan(low["a"])
    assert low["b"] == pytest.approx(2.0)
    assert None in inrun.rollup(run).table["told"].to_pylist()


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


def test_near_groups_link_texts_that_share_most_of_their_runs_of_words():
    base = " ".join(f"word{i}" for i in range(40))
    other = " ".join(f"thing{i}" for i in range(40))
    texts = [base, other, base + " and more", None, "", other.replace("thing39", "x"), base.upper()]
    found = near_groups(pa.table({"sample_id": range(7), "text": texts}))
    assert found[0] == found[2] == found[6] >= 0
    assert found[1] == found[5] >= 0
    assert found[0] != found[1]
    assert found[3] == found[4] == -1


def ranked(tmp_path, ranks, sources):
    """A run whose labels were ranked by doubt."""
    run = random_run(tmp_path, len(ranks), epochs=1)
    run.describe({
        "sample_id": list(range(len(ranks))), "source": list(sources),
        "doubt_rank": [int(rank) for rank in ranks],
    })  # fmt: skip
    return inrun.rollup(run)


def by_counting(first, own, k, n):
    """How probably k or more of a group's samples are among the first, by counting draws."""
    draws = range(k, min(first, own) + 1)
    return sum(comb(first, j) * comb(n - first, own - j) for j in draws) / comb(n, own)


def test_a_source_of_doubtful_labels_is_named_and_others_by_chance_alone(tmp_path):
    rng, sources, named = np.random.default_rng(0), np.repeat(list("abcd"), 25), 0
    for k in range(20):
        ranks = rng.permutation(100) + 1
        table = ranked(tmp_path / f"chance {k}", ranks, sources).table.to_pylist()
        for row in table:
            inside = int((ranks[sources == row["group"]] <= 10).sum())
            assert row["doubtful"] == pytest.approx(inside / 25)
            assert row["doubted"] == (by_counting(10, 25, inside, 100) < 0.05 / 4)
        named += any(row["doubted"] for row in table)
    assert named <= 3  # of 20 at 5 %
    found = ranked(tmp_path / "bad", np.r_[11:86, 1:11, 86:101], sources)
    (said,) = found.doubts
    assert said.startswith("Look at the labels of d: 40% of its samples")
    assert said in found.notes()


def test_where_labels_were_not_ranked_nothing_is_said_of_their_doubt(run):
    found = inrun.rollup(run)
    assert found.doubts == []
    assert set(found.table["doubtful"].to_pylist()) == {None}
