"""Harm profiles."""

import pyarrow as pa
import pytest

from inrun.errors import MisuseError
from inrun.uses import harm_profile

VISITS = pa.table(
    {
        "step": [1, 1, 2, 2],
        "sample_id": ["b", "a", "b", "a"],
        "value": [0.0, 0.0, 0.0, 0.0],
        "cats": [10.0, -30.0, 0.1, -0.3],
        "dogs": [-10.0, 30.0, -0.4, 0.0],
    }
)


def test_the_most_harmed_target_is_named_in_the_order_of_ids():
    table = harm_profile(VISITS, ("cats", "dogs"))
    assert table["sample_id"].to_pylist() == ["a", "b"]
    assert table["worst_target"].to_pylist() == ["cats", "dogs"]


def test_a_step_with_large_values_does_not_outweigh_the_others():
    table = harm_profile(VISITS, ("cats", "dogs"))
    # step 1: mean size 20, step 2: mean size 0.2
    assert table["worst_value"].to_pylist() == pytest.approx(
        [-30 / 20 - 0.3 / 0.2, -10 / 20 - 0.4 / 0.2]
    )


def test_one_target_has_no_profile():
    with pytest.raises(MisuseError, match="at least two"):
        harm_profile(VISITS, ("cats",))
