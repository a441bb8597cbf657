"""The influence benchmark's tasks: a model, its data, and how it is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import data

VOCABULARY, LENGTH = 500, 12


@dataclass(frozen=True)
class Task:
    """`terms(model, batch)` gives each row's loss; rows below `samples` train, the rest judge."""

    build: Callable[[], nn.Module]
    inputs: tuple[Tensor, ...]
    terms: Callable[[nn.Module, Any], Tensor]
    samples: int
    batch: int
    left_out: int
    queries: int
    judged_each: int
    clip: float | None = None
    betas: tuple[float, float] = (0.9, 0.95)

    def fetch(self, ids: Any) -> tuple[Tensor, ...]:
        """Rows by number."""
        return tuple(t[torch.as_tensor(ids)] for t in self.inputs)

    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        """Terms that add up to the training loss, the mean over the batch."""
        return self.terms(model, batch) / len(batch[0])

    def judge(self, model: nn.Module, batch: Any) -> Tensor:
        """Mean loss; added up in double precision, as removals move it by its last float digits."""
        return self.terms(model, batch).double().mean()


def _classify(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def _next_word(model: nn.Module, batch: Any) -> Tensor:
    (words,) = batch
    logits = model(input_ids=words).logits[:, :-1]
    return F.cross_entropy(logits.transpose(1, 2), words[:, 1:], reduction="none").mean(1)


def _mlp(activation: Callable[[], nn.Module]) -> Task:
    """784-16-16-10 on 6,000 images: the setting of the published fidelity experiment."""
    images, labels = data.mnist()

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Linear(784, 16), activation(), nn.Linear(16, 16), activation(), nn.Linear(16, 10)
        )

    inputs = (images.flatten(1), labels)
    return Task(build, inputs, _classify, 6000, 64, left_out=200, queries=500, judged_each=100)


def _cnn() -> Task:
    images, labels = data.mnist()

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 8, 3, 2), nn.ReLU(),
            nn.Flatten(), nn.Linear(288, 10),
        )  # fmt: skip

    inputs = (images, labels)
    return Task(build, inputs, _classify, 1536, 32, left_out=60, queries=300, judged_each=10)


def _language(build: Callable[[], nn.Module]) -> Task:
    words = data.brown(VOCABULARY, LENGTH)
    return Task(
        build, (words[:640],), _next_word, 512, 16, left_out=40, queries=100, judged_each=5,
        clip=1.0,
    )  # fmt: skip


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=32, n_layer=2, n_head=2,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=LENGTH,
            bos_token_id=0, eos_token_id=0, pad_token_id=0,
        )
    )  # fmt: skip


TASKS: dict[str, Callable[[], Task]] = {
    "mlp-relu": lambda: _mlp(nn.ReLU),
    "mlp-gelu": lambda: _mlp(nn.GELU),
    "cnn-relu": _cnn,
    "gpt2": lambda: _language(_gpt2),
    "llama": lambda: _language(_llama),
}
