"""What a ranking may be instead: the control's, or the samples' length; told where it mostly is."""

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import spearmanr

import inrun
from tests.integration.stored import random_run, stored_run


def contrasted(path, control_of):
    """40 samples, four visits each; the control's values are made from the margin's."""
    rng = np.random.default_rng(0)
    sample = np.concatenate([rng.permutation(40) for _ in range(4)])
    step = np.arange(160) // 10 + 1
    margin = rng.normal(size=40)[sample] + 0.1 * rng.normal(size=160)
    values = np.stack([margin, control_of(margin, rng)], 1)
    return stored_run(path, values, sample, step, list(range(40)), ("margin", "control"))


def rows_of(found):
    return {row["name"]: row for row in found.table.to_pylist()}


def test_a_control_that_moves_with_the_margin_is_told(tmp_path):
    run = contrasted(tmp_path / "r", lambda margin, rng: margin + 0.2 * rng.normal(size=160))
    found = inrun.confounds(run)
    assert rows_of(found)["the control"]["mostly"]
    assert "mostly that by the control" in str(found)


def test_a_control_apart_is_not(tmp_path):
    run = contrasted(tmp_path / "r", lambda margin, rng: rng.normal(size=160))
    found = inrun.confounds(run)
    assert not rows_of(found)["the control"]["mostly"]
    assert "mostly that" not in str(found)


def test_the_correlation_is_spearmans_over_samples(tmp_path):
    run = random_run(tmp_path / "r", 30, targets=("x",))
    lengths = np.random.default_rng(1).integers(3, 90, 30)
    told = pa.table({"sample_id": list(range(30)), "text": ["a" * n for n in lengths]})
    row = rows_of(inrun.confounds(run, by="total", samples=told))["length"]
    values = run.values()["value"].to_numpy()
    assert row["correlation"] == pytest.approx(spearmanr(lengths, values).statistic)
    stated = told.append_column("length", pa.array(values * 1e3))  # a column goes before the text
    row = rows_of(inrun.confounds(run, by="total", samples=stated))["length"]
    assert row["correlation"] == pytest.approx(1.0)
    assert row["mostly"]


def test_each_behaviour_is_compared_with_its_own_control(tmp_path):
    rng = np.random.default_rng(0)
    sample, step = np.tile(np.arange(40), 4), np.arange(160) // 10 + 1
    values = rng.normal(size=(160, 4))
    values[:, 1] = values[:, 0]  # "a control" is a's margin again, "b control" is nothing of b's
    names = ("a", "a control", "b", "b control")
    run = stored_run(tmp_path / "r", values, sample, step, list(range(40)), names)
    found = inrun.confounds(run).table.to_pylist()
    told = {(row["ranking"], row["name"]): row for row in found}
    assert set(told) == {("a", "the a control"), ("b", "the b control")}
    assert told["a", "the a control"]["correlation"] == pytest.approx(1.0)
    assert not told["b", "the b control"]["mostly"]
    both = inrun.confounds(run, by="total").table.to_pylist()
    assert [row["name"] for row in both] == ["the a control", "the b control"]


def test_nothing_known_is_said(tmp_path):
    found = inrun.confounds(random_run(tmp_path / "r", 12, targets=("x",)))
    assert "Nothing is known" in str(found)
