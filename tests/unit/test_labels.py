"""Label doubts: what they are made of, and what must not change them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inrun.errors import MisuseError
from inrun.uses import class_harm, label_doubts


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
    found = label_doubts(*given_)
    doubts, suggested = slow(*given_)
    np.testing.assert_allclose(found.doubt, doubts, atol=1e-12)
    np.testing.assert_array_equal(found.suggested, suggested)


def test_a_suggestion_is_never_the_label():
    harm, labels, losses, p = draw(200, 4, 0)
    assert (label_doubts(harm, labels, losses, p).suggested != labels).all()


def test_the_size_of_values_and_losses_does_not_matter():
    harm, labels, losses, p = draw(50, 4, 1)
    sizes = np.random.default_rng(0).uniform(0.1, 9, (50, 1))
    plain, scaled = (
        label_doubts(h, labels, x, p) for h, x in ((harm, losses), (sizes * harm, losses**3))
    )
    np.testing.assert_allclose(plain.doubt, scaled.doubt)
    np.testing.assert_array_equal(plain.suggested, scaled.suggested)


def test_inputs_are_left_as_they_were():
    given_ = draw(20, 3, 2)
    before = [part.copy() for part in given_]
    label_doubts(*given_)
    for now, then in zip(given_, before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_samples_without_values_are_doubted_by_loss_and_probability():
    harm, labels, losses, p = draw(30, 3, 3)
    found = label_doubts(np.zeros_like(harm), labels, losses, p)
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
        label_doubts(harm[:, :2], labels, losses, p)
