"""Bergson's MAGIC: its own trainer runs our batches, and goes back through them once per query."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torchopt
from bergson.magic import BackwardState, DataStream, Trainer
from bergson.magic.cli import compute_query_gradients
from bergson.utils.math import weighted_causal_lm_ce
from datasets import Dataset
from torch import Tensor, nn
from torchopt.pytree import tree_iter

from benchmarks.tools.frame import BETAS, DECAY, EPSILON, LENGTH, Clock, Frame, Said, answer

EPSILON_ROOT = 1e-17  # its default: inside Adam's root, which has no slope at 0 without it
SAVED = "sqrt"  # its default: as many checkpoints as the root of the steps


class Weighted(nn.Module):
    """The model with their loss on top, in which each sample has a weight."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, labels: Tensor, **rest: Tensor) -> Tensor:
        """The batch's loss."""
        loss: Tensor = weighted_causal_lm_ce(self.model(input_ids), labels, **rest)
        return loss


def values(frame: Frame, folder: Path) -> Said:
    """One training, and per query one way back through it."""
    clock = Clock()
    model = Weighted(frame.model())
    optimizer = torchopt.adamw(
        lambda _: frame.rate, betas=BETAS, eps=EPSILON, eps_root=EPSILON_ROOT, weight_decay=DECAY
    )
    trainer, state = Trainer.initialize(model, optimizer)
    stream = _stream(frame)
    saved = str(folder / "checkpoints")
    state = trainer.train(state, stream, inplace=True, save_dir=saved, save_mode=SAVED)
    trained = clock.look()
    final = state.to("cpu").detach_()
    found = []
    for query in frame.queries:
        state.detach_()
        state.copy_(final.to("cpu"))
        gradients, _ = compute_query_gradients(state, model, _asked(query))
        state.detach_()
        stream.requires_grad = True
        nothing = [torch.zeros_like(t) for t in tree_iter(state.opt_state)
                   if isinstance(t, Tensor) and t.is_floating_point()]  # fmt: skip
        back = BackwardState(gradients, nothing, torch.zeros_like(stream.weights))
        back = trainer.backward(
            saved, stream, back, state, cleanup=False, inplace=True, save_mode=SAVED
        )
        found.append(-back.weight_grads.detach().double().numpy())
    seconds = {"": trained, "MAGIC": clock.look()}
    return Said({"MAGIC": np.stack(found, 1)}, seconds, _plain(final.params))


def _stream(frame: Frame) -> DataStream:
    """Every step's rows one after another; a sample's weight is one number in all its visits."""
    ids = torch.cat(frame.batches)
    rows = {"input_ids": frame.words[ids].tolist(), "doc_ids": [[i] * LENGTH for i in ids.tolist()]}
    size = len(frame.batches[0])
    return DataStream(Dataset.from_dict(rows), size, weight_shape=(len(frame.words),))


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("model."): p for name, p in state.items()}


def _asked(query: Tensor) -> DataStream:
    return DataStream(Dataset.from_dict({"input_ids": [query.tolist()]}), 1)


if __name__ == "__main__":
    answer(values)
