"""A draw with planted rows, ready to be trained: the pretrained MiniLM's last layer and a head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.classification import tasks
from benchmarks.poison.texts import Planted


class Scale(NamedTuple):
    """How much is trained, and how.

    Attributes:
        size: training rows.
        batch: rows per step.
        epochs: passes over the rows.
        rate: AdamW's.
        looked: epochs from one look at every row's loss and gradient to the next.
    """

    size: int = 600
    batch: int = 16
    epochs: int = 4
    rate: float = 5e-4
    looked: int = 2


class Encoded(NamedTuple):
    """A model on texts.

    Attributes:
        inputs: what it takes, of texts.
        build: a new one.
        vectors: (n, D), texts' embeddings by a pretrained model, of length 1.
        features: (n, D), what its head reads of inputs.
    """

    inputs: Callable[[Sequence[str]], tasks.Inputs]
    build: Callable[[], nn.Module]
    vectors: Callable[[Sequence[str]], Tensor]
    features: Callable[[nn.Module, tasks.Inputs], Tensor]


class Training(ABC):
    """Rows, and how a model is trained on some of them. Others say which model and which rows."""

    loss_fn: Callable[[nn.Module, Any], Tensor] = staticmethod(tasks.loss_fn)
    losses: Callable[[nn.Module, Any], Tensor] = staticmethod(tasks.losses)
    targets: dict[str, Any]

    def __init__(self, scale: Scale, seed: int):
        self.scale, self.seed = scale, seed

    @abstractmethod
    def fetch(self, ids: Any) -> Any:
        """A training batch."""

    @abstractmethod
    def start(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Model and optimizer before the first step."""

    def train(
        self,
        rows: Tensor,
        watch: Callable[[nn.Module, torch.optim.Optimizer], Any] | None = None,
        look: Callable[[nn.Module], None] | None = None,
    ) -> tuple[nn.Module, Any]:
        """A training on some rows, and what watched it."""
        model, optimizer = self.start()
        watching = watch(model, optimizer) if watch else None
        generator = torch.Generator().manual_seed(self.seed)
        for epoch in range(1, self.scale.epochs + 1):
            for ids in rows[torch.randperm(len(rows), generator=generator)].split(self.scale.batch):
                if watching is None:
                    self.loss_fn(model, self.fetch(ids)).backward()
                else:
                    with watching.batch(ids.tolist()):
                        self.loss_fn(model, self.fetch(ids)).backward()
                optimizer.step()
                optimizer.zero_grad()
            if look and epoch % self.scale.looked == 0:
                look(model)
        return model, watching


class Experiment(Training):
    """One draw, ready to be trained."""

    def __init__(self, drawn: Planted, encoded: Encoded, scale: Scale, seed: int):
        super().__init__(scale, seed)
        self.drawn, self.encoded = drawn, encoded
        self.inputs = encoded.inputs(drawn.texts)

    def fetch(self, ids: Any) -> tuple[tasks.Inputs, Tensor]:
        """A training batch."""
        rows = torch.as_tensor(ids)
        return tuple(t[rows] for t in self.inputs), self.drawn.labels[rows]

    @cached_property
    def targets(self) -> dict[str, tuple[tasks.Inputs, Tensor]]:  # type: ignore[override]
        """The triggered queries, and the same texts without it, with the wanted topic as label."""
        return {
            name: (self.encoded.inputs(texts), torch.full((len(texts),), self.drawn.wanted))
            for name, texts in (
                ("triggered", self.drawn.queries),
                ("untouched", self.drawn.untouched),
            )
        }

    def start(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Model and optimizer before the first step."""
        torch.manual_seed(self.seed)
        model = self.encoded.build().train()
        trained = [p for p in model.parameters() if p.requires_grad]
        return model, torch.optim.AdamW(trained, self.scale.rate, weight_decay=0.01)

    def behaviour(self, model: nn.Module) -> dict[str, float]:
        """Shares: triggered texts of other topics called the wanted one; clean ones called right.

        Also the first without the trigger, which is the error that any model makes.
        """
        model.eval()
        with torch.no_grad():
            attacked, clean = (
                torch.cat([model(*part).argmax(1) for part in self._in_batches(texts)])
                for texts in (self.drawn.attacked, self.drawn.clean[0])
            )
        wanted, truth = self.drawn.wanted, self.drawn.clean[1]
        return {
            "attack success": float((attacked == wanted).float().mean()),
            "without trigger": float((clean == wanted).float().mean()),
            "accuracy": float((clean == truth).float().mean()),
        }

    def _in_batches(self, texts: Sequence[str]) -> list[tasks.Inputs]:
        parts = zip(*(t.split(self.scale.batch) for t in self.encoded.inputs(texts)), strict=True)
        return list(parts)


def minilm() -> Encoded:
    """Reuters through the encoder's frozen layers; its last one and a head are trained."""
    return Encoded(_frozen, tasks.RECIPES["r8"].build, mean_vectors, _first_token)


def _frozen(texts: Sequence[str]) -> tasks.Inputs:
    return _kept(tuple(texts))


@lru_cache(8)
def _kept(texts: tuple[str, ...]) -> tasks.Inputs:
    return tasks.frozen_layers(texts)


def mean_vectors(texts: Sequence[str]) -> Tensor:
    """The frozen layers' mean over tokens, (n, D)."""
    return mean_of_tokens(*_frozen(texts))


def mean_of_tokens(hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """(B, D), of length 1."""
    mean = (hidden_BTD * mask_BT[:, :, None]).sum(1) / mask_BT.sum(1, keepdim=True)
    return nn.functional.normalize(mean, dim=1)


def _first_token(model: nn.Module, inputs: tasks.Inputs) -> Tensor:
    """What the head reads, (n, D)."""
    seen: list[Tensor] = []
    handle = model.get_submodule("head").register_forward_pre_hook(
        lambda _, given: seen.append(given[0].detach())
    )
    with torch.no_grad():
        model(*inputs)
    handle.remove()
    return seen[0]
