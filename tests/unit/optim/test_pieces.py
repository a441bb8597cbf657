"""Work in pieces is work on the whole, for every elementwise rule and any layout."""

import pytest
import torch

from inrun.optim import _move, moves, rule_for
from tests.unit.optim.optimizers import ELEMENTWISE, give_gradients, optimizer_of


def results(case, steps=6):
    params, optimizer = optimizer_of(case)
    rule, found = rule_for(optimizer), []
    for step in range(steps):
        give_gradients(params, step)
        for _, move in moves(optimizer, rule):
            found += [move.slope().coefficient, *move.history()]
            found += move.null_directions(torch.stack([move.gradient, move.weight]), 0.3)
        optimizer.step()
    return found


@pytest.mark.parametrize("case", ELEMENTWISE, ids=lambda case: case.name)
def test_pieces_are_the_whole(case, monkeypatch):
    whole = results(case)
    monkeypatch.setattr(_move, "PIECE", 4)  # of 21 elements and of 5
    for a, b in zip(whole, results(case), strict=True):
        torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("case", ELEMENTWISE[::9], ids=lambda case: case.name)
def test_null_directions_are_the_gradients_times_the_guarded_slope(case):
    params, optimizer = optimizer_of(case)
    rule = rule_for(optimizer)
    for step, square in enumerate((0.0, 0.3, 0.0)):
        give_gradients(params, step)
        for _, move in moves(optimizer, rule):
            h, w, s = move.setting._replace(lr=1.0), move.weight, move.state
            slope = rule.null_slope(w, rule.guarded(s, h, square), h).coefficient
            slope = torch.as_tensor(slope, dtype=torch.float64).expand(w.shape)
            if square == 0 and rule.mean_square is not None:
                slope = torch.where(getattr(s, rule.mean_square) == 0, 0.0, slope)
            gradients = torch.randn(2, *w.shape, dtype=torch.float64)
            found = move.null_directions(gradients, square)
            torch.testing.assert_close(found, gradients * slope, rtol=1e-12, atol=1e-15)
        optimizer.step()


def test_other_layouts_stay_whole(monkeypatch):
    monkeypatch.setattr(_move, "PIECE", 2)
    seen = []

    def compute(arrays):
        seen.append(arrays[0].shape)
        return [arrays[0] + arrays[1], 3.0]

    plain, turned = torch.randn(4, 5), torch.randn(5, 4).T
    total, three = _move.in_pieces((plain, turned, ()), compute)
    assert seen == [(4, 5)]
    torch.testing.assert_close(total, plain + turned)
    seen.clear()
    total, three = _move.in_pieces((plain, plain, (torch.tensor(7),)), compute)
    assert len(seen) == 10
    assert three == 3.0
    torch.testing.assert_close(total, 2 * plain)
