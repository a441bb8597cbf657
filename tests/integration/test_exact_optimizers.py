"""Values beside exact Shapley values for every optimizer, float64: `path` follows the real rule."""

import lion_pytorch
import numpy as np
import pytest
import pytorch_optimizer
import schedulefree
from torch import nn, optim

from inrun.ledger import residual_shares
from tests.integration import runs

STEPS = (8, 11, 14, 17, 20)


def schedule_free(model):
    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=2.5e-3)
    optimizer.train()
    return optimizer


def of(kind, **options):
    return lambda model: kind(model.parameters(), **options)


SMOOTH = {
    "adadelta": of(optim.Adadelta, lr=1.0),
    "adafactor": of(optim.Adafactor, lr=1e-2),
    "adagrad": of(optim.Adagrad, lr=1e-2),
    "adamax": of(optim.Adamax, lr=2e-3),
    "asgd": of(optim.ASGD, lr=0.1),
    "lamb": of(pytorch_optimizer.Lamb, lr=1e-3),
    "nadam": of(optim.NAdam, lr=1e-3),
    "radam": of(optim.RAdam, lr=1e-3),
    "rmsprop": of(optim.RMSprop, lr=1e-3),
    "rmsprop-centered": of(optim.RMSprop, lr=1e-3, centered=True, momentum=0.9),
    "schedule-free": schedule_free,
    "sgd": of(optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
}
SIGNS = {
    "lion": of(lion_pytorch.Lion, lr=1e-4),
    "rprop": of(optim.Rprop, lr=1e-4, step_sizes=(1e-6, 1e-3)),
}
if hasattr(optim, "Muon"):
    SIGNS["muon"] = of(optim.Muon, lr=0.02)


@pytest.fixture(autouse=True)
def matrices_only(monkeypatch):
    """Muon takes nothing else."""

    def bare():
        return nn.Sequential(nn.Linear(12, 16, bias=False), nn.ReLU(), nn.Linear(16, 4, bias=False))

    monkeypatch.setitem(runs.RUNS, "matrices", (bare, runs.clusters(12), runs.classify))


def agreements(optimizer, **options):
    found, run = runs.agreement("matrices", "path", "shared", STEPS, optimizer=optimizer, **options)
    return [r for _, r, _ in found], residual_shares(run.attribution.ledger())[4:]


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_rules_need_no_smoothing(name):
    r, residuals = agreements(SMOOTH[name], smoothed_steps=0)
    assert np.median(r) >= 0.999, r
    assert min(r) >= 0.98, r
    assert np.median(residuals) <= 0.01


@pytest.mark.parametrize("name", SIGNS)
@pytest.mark.parametrize("samples", [6, 9])  # by every coalition, and by an estimate of them
def test_signs_are_right_when_smoothed(name, samples):
    r, residuals = agreements(SIGNS[name], samples=samples)
    assert np.median(r) >= 0.98, r
    assert np.median(residuals) <= 0.01
