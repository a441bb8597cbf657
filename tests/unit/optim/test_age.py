"""Whether an optimizer acts like a sign follows from how many gradients its size is made of."""

import pytest
import torch
from torch import optim

from inrun.optim import moves, rule_for
from tests.integration.runs import agreement

STEPS = 60


def ages(kind, **options):
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer, found = kind([p], **options), []
    for step in range(STEPS):
        p.grad = torch.full_like(p, 1.0 + step % 3)
        ((_, move),) = moves(optimizer, rule_for(optimizer))
        found.append(move.age())
        optimizer.step()
    return found


@pytest.mark.parametrize("kind", [optim.Adam, optim.AdamW, optim.NAdam, optim.Adamax])
def test_a_long_window_is_as_old_as_it_has_steps(kind):
    assert ages(kind, betas=(0.9, 0.999))[:11] == list(range(11))


@pytest.mark.parametrize(
    ("kind", "options", "most"),
    [
        (optim.AdamW, {"betas": (0.9, 0.9)}, 9), (optim.AdamW, {"betas": (0.9, 0.5)}, 1),
        (optim.Adam, {"betas": (0.9, 0.0)}, 0), (optim.NAdam, {"betas": (0.9, 0.8)}, 4),
        (optim.RMSprop, {"alpha": 0.5}, 1), (optim.RMSprop, {"alpha": 0.9}, 9),
        (optim.Adadelta, {"rho": 0.5}, 1), (optim.Adamax, {"betas": (0.9, 0.5)}, 1),
        (optim.Rprop, {}, 0),
    ],
)  # fmt: skip
def test_a_short_window_never_grows_old(kind, options, most):
    found = ages(kind, **options)
    assert max(found) == most
    assert found == sorted(found)


def test_what_forgets_nothing_or_divides_by_nothing():
    assert ages(optim.Adagrad) == list(range(STEPS))
    assert ages(optim.AdamW, betas=(0.9, 0.5), amsgrad=True) == list(range(STEPS))
    assert set(ages(optim.SGD, lr=0.1, momentum=0.9)) == {None}
    assert ages(optim.RAdam, betas=(0.9, 0.999))[:8] == [None] * 5 + [5, 6, 7]
    assert set(ages(optim.RAdam, betas=(0.9, 0.5))) == {None}
    assert ages(optim.Adafactor)[:5] == [0, 1, 1, 2, 3]


SHORT = {
    "AdamW, b2=0.5": lambda m: optim.AdamW(m.parameters(), lr=3e-3, betas=(0.9, 0.5)),
    "AdamW, b2=0.9": lambda m: optim.AdamW(m.parameters(), lr=3e-3, betas=(0.9, 0.9)),
    "RMSprop, alpha=0.5": lambda m: optim.RMSprop(m.parameters(), lr=3e-3, alpha=0.5),
    "Adadelta, rho=0.5": lambda m: optim.Adadelta(m.parameters(), lr=1.0, rho=0.5),
}


@pytest.mark.parametrize("name", SHORT)
def test_late_steps_through_a_short_window_are_exact_shapley_values(name):
    found, run = agreement("mlp", "path", "shared", (30, 45), optimizer=SHORT[name])
    assert min(r for _, r, _ in found) > 0.997
    assert set(run.attribution.ledger()["estimator"].to_pylist()) == {"path-smoothed"}
