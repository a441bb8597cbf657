"""The fidelity benchmark's models, each on real data, in a form that a cell can train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import data
from inrun.directions import ESTIMATORS

VOCABULARY, LENGTH, LARGE_LENGTH = 4000, 32, 256


@dataclass(frozen=True)
class Task:
    """A model with its data: `terms` gives one loss term a sample of a batch of row numbers."""

    build: Callable[[], nn.Module]
    rows: int
    fetch: Callable[[Tensor], Any]
    terms: Callable[[nn.Module, Any], Tensor]
    validation_rows: int
    learning_rate: float
    steps: tuple[int, ...]
    players: int = 6
    estimators: tuple[str, ...] = tuple(ESTIMATORS)

    def loss_fn(self, model: nn.Module, batch: Any) -> Tensor:
        """Mean over samples."""
        return self.terms(model, batch).mean()


class Residual(nn.Module):
    """Two convolutions with group normalization and a shortcut."""

    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.GroupNorm(4, outside),
            nn.ReLU(), nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.GroupNorm(4, outside),
        )  # fmt: skip
        self.shortcut = nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """X with the body's correction."""
        return F.relu(self.body(x) + self.shortcut(x))


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10))


def _resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1), Residual(8, 16, 1), Residual(16, 32, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def _images(build: Callable[[], nn.Module], learning_rate: float = 1e-3) -> Task:
    images, labels = data.mnist()
    images = images.to(torch.get_default_dtype())

    def terms(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    return Task(
        build, len(labels), lambda rows: (images[rows], labels[rows]), terms, 128, learning_rate,
        (1, 2, 3, 5, 8, 13, 20, 30, 60, 100, 200),
    )  # fmt: skip


def _gpt2(width: int, layers: int, heads: int, length: int) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=length, n_embd=width, n_layer=layers, n_head=heads,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def _llama(width: int, layers: int, heads: int, length: int, tied: bool = False) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=width, intermediate_size=2 * width,
            num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads // 2,
            max_position_embeddings=length, tie_word_embeddings=tied,
            bos_token_id=0, eos_token_id=0, pad_token_id=None,
        )
    )  # fmt: skip


def _large(build: Callable[[], nn.Module], learning_rate: float, players: int) -> Task:
    """On a GPU. No smoothing: its materialized shares are `players` models."""
    device = data.gpu()
    task = _language(lambda: build().to(device), length=LARGE_LENGTH)
    return replace(
        task, fetch=lambda rows: task.fetch(rows).to(device), learning_rate=learning_rate,
        players=players, steps=(2, 5, 10, 30, 100),
        estimators=tuple(name for name in ESTIMATORS if name != "path-smoothed"),
    )  # fmt: skip


def _language(build: Callable[[], nn.Module], length: int = LENGTH) -> Task:
    sequences = data.brown(VOCABULARY, length)

    def terms(model: nn.Module, batch: Any) -> Tensor:
        logits = model(input_ids=batch).logits[:, :-1]
        return F.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none").mean(1)

    return Task(
        build, len(sequences), lambda rows: sequences[rows], terms, 24, 1e-3,
        (1, 2, 3, 5, 8, 13, 20, 30, 60, 100),
    )  # fmt: skip


def _minilm() -> Task:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    texts, labels, names = data.reuters_r8()
    tokenizer = AutoTokenizer.from_pretrained(data.minilm())
    encoded = tokenizer(
        texts[:2000], truncation=True, max_length=48, padding="max_length", return_tensors="pt"
    )

    def build() -> nn.Module:
        return AutoModelForSequenceClassification.from_pretrained(
            data.minilm(), num_labels=len(names), hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )  # fmt: skip

    def fetch(rows: Tensor) -> Any:
        return {
            "input_ids": encoded["input_ids"][rows],
            "attention_mask": encoded["attention_mask"][rows],
            "labels": labels[rows],
        }

    def terms(model: nn.Module, batch: Any) -> Tensor:
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        return F.cross_entropy(model(**inputs).logits, batch["labels"], reduction="none")

    return Task(build, 2000, fetch, terms, 16, 5e-5, (1, 2, 3, 8, 20), players=4)


TASKS: dict[str, Callable[[], Task]] = {
    "mlp-mnist": lambda: _images(_mlp),
    "resnet-mnist": lambda: _images(_resnet),
    "gpt2-brown": lambda: _language(lambda: _gpt2(64, 2, 4, LENGTH)),
    "llama-brown": lambda: _language(lambda: _llama(48, 2, 4, LENGTH)),
    "llama-tied-brown": lambda: _language(lambda: _llama(48, 2, 4, LENGTH, tied=True)),
    "minilm-r8": _minilm,
    # 88 million and 1.0 billion parameters: GPT-2 small and a 1B Llama, with the small vocabulary
    "gpt2-small-brown": lambda: _large(lambda: _gpt2(768, 12, 12, LARGE_LENGTH), 3e-4, 6),
    "llama-1b-brown": lambda: _large(lambda: _llama(2048, 26, 16, LARGE_LENGTH), 1e-4, 4),
}
