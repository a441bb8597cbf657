"""Online selection by really taking the steps: slow and obviously right, float64.

The coming step is taken on the candidates with a weight on each, the later steps on given batches,
and the validation loss is read at the end. Nothing is expanded, held or carried back.
"""

import copy

import torch
from torch import nn


class TakenSteps:
    """A live model and optimizer, whose coming step is tried out on copies.

    `terms(model, rows)` gives each row's loss; a step's loss is their weighted mean. `judge(model)`
    is the validation loss.
    """

    def __init__(self, model, optimizer, terms, judge, clip=None):
        self.model, self.optimizer, self.terms = model, optimizer, terms
        self.judge, self.clip = judge, clip

    def step(self, model, optimizer, rows, weights):
        optimizer.zero_grad()
        w = torch.as_tensor(weights, dtype=torch.float64)
        (w @ self.terms(model, rows) / w.sum()).backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), self.clip)
        optimizer.step()

    def loss(self, rows, weights, later=()):
        """The validation loss after the step on these rows and one on each of the later batches."""
        model, optimizer = copy.deepcopy((self.model, self.optimizer))
        self.step(model, optimizer, rows, weights)
        for batch in later:
            self.step(model, optimizer, batch, [1.0] * len(batch))
        with torch.no_grad():
            return float(self.judge(model))

    def slopes(self, rows, weights, later=(), h=1e-6):
        """d loss / d weight of each row, by central differences."""
        found = []
        for i in range(len(rows)):
            sides = []
            for sign in (1, -1):
                moved = list(weights)
                moved[i] += sign * h
                sides.append(self.loss(rows, moved, later))
            found.append((sides[0] - sides[1]) / (2 * h))
        return torch.tensor(found, dtype=torch.float64)

    def greedy(self, rows, places, later=()):
        """Places filled one by one, free ones counting as filled by the average of those left."""
        chosen = []
        while len(chosen) < places:
            fill = (places - len(chosen)) / (len(rows) - len(chosen))
            weights = [1.0 if i in chosen else fill for i in range(len(rows))]
            slopes = self.slopes(rows, weights, later)
            slopes[chosen] = torch.inf
            chosen.append(int(slopes.argmin()))
        return sorted(chosen)
