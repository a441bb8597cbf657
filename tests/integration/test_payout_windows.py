"""Momentum's window pays from the memory that there is: not from one that was emptied or edited."""

import copy
import functools
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import inrun
from inrun.errors import InRunWarning
from tests.integration.test_payout import OPTIMIZERS, Training, loss_fn, oracle

MEMORIES = ("exp_avg", "momentum_buffer")


def clear(run):
    run.optimizer.state.clear()


def load_fresh(run):
    state = run.optimizer.state_dict()
    run.optimizer.load_state_dict({**state, "state": {}})


def in_place(change):
    def edit(run):
        for state in run.optimizer.state.values():
            for name in MEMORIES:
                if isinstance(state.get(name), torch.Tensor):
                    change(state, name)

    return edit


def zero(state, name):
    state[name].zero_()


def zero_past_the_counter(state, name):
    state[name].data.zero_()


def another(state, name):
    state[name] = torch.zeros_like(state[name])


EMPTIED = {
    "clear": clear,
    "load a fresh state": load_fresh,
    "zero": in_place(zero),
    "zero past the counter": in_place(zero_past_the_counter),
    "another tensor": in_place(another),
}


def played(name, edit, steps=(4, 5), momentum_window=100, **options):
    """A run with an edit in the middle, whose warnings are collected."""
    run = Training(name, momentum_window=momentum_window, **options)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        run.run(steps[0])
        edit(run)
        run.run(steps[1])
        run.attribution.detach()
    return run, [str(w.message) for w in seen if issubclass(w.category, InRunWarning)]


@pytest.mark.parametrize("window", [2, 3, 100])
@pytest.mark.parametrize("name", ["adamw", "sgd", "nesterov", "nadam", "adamax"])
@pytest.mark.parametrize("edit", EMPTIED)
def test_an_emptied_memory_pays_nobody(name, edit, window):
    run, said = played(name, EMPTIED[edit], momentum_window=window, judged=False)
    momentum, paid = (run.attribution.ledger()[c].to_numpy() for c in ("momentum", "paid_out"))
    if window == 100:  # no gradient came before the run: all that momentum did is paid
        assert paid.sum() == pytest.approx(momentum.sum(), rel=1e-9)
    assert any("emptied, edited or loaded" in text for text in said)
    np.testing.assert_allclose(  # what steps before the edit have is what they had at it
        run.attribution.ledger()["paid_out"].to_numpy()[:4], paid_at_the_edit(name, window),
        rtol=1e-9, atol=1e-18,
    )  # fmt: skip


@functools.cache
def paid_at_the_edit(name, window):
    plain = Training(name, momentum_window=window, judged=False).run(4)
    plain.attribution.detach()
    return plain.attribution.ledger()["paid_out"].to_numpy()


def test_part_of_a_memory_that_is_emptied_ends_the_windows_of_its_parameter_alone():
    def edit(run):
        run.optimizer.state[run.model[0].weight]["exp_avg"].zero_()

    run, said = played("adamw", edit)
    momentum, paid = (run.attribution.ledger()[c].to_numpy() for c in ("momentum", "paid_out"))
    assert paid.sum() == pytest.approx(momentum.sum(), rel=1e-9)
    assert [text for text in said if "0.weight end here" in text] == said
    assert said


def test_a_state_that_is_loaded_as_it_was_ends_nothing():
    def edit(run):
        run.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))

    run, said = played("adamw", edit, momentum_window=3)
    plain, _ = played("adamw", lambda run: None, momentum_window=3)
    assert said == []
    a, b = (r.attribution.ledger()["paid_out"].to_numpy() for r in (run, plain))
    np.testing.assert_array_equal(a, b)


def freeze(model, optimizer):
    model[0].weight.requires_grad_(False)


def add_a_group(model, optimizer):
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3).double())]})


def replace_a_group(model, optimizer):
    """A new last layer, which goes by the old one's names."""
    model[2] = nn.Linear(8, 3).double()
    optimizer.param_groups[0]["params"][2:] = list(model[2].parameters())


def changed_between(name, *changes):
    """The books of a run that is changed after its 3rd step, its 6th and so on; what was said."""
    torch.manual_seed(0)
    x, y = torch.randn(80, 6).double(), torch.randint(3, (80,))
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        utility = inrun.Utility(loss_fn, (x[50:], y[50:]))
        attribution = inrun.attach(
            model,
            optimizer,
            utility,
            momentum_window=100,
            options=inrun.Options(smoothed_steps=0, progress=False),
        )
        for step in range(3 * len(changes) + 3):
            if step and step % 3 == 0:
                changes[step // 3 - 1](model, optimizer)
            ids = torch.arange(5) + 5 * step
            with attribution.batch(ids):
                loss_fn(model, (x[ids], y[ids])).backward()
            optimizer.step()
            optimizer.zero_grad()
        attribution.detach()
    said = [str(w.message) for w in seen if issubclass(w.category, InRunWarning)]
    return attribution.ledger(), said


def thaw(model, optimizer):
    model[0].weight.requires_grad_(True)


CHANGES = {
    "freeze": [freeze], "add": [add_a_group], "freeze and thaw": [freeze, thaw],
    "freeze, add, thaw": [freeze, add_a_group, thaw],
}  # fmt: skip


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("changes", CHANGES)
def test_a_frozen_parameter_or_an_added_group_ends_no_window(name, changes):
    """No gradient came before the run, so all that momentum ever did is paid."""
    books, said = changed_between(name, *CHANGES[changes])
    momentum, paid = (books[c].to_numpy() for c in ("momentum", "paid_out"))
    assert paid.sum() == pytest.approx(momentum.sum(), rel=1e-9)
    assert said == []


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_another_parameter_of_the_same_name_has_no_old_memory(name):
    books, said = changed_between(name, replace_a_group)
    momentum, paid = (books[c].to_numpy() for c in ("momentum", "paid_out"))
    assert paid.sum() == pytest.approx(momentum.sum(), rel=1e-9)
    ends = [text for text in said if "2.bias and 1 more end here" in text]
    assert ends
    assert all("Weights were changed between two" in text for text in said if text not in ends)


def test_a_step_without_a_block_says_that_it_ends_windows():
    def unscored(run):
        nn.functional.mse_loss(run.model(run.x), torch.zeros(80, 3).double()).backward()
        run.optimizer.step()
        run.optimizer.zero_grad()

    run, said = played("adamw", unscored, momentum_window=3)
    assert any("windows of" in text for text in said)
    before, after = run.owed(3), run.attribution.ledger()["paid_out"].to_numpy()
    for t in range(4):
        for s in range(4, t + 4):
            before[t] -= oracle.paid(run.steps, t, s).numpy()
    np.testing.assert_allclose(after[:4], before[:4].mean(2).sum(1), atol=1e-12)
