"""Harm profiles and label doubts: what they are made of, and what must not change them."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import inrun
from inrun.errors import MisuseError
from inrun.uses import class_harm, doubts, harm_sums
from inrun.uses._harm import repeats
from tests.integration.stored import stored_run

NAMES = ("a", "b", "c")


def draw(n, classes, seed):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(classes), n)
    return rng.normal(size=(n, classes)), rng.integers(classes, size=n), rng.exponential(size=n), p


def slow(harm, labels, losses, p):
    """The oracle: the definition, a sample and a class at a time."""
    claims, suggested = [], []
    for i, y in enumerate(labels):
        size = sum(abs(x) for x in harm[i])
        claim = {
            k: (-harm[i][k] / size if size else 0.0) + p[i][k] for k in range(len(p[i])) if k != y
        }
        best = max(claim, key=lambda k: (claim[k], -k))
        suggested.append(best)
        claims.append(claim[best] - p[i][y])

    def rank(x, among):
        below, same = sum(a < x for a in among), sum(a == x for a in among)
        return (below + (same - 1) / 2) / max(1, len(among) - 1)

    doubts = [(rank(a, losses) + rank(b, claims)) / 2 for a, b in zip(losses, claims, strict=True)]
    return np.array(doubts), np.array(suggested)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.integers(2, 5), st.integers(0, 99))
def test_doubts_are_as_defined(n, classes, seed):
    given_ = draw(n, classes, seed)
    found = doubts(*given_)
    wanted, suggested = slow(*given_)
    np.testing.assert_allclose(found.doubt, wanted, atol=1e-12)
    np.testing.assert_array_equal(found.suggested, suggested)


def test_a_suggestion_is_never_the_label():
    harm, labels, losses, p = draw(200, 4, 0)
    assert (doubts(harm, labels, losses, p).suggested != labels).all()


def test_the_size_of_values_and_losses_does_not_matter():
    harm, labels, losses, p = draw(50, 4, 1)
    sizes = np.random.default_rng(0).uniform(0.1, 9, (50, 1))
    plain, scaled = (
        doubts(h, labels, x, p) for h, x in ((harm, losses), (sizes * harm, losses**3))
    )
    np.testing.assert_allclose(plain.doubt, scaled.doubt)
    np.testing.assert_array_equal(plain.suggested, scaled.suggested)


def test_inputs_are_left_as_they_were():
    given_ = draw(20, 3, 2)
    before = [part.copy() for part in given_]
    doubts(*given_)
    for now, then in zip(given_, before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_samples_without_values_are_doubted_by_loss_and_probability():
    harm, labels, losses, p = draw(30, 3, 3)
    found = doubts(np.zeros_like(harm), labels, losses, p)
    assert np.isfinite(found.doubt).all()
    others = p.copy()
    others[np.arange(30), labels] = -1
    np.testing.assert_array_equal(found.suggested, others.argmax(1))


def test_classes_without_a_target_have_no_harm():
    found = class_harm(np.array([[1.0, 2.0]]), ("c", "a"), ("a", "b", "c"))
    np.testing.assert_array_equal(found, [[2.0, 0.0, 1.0]])


def test_shapes_that_do_not_fit_are_refused():
    harm, labels, losses, p = draw(10, 3, 4)
    with pytest.raises(MisuseError, match="shape"):
        doubts(harm[:, :2], labels, losses, p)


VISITS = pa.table(
    {
        "step": [1, 1, 2, 2],
        "sample_id": ["b", "a", "b", "a"],
        "value": [0.0, 0.0, 0.0, 0.0],
        "cats": [10.0, -30.0, 0.1, -0.3],
        "dogs": [-10.0, 30.0, -0.4, 0.0],
    }
)


class Valued:
    """The least that a run or a live attribution has."""

    targets = ("cats", "dogs")

    def values(self):
        return pa.table({"sample_id": ["a", "b"], "value": [0.0, 0.0]})

    def visits(self):
        return VISITS

    def ledger(self):
        return pa.table({"step": [1, 2]})


class OneTarget(Valued):
    targets = ("cats",)


SEEN = {
    "sample_id": ["b", "a", "never visited"],
    "label": ["cats", "cats", "birds"],
    "mean_loss": [0.3, 2.0, 1.0],
    "birds": [0.1, 0.0, 0.5],
    "cats": [0.7, 0.1, 0.3],
    "dogs": [0.2, 0.9, 0.2],
}


def test_the_most_harmed_target_is_named_in_the_order_of_ids():
    table = inrun.harm_profile(Valued()).to_arrow()
    assert table["sample_id"].to_pylist() == ["a", "b"]
    assert table["worst_target"].to_pylist() == ["cats", "dogs"]


def test_a_step_with_large_values_does_not_outweigh_the_others():
    table = inrun.harm_profile(Valued()).table
    # step 1: mean size 20, step 2: mean size 0.2
    assert table["worst_value"].to_pylist() == pytest.approx(
        [-30 / 20 - 0.3 / 0.2, -10 / 20 - 0.4 / 0.2]
    )


def test_one_target_has_no_profile():
    with pytest.raises(MisuseError, match="at least two"):
        inrun.harm_profile(OneTarget())


def test_the_label_that_everything_speaks_against_comes_first_with_the_right_one():
    table = inrun.label_doubts(Valued(), SEEN).to_arrow()
    assert table["sample_id"].to_pylist() == ["a", "b"]
    assert table["suggested_label"].to_pylist()[0] == "dogs"
    harm = class_harm(
        np.array([[-3.0, 1.5], [1.0, -2.5]]), Valued.targets, ["birds", "cats", "dogs"]
    )
    p = np.array([[0.0, 0.1, 0.9], [0.1, 0.7, 0.2]])
    wanted, suggested = slow(harm, [1, 1], [2.0, 0.3], p)
    assert (
        table["doubt_rank"].to_pylist() == [1, 2] == (np.argsort(np.argsort(-wanted)) + 1).tolist()
    )
    assert [["birds", "cats", "dogs"][k] for k in suggested] == table["suggested_label"].to_pylist()


BAD = [
    ({**SEEN, "label": None}, "what training met"),
    ({name: column[1:] for name, column in SEEN.items()}, "says nothing of the sample 'b'"),
    (
        {name: c for name, c in SEEN.items() if name != "dogs"},
        "target 'dogs' is none of the classes",
    ),
    (None, "what training met"),
]


@pytest.mark.parametrize(("seen", "message"), BAD)
def test_doubts_without_what_they_need_are_refused(seen, message):
    if seen is not None:
        seen = {name: column for name, column in seen.items() if column is not None}
    with pytest.raises(MisuseError, match=message):
        inrun.label_doubts(Valued(), seen)


def noisy_run(path, own, noise):
    """60 samples of three classes, six visits each: a sample's own harm, and noise per visit."""
    rng = np.random.default_rng(0)
    label = np.arange(60) % 3
    sample = np.concatenate([rng.permutation(60) for _ in range(6)])
    step = np.arange(360) // 12 + 1
    values = np.eye(3)[label] - 0.5  # what every sample of a label does
    values = values + own * rng.normal(size=(60, 3))
    visits = values[sample] + noise * rng.normal(size=(360, 3))
    return stored_run(path, visits, sample, step, list(range(60)), NAMES), label


@pytest.mark.parametrize(("own", "noise", "heard"), [(1.0, 0.5, True), (0.0, 2.0, False)])
def test_harm_takes_part_where_it_goes_on_as_it_began(own, noise, heard, tmp_path):
    run, label = noisy_run(tmp_path / "run", own, noise)
    p = np.random.default_rng(1).dirichlet(np.ones(3), 60)
    losses = -np.log(p[np.arange(60), label])
    seen = {"sample_id": list(range(60)), "label": [NAMES[k] for k in label], "mean_loss": losses}
    found = inrun.label_doubts(run, seen | dict(zip(NAMES, p.T, strict=True)))
    assert found.by_harm == heard
    assert ("By losses and probabilities alone" in str(found)) != heard
    harm = harm_sums(run.visits(), NAMES)[1] * heard
    expected = doubts(harm, label, losses, p)
    by_id = found.table.sort_by("sample_id")
    assert by_id["suggested_label"].to_pylist() == [NAMES[k] for k in expected.suggested]
    order = np.lexsort((np.arange(60), by_id["doubt_rank"].to_numpy()))
    assert (np.diff(expected.doubt[order]) <= 0).all()


def test_harm_of_a_run_of_one_step_takes_part(tmp_path):
    run = stored_run(
        tmp_path / "run", np.eye(3) - 0.5, np.arange(3), np.ones(3, int), [0, 1, 2], NAMES
    )
    assert repeats(run.visits(), NAMES, NAMES, {k: k for k in range(3)})
    assert repeats(run.visits().slice(3), NAMES, NAMES, {})
