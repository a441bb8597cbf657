"""The cost rule counts; its choices follow the counts."""

import pytest

from inrun.factors import cost


def test_counts():
    assert cost.push_flops(positions=5, rows=3, columns=4, directions=2) == 2 * 5 * (12 + 3)
    assert cost.materialize_flops(positions=5, rows=3, columns=4, directions=2) == 60 + 24


@pytest.mark.parametrize(
    ("positions", "directions", "materialize"),
    [(1, 1, False), (50, 1, False), (100, 1, True), (1, 10, False), (100, 10, True), (2, 4, True)],
)
def test_shares_are_built_where_positions_or_directions_are_many(
    positions, directions, materialize
):
    assert cost.materialize_is_cheaper(positions, 64, 64, directions, 4) is materialize


def test_shares_that_do_not_fit_are_never_built():
    assert not cost.materialize_is_cheaper(1000, 30_000, 1000, 10, 4)
    assert cost.samples_per_block(2**20, 4, limit=2**23) == 2
    assert cost.samples_per_block(2**30, 4) == 0


def test_a_low_rank_pays_for_many_positions_of_large_matrices_only():
    assert cost.low_rank_flops(7, 3, 4, 2, 5) == 2 * (2 * 5 * 12 + 2 * 25 * 3 + 7 * 5 * 7)
    assert cost.low_rank_is_cheaper(1024, 384, 1152, 1, 16)
    assert not cost.low_rank_is_cheaper(32, 384, 1152, 1, 16)
    assert not cost.low_rank_is_cheaper(1024, 32, 32, 1, 16)
    assert not cost.low_rank_is_cheaper(1024, 384, 1152, 1, 128)
