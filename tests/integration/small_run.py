"""A small training with a store, for tests of what is stored."""

import torch
import torch.nn.functional as F
from torch import nn

import inrun
from tests.settings import flat

ROWS = 32


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


class SmallRun:
    """A linear model on 60 rows; 8 of them in each step."""

    def __init__(
        self, folder, names=("b", "c"), seed=0, resume=False, block_visits=None, **options
    ):
        torch.manual_seed(seed)
        self.x, self.y = torch.randn(60, 5), torch.randint(3, (60,))
        self.model = nn.Linear(5, 3)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        targets = {
            name: (self.x[ROWS + 8 * k : ROWS + 8 * k + 8], self.y[ROWS + 8 * k : ROWS + 8 * k + 8])
            for k, name in enumerate(names)
        }
        self.attribution = inrun.attach(
            self.model,
            self.optimizer,
            inrun.Utility(loss_fn, targets=targets),
            store=folder,
            resume=resume,
            **flat(progress=False, **options),
        )
        if block_visits:
            self.attribution._record._folder._block_visits = block_visits

    def step(self, ids, rows=None):
        rows = torch.as_tensor(list(ids) if rows is None else rows)
        with self.attribution.batch(ids):
            loss_fn(self.model, (self.x[rows], self.y[rows])).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def run(self, steps=6):
        for step in range(steps):
            self.step([(5 * step + i) % ROWS for i in range(8)])
        return self

    def end(self):
        """Detached; its values."""
        self.attribution.detach()
        return self.attribution.values()
