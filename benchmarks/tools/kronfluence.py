"""Kronfluence: EK-FAC of the linear layers, on the model as training ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch import Tensor, nn
from torch.utils.data import Dataset

from benchmarks.tools.frame import Clock, Frame, Said, answer, row_losses


class Language(Task):
    """The next word's loss; for the factors, of words that the model draws itself."""

    def compute_train_loss(self, batch: Tensor, model: nn.Module, sample: bool = False) -> Tensor:
        """Summed over the batch."""
        logits = model(batch)
        if not sample:
            return row_losses(logits, batch).sum()
        z = logits[:, :-1].flatten(0, 1)
        drawn = z.detach().softmax(-1).multinomial(1).flatten()
        return F.cross_entropy(z, drawn, reduction="sum") / (batch.shape[1] - 1)

    def compute_measurement(self, batch: Tensor, model: nn.Module) -> Tensor:
        """The queries' loss, summed."""
        return row_losses(model(batch), batch).sum()


class Rows(Dataset[Tensor]):
    """Rows of words."""

    def __init__(self, words: Tensor):
        self.words = words

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, row: int) -> Tensor:
        return self.words[row]


def values(frame: Frame, folder: Path) -> Said:
    """Factors once, then the scores by each damping."""
    clock, said, task = Clock(), Said({}, {}), Language()
    model = prepare_model(frame.model(frame.finished), task)
    analyzer = Analyzer("tools", model, task, cpu=True, output_dir=str(folder), disable_tqdm=True)
    rows, asked = Rows(frame.words), Rows(frame.queries)
    analyzer.fit_all_factors(
        "ekfac", rows, per_device_batch_size=64, factor_args=FactorArguments(strategy="ekfac")
    )
    said.seconds[""] = clock.look()
    for name, damping in DAMPINGS.items():
        analyzer.compute_pairwise_scores(
            f"{damping}", "ekfac", asked, rows, per_device_query_batch_size=20,
            per_device_train_batch_size=64, score_args=ScoreArguments(damping_factor=damping),
        )  # fmt: skip
        scores: dict[str, Any] = analyzer.load_pairwise_scores(f"{damping}")
        found: np.ndarray = scores["all_modules"].double().numpy().T
        said.values[f"EK-FAC, {name}"] = found
        said.seconds[f"EK-FAC, {name}"] = clock.look()
    return said


DAMPINGS = {"its own damping": None, "damping 1e-06": 1e-6}

if __name__ == "__main__":
    answer(values)
