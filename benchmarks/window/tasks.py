"""What is trained: models, data and schedules, each from its start by a setting.

`digits` is an MLP and `gpt` a small GPT-2, both at a constant rate. `wide` is a GPT-2 of 4 layers
of 384 over a whole schedule. `cnn-digits`, `cnn-mnist` and `r8` are those of
benchmarks.classification, with wrong labels. `smollm` is SmolLM2-135M with LoRA.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import cos, pi
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import inrun
from benchmarks import data
from benchmarks.classification import tasks
from benchmarks.classification.evidence import batches
from benchmarks.classification.tasks import Split, split
from benchmarks.keyed import Keyed
from benchmarks.smollm.training import RATES, Size, lora

LABELLED = {"cnn-digits": "digits", "cnn-mnist": "mnist", "r8": "r8"}
NOISE = 0.2  # of the labels of these
WARM_UP, LAST = 0.25, 0.05  # of a whole schedule: the share that rises, the factor at its end


@dataclass(frozen=True)
class Setting(Keyed):
    """A task of this file, its (highest) learning rate, and a seed of start and order."""

    task: str
    rate: float
    seed: int = 0


def grid(quick: bool) -> list[str]:
    """The cells' names."""
    rates = {
        "digits": (1e-4, 1e-3, 3e-3, 1e-2),
        **{task: (tasks.RECIPES[recipe].learning_rate,) for task, recipe in LABELLED.items()},
        "wide": (1e-4, 3e-4, 1e-3), "smollm": (RATES["lora"],), "gpt": (3e-4, 1e-3),
    }  # fmt: skip
    if quick:
        rates = {"digits": rates["digits"]}
    seeds = {"wide": 1, "smollm": 1, "gpt": 1}
    return [
        Setting(task, rate, seed).key
        for seed in range(1 if quick else 3)
        for task, each in rates.items()
        for rate in each
        if seed < seeds.get(task, 3)
    ]


@dataclass(frozen=True)
class Task:
    """A model before its first step, and all that its training meets.

    `fetch`: ids of samples -> their batch; `factors`: of the rate, by step; `split`: of data with
    wrong labels.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[nn.Module, Any], Tensor]
    fetch: Callable[[Tensor], Any]
    utility: inrun.Utility
    order: Sequence[Tensor]
    factors: Sequence[float] = field(default=())
    clip: float | None = None
    split: Split | None = None


def task_of(setting: Setting) -> Task:
    """What is trained, from its start."""
    torch.manual_seed(setting.seed)
    return _labelled(setting) if setting.task in LABELLED else MADE[setting.task](setting)


def _labelled(setting: Setting) -> Task:
    chosen = split(LABELLED[setting.task], NOISE, setting.seed)
    torch.manual_seed(setting.seed)
    model = chosen.recipe.build().train()
    order = list(batches(chosen, torch.arange(chosen.recipe.training), setting.seed))
    return Task(
        model, tasks.optimizer_of(model, chosen.recipe), tasks.loss_fn, chosen.fetch,
        inrun.Utility(tasks.weighted_loss, chosen.whole), order, split=chosen,
    )  # fmt: skip


def _of_rows(
    setting: Setting, model: nn.Module, loss: Any, rows: tuple[Tensor, ...], training: int,
    order: Sequence[Tensor], **more: Any,
) -> Task:  # fmt: skip
    """AdamW on the first rows, judged by the others."""
    weights = [p for p in model.parameters() if p.requires_grad]
    return Task(
        model, torch.optim.AdamW(weights, lr=setting.rate), loss,
        lambda ids: tuple(t[ids] for t in rows),
        inrun.Utility(loss, tuple(t[training:] for t in rows)), order, **more,
    )  # fmt: skip


def _drawn(setting: Setting, training: int, steps: int) -> list[Tensor]:
    """Batches of 32, each drawn by itself."""
    draw = torch.Generator().manual_seed(setting.seed)
    return [torch.randint(0, training, (32,), generator=draw) for _ in range(steps)]


def _epochs(setting: Setting, training: int, batch: int, steps: int) -> list[Tensor]:
    """Batches of epochs, each in an order of its own."""
    draw, found = torch.Generator().manual_seed(setting.seed), []
    while len(found) < steps:
        found += torch.randperm(training, generator=draw).split(batch)
    return found[:steps]


def _cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def _words(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
    return model(input_ids=batch[0], labels=batch[0]).loss


def _digits(setting: Setting) -> Task:
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))[:1500]
    rows = torch.tensor(pixels[order] / 16, dtype=torch.float32), torch.tensor(labels[order])
    model = nn.Sequential(
        nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10)
    )
    return _of_rows(setting, model, _cross_entropy, rows, 1200, _drawn(setting, 1200, 300))


def _gpt2(layers: int, width: int, vocabulary: int, length: int) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary, n_positions=length, n_embd=width, n_layer=layers,
            n_head=max(1, width // 64), resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def _gpt(setting: Setting) -> Task:
    rows = (data.brown(500, 24)[:900],)
    return _of_rows(
        setting, _gpt2(2, 64, 500, 24), _words, rows, 850, _drawn(setting, 850, 300)
    )  # fmt: skip


def _wide(setting: Setting) -> Task:
    rows, steps = (data.brown(2000, 32)[:328],), 80
    return _of_rows(
        setting, _gpt2(4, 384, 2000, 32), _words, rows, 320, _epochs(setting, 320, 8, steps),
        factors=schedule(steps), clip=1.0,
    )  # fmt: skip


def schedule(steps: int) -> list[float]:
    """Factors of the rate: a linear rise, then half a cosine down to a last one."""
    rise = round(WARM_UP * steps)
    fall = [0.5 * (1 + cos(pi * (i + 1) / (steps - rise))) for i in range(steps - rise)]
    return [(i + 1) / rise for i in range(rise)] + [LAST + (1 - LAST) * part for part in fall]


def _smollm(setting: Setting) -> Task:
    from peft import get_peft_model

    from benchmarks.smollm.exact import loss_fn

    size, judges, training = Size(), 4, 64
    model, tokenizer = size.model_and_tokenizer()
    torch.manual_seed(setting.seed)
    read = [torch.tensor(tokenizer(text)["input_ids"][:32]) for text in size.texts(68)]
    read = read[judges:] + read[:judges]
    padded = nn.utils.rnn.pad_sequence(read, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in read], batch_first=True)
    return _of_rows(
        setting, get_peft_model(model, lora()).eval(), loss_fn, (padded, mask), training,
        _epochs(setting, training, 4, 22), clip=1.0,
    )  # fmt: skip


MADE = {"digits": _digits, "gpt": _gpt, "wide": _wide, "smollm": _smollm}
