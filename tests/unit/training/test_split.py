"""Validation and test rows that are split off: each label and source by its share."""

from collections import Counter

import pytest

from inrun.training._config import TrainConfig
from inrun.training._samples import read_splits
from tests.integration.train_data import jsonl

SIZES = {("sea", "x"): 200, ("sea", "y"): 40, ("wood", "x"): 20, ("wood", "y"): 40}


@pytest.mark.parametrize("seed", range(5))
def test_each_part_has_its_share_of_every_label_and_source(tmp_path, seed):
    rows = [
        {"text": f"{label} {who} {i}", "label": label, "who": who}
        for (label, who), size in SIZES.items()
        for i in range(size)
    ]
    data = jsonl(tmp_path / "train.jsonl", rows)
    config = TrainConfig("text-classification", "bert", str(data), source_column="who", seed=seed)
    splits = read_splits(config)
    for part in (splits.validation, splits.test):
        assert len(part) == 30
        counts = Counter((s.label, s.row.cells["who"]) for s in part)
        for group, size in SIZES.items():
            assert abs(counts[group] - size / 10) <= 1
    every = [s.id for part in (splits.training, splits.validation, splits.test) for s in part]
    assert sorted(every) == list(range(300))
