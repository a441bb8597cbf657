"""One cell: totals by windows beside those of every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import Tensor, nn

import inrun
from benchmarks import data
from benchmarks.keyed import Keyed

STEPS, BATCH = 300, 32
VOCABULARY, LENGTH = 500, 24  # of the language model


@dataclass(frozen=True)
class Setting(Keyed):
    """`task` 'digits' or 'gpt'; `steps` of a window, 'auto', or 'every' for exact values."""

    task: str
    rate: float
    steps: str
    seed: int = 0


class Task(NamedTuple):
    """A model, its loss of a batch, and rows of which the last judge."""

    model: nn.Module
    loss: Callable[[nn.Module, Any], Tensor]
    rows: tuple[Tensor, ...]
    training: int


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def _words(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
    return model(input_ids=batch[0], labels=batch[0]).loss


def _gpt(layers: int, width: int, vocabulary: int, length: int) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary, n_positions=length, n_embd=width, n_layer=layers,
            n_head=max(1, width // 64), resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def task_of(setting: Setting) -> Task:
    """What is trained, from its start."""
    torch.manual_seed(setting.seed)
    if setting.task == "gpt":
        return Task(
            _gpt(2, 64, VOCABULARY, LENGTH), _words, (data.brown(VOCABULARY, LENGTH)[:900],), 850
        )
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))[:1500]
    rows = torch.tensor(pixels[order] / 16, dtype=torch.float32), torch.tensor(labels[order])
    model = nn.Sequential(
        nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10)
    )
    return Task(model, _loss, rows, 1200)


def scoring_of(steps: str) -> inrun.EveryStep | inrun.Window:
    """What `attach` is given."""
    if steps == "every":
        return inrun.EveryStep()
    return inrun.Window("auto" if steps == "auto" else int(steps))


def _trained(setting: Setting) -> inrun.Attribution:
    """A run of the setting; what it attributed."""
    task = task_of(setting)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=setting.rate)
    utility = inrun.Utility(task.loss, tuple(t[task.training :] for t in task.rows))
    attribution = inrun.attach(task.model, optimizer, utility, scoring=scoring_of(setting.steps))
    draw = torch.Generator().manual_seed(setting.seed)
    for _ in range(STEPS):
        ids = torch.randint(0, task.training, (BATCH,), generator=draw)
        with attribution.batch(ids):
            task.loss(task.model, tuple(t[ids] for t in task.rows)).backward()
        optimizer.step()
        optimizer.zero_grad()
    attribution.detach()
    return attribution


def agreement(setting: Setting) -> dict[str, Any]:
    """Totals of a run in windows beside those of the same run with every step scored."""
    exact = _trained(replace(setting, steps="every"))
    found = _trained(setting)
    a, b = (r.values().sort_by("sample_id")["value"].to_numpy() for r in (found, exact))
    small = np.abs(b) <= np.quantile(np.abs(b), 0.99)
    return {
        "pearson": float(np.corrcoef(a, b)[0, 1]),
        "pearson_trimmed": float(np.corrcoef(a[small], b[small])[0, 1]),
        "spearman": float(spearmanr(a, b)[0]),
        "sum_ratio": float(a.sum() / b.sum()),
        "steps": float(np.mean([window["steps"] for window in found.windows])),
        "cosine": float(np.mean([window["cosine"] for window in found.windows])),
    }


def measure(key: str) -> dict[str, Any]:
    """A cell by its name."""
    return agreement(Setting.of(key.partition(": ")[2]))
