"""A low rank is admitted by a comparison of something, and tried again where something jumps."""

import pytest
import torch

from inrun.factors import LowRankContraction, Outer
from tests.unit.factors.test_contraction import cheap, directions, normal, outer, step

B, T, M, N, K = 4, 40, 48, 64, 2


def off(found, dense):
    return float((found - dense).norm() / dense.norm())


@pytest.fixture(autouse=True)
def thin(monkeypatch):
    cheap(monkeypatch)


def test_a_step_in_which_nothing_moves_admits_no_rank():
    low, factor, Q = LowRankContraction(), outer(), directions(30, noise=0.5)
    for _ in range(12):
        step(low, factor, 0.0 * Q)
        assert low.describe("w") == "dense"
    for _ in range(20):
        assert off(step(low, factor, Q), factor.contract(Q)) < 0.01


def test_a_parameter_that_nothing_reached_is_not_admitted_by_the_others():
    """A zero-initialised branch, a group whose rate is 0 for now: shares or directions of 0."""
    low, factor, hard = LowRankContraction(), outer(), directions(30, noise=0.5, seed=7)
    nothing = Outer(0 * normal(B, T, M), normal(B, T, N))
    for count in range(30):
        live = count >= 10
        low.contract("easy", [factor], directions(4))
        (found,) = low.contract("late", [factor if live else nothing], hard)
        (thawed,) = low.contract("thawed", [factor], hard * live)
        low.end_step()
        if live:
            assert off(found, factor.contract(hard)) < 0.01
            assert off(thawed, factor.contract(hard)) < 0.01


@pytest.mark.parametrize("jump", [10.0, 1e6])
def test_a_jump_of_size_is_met_in_the_same_step(jump):
    low, factor = LowRankContraction(), outer()
    easy, hard = directions(4), directions(30, noise=0.5, seed=7)
    for _ in range(8):
        low.contract("large", [factor], easy)
        low.contract("small", [factor], hard / (1e3 * jump))
        low.end_step()
    assert low.describe("small").startswith("rank 16")
    for _ in range(20):
        dense = factor.contract(easy) + factor.contract(hard / 1e3 * jump)
        found = low.contract("large", [factor], easy)[0]
        found = found + low.contract("small", [factor], hard / 1e3 * jump)[0]
        low.end_step()
        assert off(found, dense) < 0.02


def test_other_directions_of_the_same_size_are_met_in_the_same_step():
    low, factor = LowRankContraction(), outer()
    for _ in range(8):
        step(low, factor, directions(4))
    assert low.describe("w").startswith("rank 16")
    for _ in range(20):
        Q = directions(30, noise=0.5, seed=7)
        Q = Q * (directions(4).norm() / Q.norm())
        assert off(step(low, factor, Q), factor.contract(Q)) < 0.01


def test_a_part_in_the_values_that_grows_without_a_jump_is_noticed():
    """The others' contributions vanish, and what was a small error of all is a large one."""
    low, factor = LowRankContraction(), outer()
    easy, hard = directions(4), directions(30, noise=0.5, seed=7) * 1e-4
    wrong = 0
    for count in range(40):
        large = 1.0 if count < 10 else 0.0
        low.contract("large", [factor], easy * large)
        (found,) = low.contract("small", [factor], hard)
        low.end_step()
        wrong += count >= 10 and off(found, factor.contract(hard)) > 0.01
    assert wrong <= 1  # the step in which it shows


@pytest.mark.parametrize("rank", [2, 8])
def test_a_fixed_rank_is_dense_first_and_says_its_error(rank):
    low, factor = LowRankContraction(rank=rank), outer()
    Q = directions(30, noise=0.5)
    for count in range(12):
        found, dense = step(low, factor, Q), factor.contract(Q)
        assert torch.equal(found, dense) == (count < 4)
        if count >= 4:
            told = float(low.describe("w").split("error ")[1].split("%")[0]) / 100
            real = max(off(found[:, k], dense[:, k]) for k in range(K))
            assert 0.5 < told / real < 2


def test_the_error_is_the_worst_targets_in_its_own_units():
    factor = outer()
    easy = directions(4)[:1]
    hard = directions(30, noise=0.5, seed=7)[:1]
    Q = torch.cat([easy, 1e-3 * hard])  # what is wrong in the small target is nothing to the other
    fixed, free = LowRankContraction(rank=16), LowRankContraction()
    for _ in range(20):
        found = step(fixed, factor, Q)
        close = step(free, factor, Q)
    dense = factor.contract(Q)
    told = float(fixed.describe("w").split("error ")[1].split("%")[0]) / 100
    assert 0.5 < told / off(found[:, 1], dense[:, 1]) < 2
    assert off(close[:, 1], dense[:, 1]) < 0.01


def test_a_target_that_was_nothing_is_tried_when_it_is_something():
    low, factor = LowRankContraction(), outer()
    easy, hard = directions(4), directions(30, noise=0.5, seed=7)
    for count in range(30):
        Q = torch.stack([easy[0], hard[0] * (count >= 10)])
        found = step(low, factor, Q)
        if count >= 10:
            assert off(found[:, 1], factor.contract(Q)[:, 1]) < 0.01


def test_what_is_remembered_goes_on_from_a_checkpoint():
    one, other, factor = LowRankContraction(), LowRankContraction(), outer()
    for count in range(30):
        if count == 17:
            other.restore(*one.state())
        Q = directions(8, noise=1e-3, seed=3) * (1.0 if count < 22 else 50.0)
        found = step(one, factor, Q)
        if count >= 17:
            assert torch.equal(found, step(other, factor, Q))
            assert one.describe("w") == other.describe("w")
