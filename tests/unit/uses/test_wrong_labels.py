"""How many labels are wrong, by planted flips: covered where it is told, and not told elsewhere."""

import numpy as np
import pyarrow as pa
import pytest

import inrun
from inrun.errors import MisuseError
from inrun.uses._wrong_labels import FALSE, SEPARATED, _increasing, counted

ROWS, FLIPS = 600, 60


def drawn(wrong, apart, seed):
    """Doubts of right labels around 0, of wrong and planted ones around `apart`."""
    rng = np.random.default_rng(seed)
    planted = np.arange(ROWS) >= ROWS - FLIPS
    doubt = rng.normal(size=ROWS)
    doubt[planted | (np.arange(ROWS) < wrong)] += apart
    return doubt, planted


@pytest.mark.parametrize("wrong", [0, 30, 120])
def test_the_interval_covers_how_many_are_wrong(wrong):
    found = [counted(*drawn(wrong, 4.0, seed)) for seed in range(20)]
    assert sum(one.low <= wrong <= one.high for one in found) >= 18
    assert abs(np.mean([one.wrong for one in found]) - wrong) < 4 + 0.1 * wrong
    assert all(one.separation > SEPARATED for one in found)


def test_probabilities_are_calibrated():
    """Of rows with a probability of p, a share of about p is wrong; `FALSE` of the rows apart."""
    said, whole, came = [], [], []
    for seed in range(20):
        doubt, planted = drawn(90, 3.0, seed)
        found = counted(doubt, planted)
        said.append(found.probability)
        whole.append(found.probability / (1 - FALSE * (ROWS - FLIPS) / found.wrong))
        came.append((np.arange(ROWS) < 90)[~planted])
    said, whole, came = map(np.concatenate, (said, whole, came))
    for low, high in ((0.0, 0.1), (0.1, 0.9), (0.9, 1.01)):
        rows = (whole >= low) & (whole < high)
        assert abs(whole[rows].mean() - came[rows].mean()) < 0.15
        assert said[rows].mean() < came[rows].mean() + 0.01  # never too high
    assert whole.sum() == pytest.approx(came.sum(), rel=0.15)


def test_probabilities_of_few_wrong_labels_are_not_too_high():
    """300 rows as in the benchmark, right labels with a heavy tail: some look wrong."""
    said, came = [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        doubt = rng.standard_t(5, 300)
        doubt[:84] += 4.0  # 60 planted, 24 wrong
        planted = np.arange(300) < 60
        said.append(counted(doubt, planted).probability)
        came.append((np.arange(300) < 84)[~planted])
    said, came = np.concatenate(said), np.concatenate(came)
    for low, high in ((0.0, 0.1), (0.5, 0.8), (0.8, 1.01)):
        rows = (said >= low) & (said < high)
        assert rows.sum() > 50
        assert said[rows].mean() < came[rows].mean() + 0.05


def test_flips_that_look_like_right_labels_are_not_separated():
    assert counted(*drawn(60, 0.5, 0)).separation < 0.9


def test_never_falling_numbers_are_the_nearest():
    y = np.array([0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    found = _increasing(y, np.ones(8))
    np.testing.assert_allclose(found, [0, 1 / 3, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3, 1])
    assert (np.diff(found) >= 0).all()


def test_planted_labels_differ_from_the_given_ones_where_it_is_said():
    labels = ["a", "b", "c"] * 100
    found = inrun.plant(labels, seed=1)
    changed = [i for i, (x, y) in enumerate(zip(labels, found.labels, strict=True)) if x != y]
    assert changed == found.places
    assert len(changed) == 60
    assert len(inrun.plant(labels * 5).places) == 150
    alike = inrun.plant(labels, instead={"a": ["b"], "b": ["a"], "c": ["b"]})
    assert {alike.labels[i] for i in alike.places} == {"a", "b"}
    with pytest.raises(MisuseError, match="another data set"):
        inrun.plant(["a", "b"] * 60)


class Valued:
    """A run of `visits` steps, each with all samples, of which odd ones harm the other class."""

    targets = ("a", "b")

    def __init__(self, odd, visits):
        self._visits = pa.table(
            {
                "step": np.repeat(np.arange(visits), len(odd)),
                "sample_id": np.tile(np.arange(len(odd)), visits),
                "a": np.tile(np.where(odd, 1.0, -1.0), visits),
                "b": np.tile(np.where(odd, -1.0, 1.0), visits),
            }
        )

    def values(self):
        return pa.table({"sample_id": range(200)})

    def visits(self):
        return self._visits

    def ledger(self):
        return pa.table({"step": [1]})


def seen(loss):
    p = np.exp(-loss)
    return {"sample_id": range(200), "label": ["a"] * 200, "mean_loss": loss, "a": p, "b": 1 - p}


def test_a_run_with_planted_flips_is_counted():
    rng = np.random.default_rng(0)
    odd = np.arange(200) < 80  # 60 planted, 20 wrong
    loss = np.where(odd, 2.0, 0.2) * rng.uniform(0.8, 1.2, 200)
    found = inrun.wrong_labels(Valued(odd, 8), range(60), seen(loss))
    assert found.low <= 20 <= found.high
    assert found.table.num_rows == 140
    assert found.table["sample_id"].to_pylist()[0] in range(60, 80)
    said = found.table["probability"].to_pylist()
    assert said[0] == pytest.approx(1 - FALSE * 140 / found.count)  # 2 % may look wrong
    assert said == sorted(said, reverse=True)
    assert "labels are wrong (95 % interval" in str(found)
    few = inrun.wrong_labels(Valued(odd, 3), range(60), seen(loss))
    assert few.count is None
    assert "cannot be told: samples have 3 visits" in str(few)
    flat = inrun.wrong_labels(Valued(rng.random(200) < 0.5, 8), range(60), seen(rng.random(200)))
    assert flat.count is None
    assert flat.table["probability"].null_count == 140
    assert "memorised" in str(flat)
    with pytest.raises(MisuseError, match="0 of the planted ids"):
        inrun.wrong_labels(Valued(odd, 8), [], seen(loss))
