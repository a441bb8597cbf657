"""Loops that leave no place for a `with` around forward and backward: the same values."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import inrun
from inrun.errors import MisuseError

ROWS = torch.arange(32).split(8)


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


class Net(nn.Module):
    """A network that computes its middle a second time, in the way that is asked for."""

    def __init__(self, reentrant=None):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.norm, self.reentrant = nn.LayerNorm(8), reentrant

    def body(self, h):
        return torch.tanh(self.norm(self.middle(h)))

    def forward(self, x):
        h = self.first(x)
        if self.reentrant is None:
            h = self.body(h)
        else:
            h = checkpoint(self.body, h, use_reentrant=self.reentrant)
        return self.last(h)


def run(loop, capture="hold", build=Net, optimizer=torch.optim.AdamW, **setting):
    torch.manual_seed(0)
    model = build().double()
    x, y = torch.randn(48, 6).double(), torch.randint(3, (48,))
    optimizer = optimizer(model.parameters(), lr=1e-2, **setting)
    utility = inrun.Utility(loss_fn, (x[32:], y[32:]))
    attribution = inrun.attach(
        model, optimizer, utility, options=inrun.Options(capture=capture, progress=False)
    )
    for rows in ROWS:
        loop(model, optimizer, attribution, rows, (x[rows], y[rows]))
    attribution.detach()
    return attribution


def values(*args, **kwargs):
    return run(*args, **kwargs).values()["value"].to_numpy()


def plain(model, optimizer, attribution, rows, batch):
    with attribution.batch(rows):
        loss_fn(model, batch).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    optimizer.zero_grad()


def opened(model, optimizer, attribution, rows, batch):
    attribution.open_batch(rows)
    loss = loss_fn(model, batch)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    with torch.enable_grad():
        (loss.detach() * model.last.weight.sum()).item()  # what a logger may do: not training
    optimizer.step()
    optimizer.zero_grad()


def closed(model, optimizer, attribution, rows, batch):
    def closure():
        optimizer.zero_grad()
        with attribution.batch(rows):
            loss = loss_fn(model, batch)
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        return loss

    assert optimizer.step(closure) > 0


@pytest.mark.parametrize("capture", ["hold", "stream"])
@pytest.mark.parametrize("loop", [opened, closed])
def test_open_blocks_and_closures_are_plain_blocks(loop, capture):
    np.testing.assert_array_equal(values(loop, capture), values(plain, capture))


def test_accumulation_in_open_blocks():
    def in_parts(model, optimizer, attribution, rows, batch):
        for part in torch.arange(8).split(4):
            attribution.open_batch(rows[part])
            (loss_fn(model, (batch[0][part], batch[1][part])) / 2).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()

    np.testing.assert_allclose(values(in_parts), values(plain), rtol=1e-9, atol=1e-15)


def test_an_open_block_without_a_backward_pass_is_an_error_at_the_step():
    def forgetful(model, optimizer, attribution, rows, batch):
        attribution.open_batch(rows)
        loss_fn(model, batch)
        optimizer.step()

    with pytest.raises(MisuseError, match=r"loss\.backward"):
        run(forgetful)


def test_a_block_that_failed_is_given_up_and_the_next_one_counts():
    def failing(model, optimizer, attribution, rows, batch):
        attribution.open_batch(rows)
        loss_fn(model, batch)
        attribution.close_batch(failed=True)
        plain(model, optimizer, attribution, rows, batch)

    np.testing.assert_array_equal(values(failing), values(plain))


def test_a_closure_that_is_called_twice_in_a_step_is_refused():
    class Twice(torch.optim.SGD):
        def step(self, closure=None):
            closure()
            return super().step(closure)

    def displacement(gradient, weight, state, group):
        return group["lr"] * gradient

    inrun.optim.register(Twice, displacement)
    with pytest.raises(MisuseError, match="second time in one step"):
        run(closed, optimizer=Twice)


@pytest.mark.parametrize("capture", ["hold", "stream"])
@pytest.mark.parametrize("loop", [plain, opened])
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpoints_change_nothing(reentrant, loop, capture):
    found = run(loop, capture, build=lambda: Net(reentrant))
    assert found.covered == 1.0
    assert set(found.coverage()["owners"].to_pylist()) == {"followed"}
    np.testing.assert_allclose(
        found.values()["value"].to_numpy(), values(plain, capture), rtol=1e-9, atol=1e-15
    )
