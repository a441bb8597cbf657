"""One cell: a training run, and at chosen steps `inrun`'s values beside two games played out.

*Own slots*: every coalition is a step with the sum of its members' gradient shares, all others as
they are. *Left out*: every coalition is a step with the gradient of the loss of its members' rows
alone, as if the others had not been in the batch. Both with the optimizer's real steps from the
same state, the past as one more player, and all 2^(B + 1) coalitions.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import inrun
from benchmarks.interaction.losses import TASKS, Batch, Net
from benchmarks.keyed import Keyed
from inrun.optim import copies
from inrun.truth import StepGame, agreement, shapley_values
from inrun.utility import take_rows

SAMPLES, ROWS, VALIDATION = 6, 48, 30
STEPS = (10, 30)
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=3e-3),
}
Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class Setting(Keyed):
    """A loss, an optimizer and a seed."""

    loss: str
    optimizer: str
    seed: int = 0


class Cell:
    """A training run that stops at the checked steps."""

    def __init__(self, setting: Setting):
        self.task = TASKS[setting.loss]
        generator = torch.Generator().manual_seed(setting.seed)
        everything = self.task.data(generator, ROWS + VALIDATION)
        self.data = take_rows(everything, list(range(ROWS)))
        torch.manual_seed(setting.seed)
        self.model = self.task.build().double()
        self.optimizer = OPTIMIZERS[setting.optimizer](self.model.parameters())
        held_out = take_rows(everything, list(range(ROWS, ROWS + VALIDATION)))
        self.utility = inrun.Utility(self.loss, held_out)

    def loss(self, net: Net, batch: Batch) -> Tensor:
        """What training minimises."""
        total, count = self.task.loss(net, batch)
        return total / max(count, 1)

    def run(self) -> list[dict[str, Any]]:
        """A record per checked step."""
        records = []
        for step in range(1, max(STEPS) + 1):
            first = (step - 1) * SAMPLES % ROWS
            batch = take_rows(self.data, list(range(first, first + SAMPLES)))
            if step in STEPS:
                records.append({"step": step} | self._check(batch))
            self.model.zero_grad()
            self.loss(self.model, batch).backward()
            self.optimizer.step()
        return records

    def _check(self, batch: Batch) -> dict[str, Any]:
        values = self._values(batch)
        after = copies(self.model, [self.optimizer])
        with torch.no_grad():
            after[0](batch[0])  # games judge with the running statistics that the step leaves
        shares = own_shares(self.model, self.loss, batch)
        whole = self._gradient(batch, range(SAMPLES), kept_count=True)
        for name, share in shares.items():  # the shares of a step are parts of its gradient
            assert torch.allclose(share.sum(0), whole[name], rtol=1e-9, atol=1e-12), name
        games = {"own slots": StepGame(*after, shares, self.utility).exact()[:, 0]}
        for name, kept in (("left out", True), ("left out, divided anew", False)):
            games[name] = self._left_out(after, batch, kept_count=kept)
        return {
            "values": values.tolist(),
            "truths": {name: truth.tolist() for name, truth in games.items()},
            "agreement": {n: agreement(values, truth)._asdict() for n, truth in games.items()},
        }

    def _values(self, batch: Batch) -> np.ndarray:
        model, twins = copies(self.model, [self.optimizer])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that samples interact
            attribution = inrun.attach(
                model,
                twins,
                self.utility,
                options=inrun.Options(progress=False, self_test=False),
                **self.task.options,
            )
            with attribution.batch(range(SAMPLES)):
                self.loss(model, batch).backward()
            twins[0].step()
        attribution.detach()
        return np.array(attribution.values().sort_by("sample_id")["value"].to_pylist())

    def _left_out(self, after: Any, batch: Batch, *, kept_count: bool) -> np.ndarray:
        """Shapley values of the game whose coalitions are rows of the batch."""
        past, table = 1 << SAMPLES, np.zeros(2 << SAMPLES)
        for coalition in range(past):
            rows = [i for i in range(SAMPLES) if coalition >> i & 1]
            gradient = self._gradient(batch, rows, kept_count=kept_count)
            one = StepGame(*after, {n: g[None] for n, g in gradient.items()}, self.utility)
            table[coalition], table[coalition | past] = one.utility(0b01)[0], one.utility(0b11)[0]
        return shapley_values(table)[:SAMPLES]

    def _gradient(self, batch: Batch, rows: Any, *, kept_count: bool) -> Gradients:
        """Of the loss of these rows, over the whole batch's count or over their own."""
        model, _ = copies(self.model, [self.optimizer])
        named = dict(model.named_parameters())
        chosen = list(rows)
        if not chosen:
            return {name: torch.zeros_like(p) for name, p in named.items()}
        if len(chosen) == 1 and any(isinstance(m, nn.BatchNorm1d) for m in model):
            total, count = self.task.loss(model, take_rows(batch, chosen * 2))
            total, count = total / 2, count // 2  # twice the same row has its own statistics
        else:
            total, count = self.task.loss(model, take_rows(batch, chosen))
        if kept_count:
            count = self.task.loss(model, batch)[1]
        loss = total / max(count, 1)
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        return {
            name: torch.zeros_like(p) if g is None else g
            for (name, p), g in zip(named.items(), found, strict=True)
        }


def own_shares(model: nn.Sequential, loss: Any, batch: Batch) -> Gradients:
    """What passes through each sample's own rows, (B, *shape) by parameter.

    Every sample gets its own copy of the weights; the gradient of sample i's copy is its share.
    """
    weights = {
        name: p.detach().expand(SAMPLES, *p.shape).clone().requires_grad_()
        for name, p in model.named_parameters()
    }

    def net(x_BI: Tensor) -> Tensor:
        for path, layer in model.named_children():
            if isinstance(layer, nn.Linear):
                x_BI = torch.einsum("boi,bi->bo", weights[f"{path}.weight"], x_BI)
                x_BI = x_BI + weights.get(f"{path}.bias", 0)
            elif isinstance(layer, nn.BatchNorm1d):
                plain = F.batch_norm(x_BI, None, None, training=True, eps=layer.eps)
                x_BI = plain * weights[f"{path}.weight"] + weights[f"{path}.bias"]
            else:
                x_BI = layer(x_BI)
        return x_BI

    found = torch.autograd.grad(loss(net, batch), list(weights.values()))
    return dict(zip(weights, found, strict=True))


def measure(key: str) -> list[dict[str, Any]]:
    """The records of the cell of that name."""
    return Cell(Setting.of(key)).run()
