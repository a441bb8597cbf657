"""An audit that can find a wrong owner: its truth is not made of the shares that it judges."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inrun
from inrun.errors import InRunWarning, MisuseError
from inrun.owners import Map
from inrun.owners._entries import Entries
from inrun.truth import _group_shares
from tests.integration.test_owner_checks import (
    RIGHT,
    WRONG,
    B,
    Net,
    believed,
    data,
    loss_fn,
)
from tests.settings import flat

ALWAYS = {"seconds": 1e6, "steps": 1, "groups": 6}  # a check at each step, groups of one sample


def audited(build, batch, *, steps=4, loss=loss_fn, micro=1, groups=6, **options):
    torch.manual_seed(0)
    model = build().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    held_out = tuple(t[20:] for t in batch)
    attribution = inrun.attach(
        model,
        optimizer,
        inrun.Utility(loss, held_out),
        **flat(progress=False, smoothed_steps=0, **options),
    )
    audit = attribution.audit(**ALWAYS | {"groups": groups})
    for step in range(steps):
        for part in range(micro):
            rows = [(step * B + part * 3 + i) % 20 for i in range(B)]
            with attribution.batch(rows):
                (loss(model, tuple(t[rows] for t in batch)) / micro).backward()
        optimizer.step()
        optimizer.zero_grad()
    return audit


def column(audit, name):
    return audit.table()[name].to_pylist()


@pytest.fixture
def no_checks(monkeypatch):
    """The audit alone."""
    monkeypatch.setattr("inrun.capture._owner_checks.OwnerChecks._wants_lone", False)
    monkeypatch.setattr("inrun.capture._owner_checks.MOST_SEQUENCES", 0)


def by_captured_shares(monkeypatch):
    """The audit as it would be without samples' own gradients."""
    monkeypatch.setattr(_group_shares, "own_gradients", lambda *_: ({}, "not checked: a test"))


def rolled_entries(monkeypatch):
    meant = Entries._map_of

    def rolled_by_one(self, t):
        m = meant(self, t)
        return m if m is None or m.shape[0] != B else Map(m.codes.roll(1, 0))

    monkeypatch.setattr(Entries, "_map_of", rolled_by_one)


@pytest.mark.parametrize("capture", ["hold", "stream"])
@pytest.mark.parametrize("micro", [1, 2])
@pytest.mark.parametrize("name", RIGHT)
def test_of_a_right_model_owners_are_checked_and_nothing_is_said(name, micro, capture):
    build, batch = RIGHT[name]
    audit = audited(build, batch(), capture=capture, micro=micro, groups=4)
    assert set(audit.table()["owners"].to_pylist()) == {"checked"}
    assert max(audit.table()["share_error"].to_pylist()) < 1e-9
    assert "Owners" not in {cause.name for cause in audit.report().causes}
    assert min(column(audit, "pearson")) > 0.99
    assert f"{'whose gradient is whose':<38} checked" in str(audit.report())


@pytest.mark.usefixtures("no_checks")
@pytest.mark.parametrize("name", [*WRONG, "entries rolled by one"])
def test_a_wrong_owner_is_found_where_captured_shares_certify_it(monkeypatch, name):
    build = Net
    if name in WRONG:
        operation, rule, build, _ = WRONG[name]
        believed(monkeypatch, operation, rule)
    else:
        rolled_entries(monkeypatch)
        warnings.simplefilter("ignore", InRunWarning)  # of rows in another order
    found = audited(build, data())
    with monkeypatch.context() as patched:
        by_captured_shares(patched)
        certified = audited(build, data())
    assert min(column(certified, "pearson")) > 0.999
    assert min(column(certified, "relative_error")) < 0.05
    assert np.median(column(found, "pearson")) < 0.95
    assert min(column(found, "relative_error")) > 0.1
    (cause,) = [c for c in found.report().causes if c.name == "Owners"]
    assert "4 of 4 checks" in cause.evidence
    assert "Owners" not in {c.name for c in certified.report().causes}
    assert "not checked: a test" in str(certified.report())


@pytest.mark.usefixtures("no_checks")
def test_a_wrong_owner_is_found_under_dropout(monkeypatch):
    believed(monkeypatch, "tanh", WRONG["two exchanged"][1])
    audit = audited(lambda: Net(nn.Dropout(0.3)), data())
    assert set(audit.table()["owners"].to_pylist()) == {"checked"}
    assert np.median(column(audit, "pearson")) < 0.95
    assert "Owners" in {cause.name for cause in audit.report().causes}


def test_samples_that_interact_in_the_model_are_not_judged_one_by_one():
    class Batchwise(Net):
        def forward(self, x):
            h = torch.tanh(self.a(x))
            return self.h(h - h.mean(0))

    with pytest.warns(InRunWarning, match="interact"):
        audit = audited(Batchwise, data())
    assert all("interact" in text for text in audit.table()["owners"].to_pylist())
    assert "not checked: samples interact" in str(audit.report())


def test_what_is_used_beyond_the_models_call_is_said():
    class Tempered(Net):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.3))

    def tempered(model, batch):
        return F.cross_entropy(model(batch[0]) * model.scale, batch[1])

    audit = audited(Tempered, data(), loss=tempered)
    assert set(audit.table()["owners"].to_pylist()) == {
        "checked, but not scale (1 in all), which is used beyond the model's call too"
    }
    assert max(audit.table()["share_error"].to_pylist()) < 1e-9


def test_a_model_that_draws_its_batch_size_is_not_judged():
    class Sized(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def forward(self, x, rows):
            return self.net(x).reshape(rows, -1)

    def sized(model, batch):
        return F.cross_entropy(model(batch[0], len(batch[0])), batch[1])

    audit = audited(Sized, data(), loss=sized)
    assert "the number 6" in audit.table()["owners"].to_pylist()[0]


def test_a_model_that_cannot_be_copied_is_told_with_the_way_out():
    class Keeps(Net):
        def forward(self, x):
            self.last = torch.tanh(self.a(x))
            return self.h(self.last)

    with pytest.warns(InRunWarning, match=r"The audit ended.*'last'.*detach"):
        audit = audited(Keeps, data())
    with pytest.raises(MisuseError, match=r"'last'.*detach") as caught:
        audit.report()
    assert "seconds" not in str(caught.value)


def test_an_older_run_says_that_owners_were_not_checked():
    audit = audited(Net, data())
    for row in audit.rows:
        del row["owners"], row["share_error"]
    assert "older version" in str(audit.report())


def test_truth_of_own_gradients_is_that_of_captured_shares_where_those_are_right(monkeypatch):
    own = audited(Net, data())
    by_captured_shares(monkeypatch)
    shares = audited(Net, data())
    for one, two in zip(own.table().to_pylist(), shares.table().to_pylist(), strict=True):
        np.testing.assert_allclose(one["truth"], two["truth"], rtol=1e-9, atol=1e-15)
