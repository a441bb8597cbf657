"""The fidelity benchmark's models, each on real data, in a form that a cell can train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import data

VOCABULARY, LENGTH = 4000, 32


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

    def terms(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    return Task(
        build, len(labels), lambda rows: (images[rows], labels[rows]), terms, 128, learning_rate,
        (1, 2, 3, 5, 8, 13, 20, 30, 60, 100, 200),
    )  # fmt: skip


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=64, n_layer=2, n_head=4,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def _llama(tied: bool) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=48, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=LENGTH,
            tie_word_embeddings=tied, bos_token_id=0, eos_token_id=0, pad_token_id=0,
        )
    )  # fmt: skip


def _language(build: Callable[[], nn.Module]) -> Task:
    sequences = data.brown(VOCABULARY, LENGTH)

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
    "gpt2-brown": lambda: _language(_gpt2),
    "llama-brown": lambda: _language(lambda: _llama(tied=False)),
    "llama-tied-brown": lambda: _language(lambda: _llama(tied=True)),
    "minilm-r8": _minilm,
}
