"""Each estimator is its formula, written out with the optimizer's own state, float64."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inrun
from inrun.directions import ESTIMATORS, Path, PathSmoothed, direction_of
from inrun.directions._smoothed import balanced_orders
from inrun.errors import MisuseError
from inrun.optim import moves, rule_for
from inrun.truth import shapley_values
from tests.oracles import shares as oracle
from tests.oracles.shapley import shapley

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
            self.model,
            self.optimizer,
            inrun.Utility(self.loss, torch.arange(10, 30)),
            estimator=estimator,
            options=inrun.Options(smoothed_steps=0, progress=False),
        )
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


class Smoothed:
    """A first step of AdamW or Muon, as `path-smoothed` sees it."""

    def __init__(self, kind, samples, shape=(4, 3)):
        torch.manual_seed(0)
        self.p = nn.Parameter(torch.randn(shape).double())
        optimizer = kind([self.p], lr=LR)
        self.shares_B = torch.randn(samples, *shape).double()
        self.p.grad = self.shares_B.sum(0)
        ((_, self.move),) = moves(optimizer, rule_for(optimizer))
        self.gradient_K = torch.randn(2, *shape).double()

    def values(self, order):
        return PathSmoothed().values(self.move, self.shares_B[order], self.gradient_K)

    def worth(self, members):
        """What a coalition displaces, along the gradients, (K,)."""
        moved = self.move.displacement(self.shares_B[list(members)].sum(0))
        return (self.gradient_K * moved).sum((1, 2))


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Muon], ids=lambda k: k.__name__)
@pytest.mark.parametrize("samples", [1, 5, 11])  # by coalitions; by quadrature or by orders
def test_smoothed_values_add_up_to_what_the_whole_step_is_worth(kind, samples):
    step = Smoothed(kind, samples)
    order = list(range(samples))
    values_BK = step.values(order)
    torch.testing.assert_close(values_BK.sum(0), step.worth(order) - step.worth([]))
    if samples == 5 or kind is torch.optim.AdamW:  # random orders are of places, not of samples
        turned = [*order[1:], 0]
        torch.testing.assert_close(step.values(turned), values_BK[turned])


def test_no_sample_has_no_value():
    assert Smoothed(torch.optim.AdamW, 3).values([]).shape == (0, 2)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Muon], ids=lambda k: k.__name__)
def test_few_samples_are_smoothed_exactly(kind):
    """Shapley's value of the update, by the definition."""
    step = Smoothed(kind, 4)
    table = {
        members: step.worth(members)
        for size in range(5)
        for members in itertools.combinations(range(4), size)
    }
    for target in range(2):
        worth = {members: value[target] for members, value in table.items()}
        expected = shapley({m: float(v) for m, v in worth.items()}, 4)
        torch.testing.assert_close(step.values(range(4))[:, target], expected)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Muon], ids=lambda k: k.__name__)
def test_more_samples_are_smoothed_nearly(kind):
    step = Smoothed(kind, 10, (20, 15))
    table = torch.stack([step.worth([i for i in range(10) if c >> i & 1]) for c in range(2**10)])
    exact = shapley_values(table.numpy())
    found = step.values(range(10)).numpy()
    assert np.corrcoef(found.ravel(), exact.ravel())[0, 1] > 0.9


def test_balanced_orders_put_every_sample_in_every_place_equally_often():
    orders = np.array(balanced_orders(7, 48))
    assert len(orders) >= 48
    counts = [np.bincount(column, minlength=7) for column in orders.T]
    assert (np.array(counts) == len(orders) // 7).all()


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
