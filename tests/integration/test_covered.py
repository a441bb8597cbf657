"""What is covered is a share of the update, not of the gradient."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inrun

pytestmark = pytest.mark.filterwarnings("ignore:.*not captured:")


class Hiding(nn.Module):
    """Its scale is used where no share can be seen, and its gradient is small."""

    def __init__(self):
        super().__init__()
        self.inner, self.scale = nn.Linear(4, 3), nn.Parameter(torch.ones(3))

    def forward(self, x):
        x = self.inner(x) * 1e3
        if not self.training:
            return x * 1e-3 * self.scale
        return torch.vmap(lambda row: row * self.scale)(x * 1e-3)


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_the_share_is_that_of_what_the_gradients_moved(kind):
    torch.manual_seed(0)
    model = Hiding()
    x, y = 30 * torch.randn(12, 4), torch.randint(3, (12,))  # inner has by far the larger gradient
    optimizer = kind(model.parameters(), lr=1e-3)
    attribution = inrun.attach(
        model, optimizer, inrun.Utility(loss_fn, (x, y)), options=inrun.Options(progress=False)
    )
    for _ in range(3):
        with attribution.batch(range(12)):
            loss_fn(model, (x, y)).backward()
        idle = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
        other = kind(idle.values(), lr=1e-3)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for p in idle.values():
            p.grad = torch.zeros_like(p)
        gradients = {n: float(p.grad.square().sum()) for n, p in model.named_parameters()}
        other.step()
        optimizer.step()
        optimizer.zero_grad()
        moved = {
            n: float((p.detach() - idle[n].detach()).square().sum())
            for n, p in model.named_parameters()
        }
    total = sum(moved.values())
    rows = {r["parameter"]: r for r in attribution.coverage().to_pylist()}
    for name, size in moved.items():
        assert rows[name]["update_share"] == pytest.approx(size / total, rel=1e-2, abs=1e-6)
    assert attribution.covered == pytest.approx(1 - moved["scale"] / total, rel=1e-2)
    of_gradient = 1 - gradients["scale"] / sum(gradients.values())
    if kind is torch.optim.AdamW:
        assert attribution.covered < of_gradient - 0.05


def test_all_is_covered_where_there_is_no_gap():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    x, y = torch.randn(12, 4), torch.randint(3, (12,))
    optimizer = torch.optim.AdamW(model.parameters())
    attribution = inrun.attach(
        model, optimizer, inrun.Utility(loss_fn, (x, y)), options=inrun.Options(progress=False)
    )
    assert attribution.covered == 1.0
    with attribution.batch(range(12)):
        loss_fn(model, (x, y)).backward()
    optimizer.step()
    assert attribution.covered == 1.0
    assert sum(attribution.coverage()["update_share"].to_pylist()) == pytest.approx(1.0)
