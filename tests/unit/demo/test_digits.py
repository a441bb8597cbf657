"""The demo's data: what is wrong in it is known."""

import pytest

from inrun.demo import _digits as digits
from inrun.demo import run_demo
from inrun.errors import StoreError


def test_a_fifth_of_the_training_labels_is_wrong_and_every_digit_is_used():
    data = digits.load(0)
    assert int(data.wrong.sum()) == digits.WRONG_SHARE * digits.TRAINING
    assert len(data.labels) == digits.TRAINING
    assert sum(len(y) for _, y in data.targets.values()) == digits.VALIDATION
    parts = len(data.labels), len(data.validation[1]), len(data.test[1])
    assert sum(parts) == 1797  # all digits that there are


def test_a_folder_that_holds_a_run_is_refused_before_anything_is_trained(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(StoreError, match="holds a demo already"):
        run_demo(tmp_path)
    assert list((tmp_path / "run").iterdir()) == []
