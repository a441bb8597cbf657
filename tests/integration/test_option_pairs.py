"""Every pair of options on a tiny run: it runs and its books close, or it is refused and told why.

Closing is exact by the books' own definition of the residual only where the residual is computed
from the entries; what is asked here beyond that is that a step's visits add up to its entry
`samples`, that no number is NaN without a note, and that training is bit for bit as without inrun.
"""

import functools
import itertools
import warnings

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inrun
from inrun.errors import InRunError, InRunWarning
from tests.settings import flat

STEPS, BATCH = 4, 4

OPTIONS = {
    "estimator": ["path-given", "path-smoothed", "sgd", "sgd-second", "linearized", "tangent"],
    "scoring": [
        inrun.EveryStep(validation_parts=2), inrun.EveryStep(validation_every=2),
        inrun.Sampled(2), inrun.Sampled(0.5), inrun.Budget(0.5),
    ],
    "momentum_window": [2],
    "capture": ["offload", "stream"],
    "contraction": ["dense"],
    "smoothed_steps": [0],
    "held_in": ["cpu"],
    "self_test": [False],
    "process_group": [None],
    "store": [True],
    "optimizer": ["SGD", "NAdam", "RMSprop", "Adadelta", "two"],
    "targets": [True],
    "batch_size": [3],
    "draws": [2],
    "blocks": [2],
    "clip": ["norm", "value"],
    "unattributed": [True],
    "freeze": [True],
    "audit": [True],
    "slots": [True],
}  # fmt: skip

TRAINS = ("optimizer", "blocks", "clip", "unattributed", "freeze")  # what training itself has
VALUES = [(name, value) for name, values in OPTIONS.items() for value in values]
PAIRS = [(a, b) for a, b in itertools.combinations(VALUES, 2) if a[0] != b[0]]


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def model_of():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3)).double()


def optimizers_of(model, kind):
    parameters = [p for p in model.parameters() if p.requires_grad]
    if kind == "two":
        halves = (parameters[:2], parameters[2:])
        return [torch.optim.AdamW(halves[0], lr=1e-2), torch.optim.SGD(halves[1], lr=1e-2)]
    return [getattr(torch.optim, kind)(parameters, lr=1e-2)]


def utility_of(data, chosen):
    x, y = data[0][16:], data[1][16:]
    how = {name: chosen[name] for name in ("batch_size", "draws") if name in chosen}
    if "targets" in chosen:
        return inrun.Utility(loss_fn, targets={"a": (x[:6], y[:6]), "b": (x[6:], y[6:])}, **how)
    return inrun.Utility(loss_fn, (x, y), **how)


def trained(data, chosen, tmp_path, *, attached):
    model = model_of()
    if "freeze" in chosen:
        model[0].weight.requires_grad_(False)
    optimizers = optimizers_of(model, chosen.get("optimizer", "AdamW"))
    attribution = None
    if attached:
        direct = ("estimator", "scoring", "momentum_window")
        own = ("capture", "contraction", "smoothed_steps", "held_in", "self_test", "process_group")
        how = {name: chosen[name] for name in (*direct, *own) if name in chosen}
        if "store" in chosen:
            how["store"] = tmp_path / "run"
        attribution = inrun.attach(
            model, optimizers, utility_of(data, chosen), **flat(progress=False, **how)
        )
        if "audit" in chosen:
            attribution.audit(seconds=60, steps=STEPS, groups=3)
    for step in range(STEPS):
        for block in range(chosen.get("blocks", 1)):
            ids = [(BATCH * (step + block) + i) % 16 for i in range(BATCH)]
            if attribution is None:
                loss_fn(model, (data[0][ids], data[1][ids])).backward()
                continue
            slots = torch.arange(BATCH) if "slots" in chosen else None
            with attribution.batch(ids, slots=slots):
                loss_fn(model, (data[0][ids], data[1][ids])).backward()
        if "unattributed" in chosen:
            penalty = 1e-3 * sum(p.square().sum() for p in model.parameters() if p.requires_grad)
            if attribution is None:
                penalty.backward()
            else:
                with attribution.unattributed():
                    penalty.backward()
        if chosen.get("clip") == "norm":
            nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        elif chosen.get("clip") == "value":
            nn.utils.clip_grad_value_(model.parameters(), 0.02)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return model, attribution


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(28, 5, generator=generator, dtype=torch.float64),
        torch.randint(3, (28,), generator=generator),
    )


@pytest.fixture(scope="module")
def plainly(data):
    """The model that training comes to without inrun, once for all pairs with the same settings."""

    @functools.cache
    def model(settings):
        return trained(data, dict(settings), None, attached=False)[0]

    return lambda chosen: model(tuple((name, chosen[name]) for name in TRAINS if name in chosen))


def check(model, plain, attribution):
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    attribution.detach()
    entries = ("samples", "momentum", "weight_decay", "unattributed", "other")
    for row in attribution.ledger().to_pylist():
        numbers = [row[name] for name in (*entries, "residual", "opening_loss", "closing_loss")]
        if not np.isfinite(numbers).all():
            assert row["note"], row
            continue
        explained = sum(row[name] for name in (*entries, "residual"))
        fall = (row["opening_loss"] - row["closing_loss"]) * row["weight"]
        assert explained == pytest.approx(fall, abs=1e-9), row
    totals = attribution.values()["value"].to_numpy()
    ledger = attribution.ledger()
    if "target" in ledger.column_names:
        ledger = ledger.filter(pc.equal(ledger["target"], "total"))
    booked = sum(ledger["samples"].to_pylist())
    if "paid_out" in ledger.column_names:
        booked += sum(paid or 0.0 for paid in ledger["paid_out"].to_pylist())
    assert totals.sum() == pytest.approx(booked, abs=1e-9)


def excluded(chosen):
    """Whether it is refused: 52 of the pairs are, and no other."""
    window, estimator, capture, optimizer = (
        chosen.get(name) for name in ("momentum_window", "estimator", "capture", "optimizer")
    )
    fewer_steps = isinstance(chosen.get("scoring"), (inrun.Sampled, inrun.Budget))
    forgets = optimizer in ("RMSprop", "Adadelta")
    if window:
        return bool(estimator or fewer_steps or capture == "stream" or forgets)
    if capture == "stream" and estimator in ("path-given", "path-smoothed", "sgd-second"):
        return True
    if estimator == "linearized" and (forgets or optimizer == "NAdam"):
        return True
    return "held_in" in chosen or (capture == "stream" and chosen.get("clip") == "value")


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "-".join(f"{n}={v}" for n, v in pair))
def test_a_pair_of_options_runs_with_closed_books_or_is_refused(pair, data, plainly, tmp_path):
    chosen = dict(pair)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InRunWarning)
        try:
            model, attribution = trained(data, chosen, tmp_path, attached=True)
        except InRunError as error:
            said = str(error)
            assert excluded(chosen), said
            assert len(said) > 40, said  # why, and what to do instead
            assert said.rstrip().endswith((".", ")", '"', "'")), said
            return
    assert not excluded(chosen)
    check(model, plainly(chosen), attribution)
