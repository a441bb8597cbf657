"""What is told from the state after a step is what would have been read before it."""

import numpy as np
import pytest
import torch
from torch import nn

import inrun
from inrun.directions import Path

STEPS = 24


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


def train(optimizer_of, clip):
    """Values (steps, samples) and books of a small language model whose words are mostly rare."""
    torch.manual_seed(0)
    rare = (torch.rand(400, 7) ** 4 * 90).long()  # low numbers often, high ones hardly ever
    x, y = rare[:, :-1], rare[:, 1:]
    model = nn.Sequential(nn.Embedding(90, 12), nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 90))
    optimizer = optimizer_of(model.parameters())
    utility = inrun.Utility(loss_fn, (x[320:], y[320:]))
    with inrun.attach(
        model,
        optimizer,
        utility,
        options=inrun.Options(smoothed_steps=0, contraction="dense", progress=False),
    ) as attribution:
        for ids in torch.arange(8 * STEPS).split(8):
            with attribution.batch(ids):
                loss_fn(model, (x[ids], y[ids])).backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
    values = attribution.values().sort_by("sample_id")["value"].to_numpy()
    return values.reshape(-1, 8), attribution.ledger().to_pandas()


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"maximize": True}], ids=str)
def test_values_formed_after_the_step_are_those_read_before_it(options, clip, monkeypatch):
    def optimizer_of(parameters):
        return torch.optim.AdamW(parameters, lr=1e-3, **options)

    used, really = [], Path.formed_after_step
    monkeypatch.setattr(
        Path, "formed_after_step", lambda *a, **k: used.append(1) or really(*a, **k)
    )
    after, books = train(optimizer_of, clip)
    assert len(used) == STEPS * 5  # every parameter in every step
    monkeypatch.setattr(Path, "forms_after_step", lambda self, move: False)
    read, expected = train(optimizer_of, clip)
    error = np.linalg.norm(after - read, axis=1) / np.linalg.norm(read, axis=1)
    assert np.median(error) < 1e-4  # single precision, through a root of what is nearly all new
    assert error.max() < 1e-2
    entries = ["samples", "momentum", "weight_decay", "residual"]
    size = expected[entries].abs().sum(axis=1)
    difference = (books[entries] - expected[entries]).abs().max(axis=1)
    assert (difference < 1e-2 * size).all()
