"""How many labels are wrong, by planted flips: covered where it is told, and not told elsewhere."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

import inrun
from inrun.errors import MisuseError
from inrun.uses._wrong_labels import FALSE, SEPARATED, _increasing, counted

ROWS, FLIPS = 600, 60


def drawn(wrong, apart, seed):
    """Doubts of right labels around 0, of wrong and planted ones around `apart`; normal."""
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


def stated(wrong, tail, apart):
    """Probabilities and what is wrong, of 300 rows of which 60 are planted and so many wrong.

    Doubts of all have a tail of Student's t: some right labels look wrong where it is heavy.
    """
    said, came = [], []
    for seed in range(30):
        doubt = np.random.default_rng(seed).standard_t(tail, 300)
        doubt[: 60 + wrong] += apart
        planted = np.arange(300) < 60
        found = counted(doubt, planted)
        if found.low > 0:  # elsewhere none are given
            said.append(found.probability)
            came.append((np.arange(300) < 60 + wrong)[~planted])
    return np.concatenate(said), np.concatenate(came)


def differences(said, came):
    """By probability, how much higher it is than the share that is wrong."""
    place = np.digitize(said, (0.1, 0.5, 0.9))
    assert min(np.bincount(place, minlength=4)) > 100
    return np.array([said[place == k].mean() - came[place == k].mean() for k in range(4)])


def test_probabilities_are_calibrated_where_some_right_labels_look_wrong():
    few, many = stated(24, 3, 3.5), stated(60, 3, 3.5)
    said, came = (np.concatenate(part) for part in zip(few, many, strict=True))
    assert np.abs(differences(said, came)).max() < 0.12
    assert said.sum() == pytest.approx(came.sum(), rel=0.12)


def test_probabilities_are_too_low_rather_than_too_high_where_none_do():
    said, came = stated(60, 1000, 3.0)
    assert -0.3 < differences(said, came).min() < differences(said, came).max() < 0.01
    assert 0.7 * came.sum() < said.sum() < came.sum()


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
    assert "too high" not in str(found)  # separated clearly
    assert "the count is too high where" in str(dataclasses.replace(found, separation=0.95))
    few = inrun.wrong_labels(Valued(odd, 3), range(60), seen(loss))
    assert few.count is None
    assert "cannot be told: samples have 3 visits" in str(few)
    flat = inrun.wrong_labels(Valued(rng.random(200) < 0.5, 8), range(60), seen(rng.random(200)))
    assert flat.count is None
    assert flat.table["probability"].null_count == 140
    assert "memorised" in str(flat)
    with pytest.raises(MisuseError, match="0 of the planted ids"):
        inrun.wrong_labels(Valued(odd, 8), [], seen(loss))
