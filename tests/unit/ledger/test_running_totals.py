"""Totals over visits."""

import numpy as np

from inrun.ledger import Entries, RunningTotals, ledger_rows, normalised, residual_shares, totals


def test_totals_are_sums_over_visits_in_the_order_of_ids():
    running_totals = RunningTotals(["a", "b"], [0.25, 0.75])
    running_totals.add(1, [5, 3], np.array([[1.0, 2.0], [-1.0, 0.0]]))
    running_totals.add(4, [3, 3], np.array([[2.0, 2.0], [4.0, 0.0]]))
    table = running_totals.table()
    assert table["sample_id"].to_pylist() == [3, 5]
    assert table["a"].to_pylist() == [5.0, 1.0]
    assert table["value"].to_pylist() == [-0.25 + 2.0 + 1.0, 1.75]
    assert table["visits"].to_pylist() == [3, 1]
    assert table["first_step"].to_pylist() == [1, 1]
    assert table["last_step"].to_pylist() == [4, 1]


def test_many_samples_and_steps_keep_their_rows():
    rng = np.random.default_rng(0)
    running_totals, expected = RunningTotals(["v"], [1.0]), np.zeros(500)
    for step in range(200):
        ids, values = rng.integers(0, 500, 8), rng.normal(size=(8, 1))
        running_totals.add(step, ids.tolist(), values)
        np.add.at(expected, ids, values[:, 0])
    table = running_totals.table()
    np.testing.assert_allclose(
        table["value"].to_numpy(), expected[table["sample_id"].to_numpy()], atol=1e-12
    )


def test_normalised_values_have_mean_size_one_and_keep_their_sign():
    values = np.array([1.0, -3.0, 0.0, 4.0])
    found = normalised(values)
    assert np.abs(found).mean() == 1
    assert (np.sign(found) == np.sign(values)).all()
    assert (normalised(np.zeros(3)) == 0).all()
    assert normalised(np.zeros(0)).shape == (0,)


def test_the_residual_is_what_the_entries_leave():
    one = np.array([1.0])
    entries = Entries(5 * one, 2 * one, 1.5 * one, 0.5 * one, 0.75 * one)
    (row,) = ledger_rows(3, "path", 8, ["v"], [1.0], entries)
    assert row["residual"] == 0.25
    import pyarrow as pa

    table = pa.Table.from_pylist([row])
    assert residual_shares(table).tolist() == [0.25 / 2.75]
    assert totals(table)["samples"] == 1.5
