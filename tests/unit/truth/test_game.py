"""The library's enumeration against the oracle's, and Shapley's axioms."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inrun
from inrun.errors import MisuseError
from inrun.truth import StepGame, agreement, sample_shares
from tests.oracles import shapley as oracle


def prepared(samples=4):
    """A model two AdamW steps in, and a batch's shares."""
    torch.manual_seed(0)
    model = nn.Linear(5, 3).double()
    x, y = torch.randn(40, 5).double(), torch.randint(3, (40,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)

    def loss(m, rows):
        return F.cross_entropy(m(x[rows]), y[rows])

    for _ in range(2):
        loss(model, slice(0, 8)).backward()
        optimizer.step()
        optimizer.zero_grad()
    shares = sample_shares(model, lambda i: loss(model, [i]) / samples, samples)
    utility = inrun.Utility(lambda m, rows: loss(m, rows), slice(20, 40))
    return model, optimizer, shares, utility


@pytest.mark.parametrize("history", ["shared", "given"])
def test_enumeration_is_the_oracles(history):
    model, optimizer, shares, utility = prepared()
    before = [p.clone() for p in model.parameters()]
    found = StepGame(model, optimizer, shares, utility, history=history).exact()
    judge = lambda m: utility.loss_fn(m, slice(20, 40))  # noqa: E731
    expected = oracle.step_values(model, optimizer, shares, judge, history)
    np.testing.assert_allclose(found[:, 0], expected.numpy(), rtol=1e-9, atol=1e-13)
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


def test_values_add_up_to_the_whole_batchs_utility():
    model, optimizer, shares, utility = prepared()
    game = StepGame(model, optimizer, shares, utility, history="given")
    everyone = game.utility(2**game.players - 1) - game.utility(0)
    np.testing.assert_allclose(game.exact().sum(0), everyone, atol=1e-14)


def test_permutations_come_near_the_exact_values_within_their_errors():
    model, optimizer, shares, utility = prepared(6)
    game = StepGame(model, optimizer, shares, utility)
    exact, sampled = game.exact(), game.permutations(400, seed=1)
    off = np.abs(sampled.values - exact) / (sampled.standard_errors + 1e-12)
    assert off.max() < 4.5
    few = game.permutations(25, seed=1)
    assert (few.standard_errors > 2 * sampled.standard_errors).all()


def test_the_shared_table_holds_the_given_game_up_to_the_past_alone():
    model, optimizer, shares, utility = prepared(3)
    shared = StepGame(model, optimizer, shares, utility).table()
    given = StepGame(model, optimizer, shares, utility, history="given").table()
    np.testing.assert_allclose(shared[2**3 :], given, atol=1e-15)


def test_groups_are_players_with_their_members_shares():
    model, optimizer, shares, utility = prepared(4)
    game = StepGame(model, optimizer, shares, utility, groups=["a", "b", "a", "b"])
    summed = {n: torch.stack([s[0] + s[2], s[1] + s[3]]) for n, s in shares.items()}
    expected = StepGame(model, optimizer, summed, utility).exact()
    assert game.players == 2
    np.testing.assert_allclose(game.exact(), expected, atol=1e-14)


def test_a_gradient_that_nobody_owns_is_in_every_coalition():
    model, optimizer, shares, utility = prepared(3)
    others = {name: share[:2] for name, share in shares.items()}
    third = {name: share[2] for name, share in shares.items()}
    with_third = StepGame(model, optimizer, shares, utility, history="given")
    always = StepGame(model, optimizer, others, utility, history="given", fixed=third)
    for coalition in range(4):
        np.testing.assert_allclose(
            always.utility(coalition), with_third.utility(coalition | 0b100), atol=1e-15
        )


def test_a_duplicate_gets_the_same_and_a_dummy_nothing():
    model, optimizer, shares, utility = prepared(3)
    doubled = {name: torch.cat([s, s[:1], 0 * s[:1]]) for name, s in shares.items()}
    values = StepGame(model, optimizer, doubled, utility).exact()[:, 0]
    assert values[0] == pytest.approx(values[3], rel=1e-9)
    assert values[4] == pytest.approx(0, abs=1e-15)


def test_too_many_players_are_refused_with_their_number():
    model, optimizer, shares, utility = prepared()
    many = {name: s[:1].expand(20, *s.shape[1:]) for name, s in shares.items()}
    with pytest.raises(MisuseError, match="21 players have 2,097,152 coalitions"):
        StepGame(model, optimizer, many, utility).exact()


def test_agreement_of_a_vector_with_itself_is_perfect():
    found = agreement(np.array([1.0, -2.0, 4.0]), np.array([1.0, -2.0, 4.0]))
    assert found == (pytest.approx(1.0), pytest.approx(1.0), 1.0, 0.0)


def test_agreement_tells_order_from_proportion():
    found = agreement(np.array([1.0, 2.0, 3.0, 100.0]), np.array([1.0, 2.0, 3.0, 4.0]))
    assert found.spearman == pytest.approx(1.0)
    assert found.pearson < 0.9
    assert np.isnan(agreement(np.ones(3), np.arange(3.0)).spearman)
