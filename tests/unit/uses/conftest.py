"""What tests of decisions share."""

import pytest

from tests.integration.stored import random_run


@pytest.fixture
def labelled_run(tmp_path):
    stored = random_run(tmp_path / "run", 40, targets=("a", "b", "c"))
    stored.describe({"sample_id": range(40), "label": [i % 4 for i in range(40)]})
    return stored
