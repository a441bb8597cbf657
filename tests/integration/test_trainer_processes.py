"""accelerate, the Trainer and TRL on four processes: values and books are those of one process."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from inrun.ledger import ENTRIES
from tests.integration import trainer_processes as script
from tests.processes import run_together


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """The folder in which four processes left their tables."""
    folder = tmp_path_factory.mktemp("four")
    run_together(script, folder, 4)
    return folder


@pytest.mark.parametrize("case", script.CASES, ids=lambda case: case.__name__)
def test_values_and_books_are_those_of_one_process(case, four, tmp_path):
    one = case(tmp_path)
    found = pq.read_table(four / f"{case.__name__}-values.parquet")
    expected = one.values()
    counted = ["sample_id", "visits", "first_step", "last_step"]
    assert found.select(counted).equals(expected.select(counted))
    assert one.covered == 1.0
    size = np.abs(expected["value"].to_numpy()).max()
    # TRL's fused head computes in single precision, in which Adam's first steps are near signs
    close = 1e-4 if case in (script.sft, script.packed) else 1e-9
    np.testing.assert_allclose(
        found["value"].to_numpy(), expected["value"].to_numpy(), rtol=close, atol=close * size
    )
    books, truth = pq.read_table(four / f"{case.__name__}-ledger.parquet"), one.ledger()
    assert books["visits"].equals(truth["visits"])
    size = max(np.abs(truth[entry].to_numpy()).max() for entry in ENTRIES)
    for entry in ENTRIES:
        np.testing.assert_allclose(
            books[entry].to_numpy(), truth[entry].to_numpy(), rtol=close, atol=close * size
        )
