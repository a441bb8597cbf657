"""A sample's effect on later losses, by training again: slow and obviously right, float64.

The training is written out here once more, with a weight on every sample's loss term. What a sample
does to first order is the central difference of the loss afterwards in that weight.
"""

import torch
from torch import nn


class Training:
    """A recipe: everything that decides how a run goes, and nothing that is left from one.

    `batches[step]` is a list of blocks, each a list of sample ids. The training loss of a block is
    the mean over its rows, divided by the number of blocks.
    """

    def __init__(self, build, optimizer, terms, data, batches, clip=None, seed=0):
        self.build, self.optimizer, self.terms, self.data = build, optimizer, terms, data
        self.batches, self.clip, self.seed = batches, clip, seed

    def start(self):
        torch.manual_seed(self.seed)
        model = self.build().double()
        return model, self.optimizer(model)

    def fetch(self, ids):
        return tuple(t[torch.as_tensor(ids)] for t in self.data)

    def losses(self, model, batch):
        """Terms that add up to the training loss; every step has as many blocks as the first."""
        return self.terms(model, *batch) / (len(batch[0]) * len(self.batches[0]))

    def run(self, weights, renormalise=False):
        """The models after each step, with these weights ({id: weight}, 1 where missing)."""
        model, optimizer = self.start()
        for blocks in self.batches:
            optimizer.zero_grad()
            for ids in blocks:
                w = torch.tensor([weights.get(i, 1.0) for i in ids], dtype=torch.float64)
                terms = self.losses(model, self.fetch(ids))
                (w @ terms / (w.mean() if renormalise else 1.0)).backward()
            if self.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), self.clip)
            optimizer.step()
            yield model

    def slope(self, sample, judge, states, renormalise=False, h=2e-7):
        """d judge / d weight of the sample, at each of the states (n: after n steps).

        The difference is as small as float64 allows: Adam's first step is nearly a sign, so an
        element whose gradient is small next to the sample's is straight only over a short way.
        """
        sides = []
        for sign in (1, -1):
            losses = {}
            trained = self.run({sample: 1 + sign * h}, renormalise)
            for state, model in enumerate(trained, start=1):
                if state in states:
                    with torch.no_grad():
                        losses[state] = float(judge(model))
            sides.append(losses)
        return {s: (sides[0][s] - sides[1][s]) / (2 * h) for s in states}

    def record(self, recorder_of):
        """The same training as a user would write it, recorded."""
        model, optimizer = self.start()
        recorder = recorder_of(model, optimizer)
        for blocks in self.batches:
            for ids in blocks:
                with recorder.batch(ids):
                    loss = self.terms(model, *self.fetch(ids)).mean() / len(blocks)
                    loss.backward()
            if self.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), self.clip)
            optimizer.step()
            optimizer.zero_grad()
        return recorder.finish()
