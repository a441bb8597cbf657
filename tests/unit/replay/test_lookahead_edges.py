"""Look-ahead where a run holds more than plain steps: edits are refused, weight_norm is right."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import inrun
from inrun.errors import InvariantError
from inrun.utility import differentiable_twice
from tests.integration.runs import classify
from tests.oracles.trajectories import Training
from tests.unit.replay import test_lookahead as plain


def loop(edit, when="after", steps=3, kind=torch.optim.AdamW):
    """A recorded loop in which `edit(model, optimizer)` runs after each step or before it."""
    torch.manual_seed(0)
    x, y = torch.randn(12, 4).double(), torch.randint(3, (12,))
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    optimizer = kind(model.parameters(), lr=1e-2)

    def losses(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none") / 4

    def fetch(ids):
        return x[list(ids)], y[list(ids)]

    recorder = inrun.record(model, optimizer, losses, fetch)
    for step in range(steps):
        ids = range(4 * step, 4 * step + 4)
        with recorder.batch(ids):
            losses(model, fetch(ids)).sum().backward()
        if when == "before" and step:
            edit(model, optimizer)
        optimizer.step()
        optimizer.zero_grad()
        if when == "after":
            edit(model, optimizer)
    return recorder.finish()


@torch.no_grad()
def clamp(model, optimizer):
    model[0].weight.clamp_(-0.1, 0.1)


@torch.no_grad()
def normalise_rows(model, optimizer):
    model[2].weight.data /= model[2].weight.data.norm(dim=1, keepdim=True)


def move_past_the_counters(model, optimizer):
    model[0].bias.data.add_(1e-12)


@torch.no_grad()
def swap_rows(model, optimizer):
    model[0].weight.copy_(model[0].weight.flip(0))


def empty_a_moment(model, optimizer):
    for state in optimizer.state.values():
        state["exp_avg"].zero_()


def forget_moments(model, optimizer):
    optimizer.state.clear()


def add_a_group(model, optimizer):
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2).double())]})


EDITS = [clamp, normalise_rows, move_past_the_counters, swap_rows, empty_a_moment, forget_moments,
         add_a_group]  # fmt: skip


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_an_edit_between_two_steps_is_refused(edit, when):
    with pytest.raises(InvariantError, match=r"besides optimizer\.step\(\) changed"):
        loop(edit, when)


@pytest.mark.parametrize("edit", EDITS[:-1], ids=lambda edit: edit.__name__)
def test_an_edit_after_the_last_step_is_refused(edit):
    with pytest.raises(InvariantError, match=r"after step 1"):
        loop(edit, steps=1)


@torch.no_grad()
def there_and_back(model, optimizer):
    kept = [p.clone() for p in model.parameters()]
    for p, before in zip(model.parameters(), kept, strict=True):
        p.zero_()
        p.copy_(before)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_weights_that_are_put_back_are_no_edit(kind):
    assert len(loop(there_and_back, kind=kind).steps) == 3


def normed(dim):
    def build():
        return nn.Sequential(
            weight_norm(nn.Linear(12, 16), dim=dim),
            nn.Tanh(),
            weight_norm(nn.Linear(16, 4), dim=dim),
        )

    return build


@pytest.mark.parametrize("dim", [0, 1, None])
def test_look_ahead_through_weight_norm_is_training_again(dim):
    made = plain.training("mlp", plain.momentum)
    train = Training(normed(dim), plain.momentum, classify, made.data, made.batches)
    found = inrun.lookahead(plain.recorded(train), plain.utility(train), removal="drop")
    samples = range(plain.SAMPLES)
    wanted = plain.truth(train, samples, [plain.STEPS], "drop")[plain.STEPS]
    plain.close(plain.values_of(found, samples), wanted)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_weight_norm_has_its_right_second_derivative(dim):
    torch.manual_seed(0)
    v = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    size = {0: (4, 1), 1: (1, 3), -1: ()}[dim]
    g = torch.rand(size, dtype=torch.float64).add(0.5).requires_grad_()
    with differentiable_twice():
        assert torch.equal(
            torch._weight_norm(v, g, dim), v * (g / torch.norm_except_dim(v, 2, dim))
        )
        assert torch.autograd.gradgradcheck(lambda v, g: torch._weight_norm(v, g, dim), (v, g))


def test_sgd_second_through_weight_norm_is_the_real_curvature():
    torch.manual_seed(0)
    model = weight_norm(nn.Linear(3, 2)).double()
    x = torch.randn(6, 3).double()
    utility = inrun.Utility(lambda m, b: m(b).pow(2).mean(), x)
    parameters = dict(model.named_parameters())
    along = {n: torch.randn_like(p) for n, p in parameters.items()}
    found = inrun.utility.curvature(utility, model, parameters, along)
    sides = []
    for sign in (1, -1):
        with torch.no_grad():
            for n, p in parameters.items():
                p.add_(along[n], alpha=sign * 1e-5)
        sides.append(inrun.utility.evaluate(utility, model, parameters).gradients)
        with torch.no_grad():
            for n, p in parameters.items():
                p.sub_(along[n], alpha=sign * 1e-5)
    for n in parameters:
        torch.testing.assert_close(
            found[n], (sides[0][n] - sides[1][n]) / 2e-5, rtol=1e-6, atol=1e-8
        )


def test_visits_of_an_accumulated_step_are_in_the_order_of_its_blocks():
    train = plain.training("mlp", blocks=3)
    found = inrun.lookahead(plain.recorded(train), plain.utility(train)).visits()
    expected = [
        (number, sample)
        for number, blocks in enumerate(train.batches, start=1)
        for block in blocks
        for sample in block
    ]
    steps, ids = (found[n].to_pylist() for n in ("step", "sample_id"))
    assert list(zip(steps, ids, strict=True)) == expected
