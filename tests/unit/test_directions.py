"""Each estimator is its formula, written out with the optimizer's own state, float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inrun
from inrun.directions import ESTIMATORS, Path, direction_of
from inrun.errors import MisuseError
from inrun.optim import moves, rule_for
from tests.oracles import shares as oracle

LR, B1, B2, EPS, CLIP = 1e-2, 0.9, 0.99, 1e-8, 0.3


class Step:
    """The fourth AdamW step of a small network, with clipping, and all that its formulas need."""

    def __init__(self, estimator):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        self.x, self.y = torch.randn(30, 4).double(), torch.randint(3, (30,))
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=LR, betas=(B1, B2), eps=EPS, weight_decay=0.1
        )
        self.attribution = inrun.attach(
            self.model, self.optimizer, inrun.Utility(self.loss, torch.arange(10, 30)),
            estimator=estimator, smoothed_steps=0, progress=False,
        )  # fmt: skip
        self.named = dict(self.model.named_parameters())
        for _ in range(3):
            self.take()
        self.before = self.attribution.values()["value"].to_numpy()

    def loss(self, model, rows):
        return F.cross_entropy(model(self.x[rows]), self.y[rows])

    def validation_gradient(self):
        found = torch.autograd.grad(self.loss(self.model, slice(10, 30)), self.named.values())
        return dict(zip(self.named, found, strict=True))

    def take(self, look=lambda k: None):
        with self.attribution.batch(range(6)):
            self.loss(self.model, list(range(6))).backward()
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), CLIP))
        look(min(1.0, CLIP / (norm + 1e-6)))
        self.optimizer.step()
        self.optimizer.zero_grad()

    def values_and(self, formula):
        """(values of the step, what the formula gives for its shares)."""
        seen = {}

        def look(k):
            seen["shares"] = oracle.shares(
                self.model, lambda m, rows: k * self.loss(m, rows) / 6, 6, self.named
            )
            seen["opening"] = self.validation_gradient()
            seen["state"] = {
                n: {key: t.clone() for key, t in self.optimizer.state[p].items()}
                for n, p in self.named.items()
            }
            seen["g"] = {n: p.grad.clone() for n, p in self.named.items()}

        self.take(look)
        seen["closing"] = self.validation_gradient()
        expected = sum(
            seen["shares"][n].reshape(6, -1) @ formula(n, seen).flatten() for n in self.named
        )
        return self.attribution.values()["value"].to_numpy() - self.before, expected.numpy()


def adam(m, v, g, t=4):
    """u(g): Adam's update direction."""
    m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g * g
    return m / (1 - B1**t) / ((v / (1 - B2**t)).sqrt() + EPS)


def moments(name, seen):
    return seen["state"][name]["exp_avg"], seen["state"][name]["exp_avg_sq"]


def sgd(name, seen):
    return LR * seen["opening"][name]


def linearized(name, seen):
    _, v = moments(name, seen)
    c, a = (1 - B1) / (1 - B1**4), (v / (1 - B2**3)).sqrt() + EPS
    return LR * seen["opening"][name] * c / a


def tangent(name, seen):
    m, v = moments(name, seen)
    g = seen["g"][name].requires_grad_()
    (slope,) = torch.autograd.grad(adam(m, v, g).sum(), g)
    return LR * seen["opening"][name] * slope


def path(name, seen):
    m, v = moments(name, seen)
    g = seen["g"][name]
    mean = (seen["opening"][name] + seen["closing"][name]) / 2
    return LR * mean * (adam(m, v, g) - adam(m, v, 0 * g)) / g


@pytest.mark.parametrize("formula", [sgd, linearized, tangent, path], ids=lambda f: f.__name__)
def test_values_are_the_formula(formula):
    values, expected = Step(formula.__name__).values_and(formula)
    np.testing.assert_allclose(values, expected, rtol=1e-8, atol=1e-14)


def test_smoothed_values_add_up_to_what_the_whole_step_is_worth():
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(4, 3).double())
    optimizer = torch.optim.AdamW([p])
    shares_B = torch.randn(5, 4, 3).double()
    p.grad = shares_B.sum(0)
    ((_, move),) = moves(optimizer, rule_for(optimizer))
    gradient_K = torch.randn(2, 4, 3).double()
    values_BK = direction_of("path-smoothed").values(move, shares_B, gradient_K)
    moved = move.displacement(p.grad) - move.displacement(torch.zeros_like(p))
    torch.testing.assert_close(values_BK.sum(0), (gradient_K * moved).sum((1, 2)))
    alone = direction_of("path-smoothed").values(move, shares_B[[1, 0, 2, 3, 4]], gradient_K)
    torch.testing.assert_close(alone, values_BK[[1, 0, 2, 3, 4]])


def test_every_estimator_goes_by_its_name():
    assert all(direction_of(name).name == name for name in ESTIMATORS)
    with pytest.raises(MisuseError, match="'shapley' is not one of path"):
        direction_of("shapley")


def test_a_direction_of_ones_own_is_taken_as_it_is():
    class Twice(Path):
        name = "twice"

        def gradient(self, at, move):
            return 2 * super().gradient(at, move)

    direction = Twice()
    assert direction_of(direction) is direction
