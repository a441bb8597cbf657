"""Optimizers that leave version counters as they are: what a step holds is of its own weights."""

import numpy as np
import pytest
import torch
from torch import nn

import inrun
from tests.oracles.fused_heads import LigerFusedLinearCrossEntropyFunction

WORDS, STEPS, B = 13, 6, 4


class Tied(nn.Module):
    """Embeddings that are the weights of a fused head, too."""

    def __init__(self):
        super().__init__()
        self.table, self.hidden = nn.Embedding(WORDS, 6), nn.Linear(6, 6)

    def forward(self, tokens):
        hidden = torch.tanh(self.hidden(self.table(tokens[:, :-1])))
        head = LigerFusedLinearCrossEntropyFunction.apply
        found = head(hidden.flatten(0, 1), self.table.weight, tokens[:, 1:].flatten())
        return found[0] if isinstance(found, tuple) else found


def trained(*, fused, **options):
    torch.manual_seed(0)
    model = Tied().double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=fused)
    tokens = torch.randint(WORDS, (B * STEPS + 8, 5))
    utility = inrun.Utility(lambda m, batch: m(batch), tokens[B * STEPS :])
    settings = inrun.Options(progress=False, smoothed_steps=0)
    attribution = inrun.attach(model, optimizer, utility, options=settings, **options)
    for ids in torch.arange(B * STEPS).split(B):
        with attribution.batch(ids):
            model(tokens[ids]).backward()
        optimizer.step()
        optimizer.zero_grad()
    attribution.detach()
    return attribution


@pytest.mark.parametrize("window", [0, 3])
def test_a_fused_optimizers_values_are_those_of_one_that_counts_versions(window):
    """With a momentum window, earlier steps hold copies of earlier weights of the head."""
    found, wanted = (
        trained(fused=fused, momentum_window=window).values()["value"].to_numpy()
        for fused in (True, False)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12 * np.abs(wanted).max())
