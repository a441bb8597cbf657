"""The tasks: data with a known share of wrong labels, a model, and how it is trained.

`digits` and `mnist` are images with a small convolutional network. `r8` is Reuters R8 with the
pretrained MiniLM, of which the last layer and a head are trained: the five layers below are
frozen, so each text goes through them once and their outputs are kept. The head reads the first
token alone, and so the last layer is computed for it alone; that changes no number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks import data

TOKENS = 24
MOST_TESTED = 2000
CAPPED = 220  # texts of one topic: Reuters has thousands of its largest and dozens of its smallest

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Pool:
    """All rows of a data set: inputs by row, true labels, the classes' names."""

    inputs: Inputs
    labels: Tensor
    names: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """How a task is split and trained."""

    pool: Callable[[], Pool]
    build: Callable[[], nn.Module]
    training: int
    validation: int
    batch: int
    epochs: int
    learning_rate: float


@dataclass(frozen=True)
class Split:
    """One seed's data. `labels` are those trained on, `truth` the real ones."""

    recipe: Recipe
    names: tuple[str, ...]
    inputs: Inputs
    labels: Tensor
    truth: Tensor
    validation: tuple[Inputs, Tensor]
    test: tuple[Inputs, Tensor]

    @property
    def wrong(self) -> Tensor:
        """Which training labels are wrong, (n,) bool."""
        return self.labels != self.truth

    @property
    def noise(self) -> float:
        """What share of the training labels is wrong."""
        return float(self.wrong.float().mean())

    @property
    def whole(self) -> tuple[Inputs, Tensor, Tensor]:
        """The validation set as one batch, weighted so that its loss is the mean over classes."""
        inputs, y = self.validation
        counts = torch.bincount(y, minlength=len(self.names)).float()
        return inputs, y, 1 / (counts[y] * (counts > 0).sum())

    @property
    def targets(self) -> dict[str, tuple[Inputs, Tensor]]:
        """The validation set, one batch a class."""
        inputs, y = self.validation
        return {
            name: (tuple(t[y == k] for t in inputs), y[y == k])
            for k, name in enumerate(self.names)
            if (y == k).any()
        }

    def fetch(self, rows: Any) -> tuple[Inputs, Tensor]:
        """A batch by row numbers."""
        rows = torch.as_tensor(rows)
        return tuple(t[rows] for t in self.inputs), self.labels[rows]


def terms(model: nn.Module, batch: tuple[Inputs, Tensor]) -> Tensor:
    """Each row's loss."""
    return F.cross_entropy(model(*batch[0]), batch[1], reduction="none")


def loss_fn(model: nn.Module, batch: tuple[Inputs, Tensor]) -> Tensor:
    """Mean loss."""
    return terms(model, batch).mean()


def weighted_loss(model: nn.Module, batch: tuple[Inputs, Tensor, Tensor]) -> Tensor:
    """The loss of `Split.whole`."""
    return (terms(model, batch[:2]) * batch[2]).sum()


def losses(model: nn.Module, batch: tuple[Inputs, Tensor]) -> Tensor:
    """Terms that add up to the training loss."""
    return terms(model, batch) / len(batch[1])


def accuracy(model: nn.Module, batch: tuple[Inputs, Tensor]) -> float:
    """Share of rows whose class is named right."""
    model.eval()
    with torch.no_grad():
        return float((model(*batch[0]).argmax(1) == batch[1]).float().mean())


def optimizer_of(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW over what is trained."""
    return torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.01)


def split(task: str, noise: float, seed: int) -> Split:
    """Draws training, validation and test rows, and makes `noise` of the training labels wrong."""
    recipe = RECIPES[task]
    pool, generator = recipe.pool(), torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pool.labels), generator=generator)
    n, m = recipe.training, recipe.training + recipe.validation
    rows, held, rest = order[:n], order[n:m], order[m : m + MOST_TESTED]
    truth, labels = pool.labels[rows], pool.labels[rows].clone()
    changed = torch.randperm(n, generator=generator)[: round(noise * n)]
    shift = torch.randint(1, len(pool.names), (len(changed),), generator=generator)
    labels[changed] = (labels[changed] + shift) % len(pool.names)
    part = lambda chosen: tuple(t[chosen] for t in pool.inputs)  # noqa: E731
    return Split(
        recipe, pool.names, part(rows), labels, truth, (part(held), pool.labels[held]),
        (part(rest), pool.labels[rest]),
    )  # fmt: skip


@cache
def _digits() -> Pool:
    digits: Any = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    return Pool((images,), torch.tensor(digits.target), tuple(f"digit {k}" for k in range(10)))


@cache
def _mnist() -> Pool:
    images, labels = data.mnist()
    return Pool((images,), labels, tuple(f"digit {k}" for k in range(10)))


def _cnn(strides: tuple[int, int], inside: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, strides[0], 1), nn.ReLU(), nn.Conv2d(8, 16, 3, strides[1], 1),
        nn.ReLU(), nn.Flatten(), nn.Linear(inside, 10),
    )  # fmt: skip


def _encoder() -> nn.Module:
    from transformers import AutoModel

    return AutoModel.from_pretrained(
        data.minilm(), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    ).eval()


def frozen_layers(texts: Sequence[str], layer: int = -2) -> Inputs:
    """The encoder's outputs by layer for the texts' first `TOKENS` tokens, and the mask."""
    from transformers import AutoTokenizer

    encoded = AutoTokenizer.from_pretrained(data.minilm())(
        list(texts), truncation=True, max_length=TOKENS, padding="max_length", return_tensors="pt"
    )
    ids, mask, encoder = encoded["input_ids"], encoded["attention_mask"], _encoder()
    with torch.no_grad():
        hidden = torch.cat(
            [
                encoder(input_ids=i, attention_mask=m, output_hidden_states=True).hidden_states[
                    layer
                ]
                for i, m in zip(ids.split(64), mask.split(64), strict=True)
            ]
        )
    return hidden, mask.bool()


@cache
def r8_texts() -> tuple[list[str], Tensor, list[str]]:
    """At most `CAPPED` texts per topic, their labels, and the topics' names."""
    texts, labels, names = data.reuters_r8()
    rows = torch.cat([torch.nonzero(labels == k)[:CAPPED, 0] for k in range(len(names))])
    return [texts[i] for i in rows.tolist()], labels[rows], names


@cache
def encoded_r8(layer: int) -> Pool:
    """The encoder's outputs by layer, and masks, for these texts."""
    texts, labels, names = r8_texts()
    return Pool(frozen_layers(texts, layer), labels, tuple(names))


def _r8() -> Pool:
    """What the frozen layers say."""
    return encoded_r8(-2)


class LastLayer(nn.Module):
    """The encoder's last layer for the first token, and a linear head on it."""

    def __init__(self, layer: Any, classes: int):
        super().__init__()
        attention = layer.attention
        self.query, self.key = attention.self.query, attention.self.key
        self.value, self.attended = attention.self.value, attention.output
        self.widened, self.output = layer.intermediate, layer.output
        self.heads = attention.self.num_attention_heads
        self.head = nn.Linear(self.query.in_features, classes)

    def forward(self, hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Logits (B, classes)."""
        B, _, D = hidden_BTD.shape
        first = hidden_BTD[:, :1]
        q, k, v = (
            part(x).view(B, -1, self.heads, D // self.heads).transpose(1, 2)
            for part, x in (
                (self.query, first),
                (self.key, hidden_BTD),
                (self.value, hidden_BTD),
            )
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_BT[:, None, None, :])
        attended = self.attended(mixed.transpose(1, 2).reshape(B, 1, D), first)
        return self.head(self.output(self.widened(attended), attended)[:, 0])


@cache
def _last_layer() -> Any:
    return _encoder().encoder.layer[-1]


def _minilm() -> nn.Module:
    import copy

    return LastLayer(copy.deepcopy(_last_layer()), 8)


RECIPES = {
    "digits": Recipe(_digits, lambda: _cnn((1, 2), 256), 1000, 300, 32, 12, 3e-3),
    "mnist": Recipe(_mnist, lambda: _cnn((2, 2), 784), 2000, 300, 32, 6, 2e-3),
    "r8": Recipe(_r8, _minilm, 400, 160, 16, 4, 2e-4),
}
