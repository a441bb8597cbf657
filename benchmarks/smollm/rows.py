"""Short rows on SmolLM2 with LoRA in a plain loop. Letters: B rows of a batch, T tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.smollm.training import VOCABULARY, Size, lora

Row = tuple[Sequence[int], int]
"""Tokens, and the first of them that the loss counts."""


def batch_of(rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Tokens (B, T), padded on the right, and which of them the loss counts, (B, T)."""
    longest = max(len(tokens) for tokens, _ in rows)
    tokens_BT = torch.zeros(len(rows), longest, dtype=torch.long)
    counted_BT = torch.zeros(len(rows), longest, dtype=torch.bool)
    for number, (tokens, first) in enumerate(rows):
        tokens_BT[number, : len(tokens)] = torch.tensor(tokens)
        counted_BT[number, max(first, 1) : len(tokens)] = True
    return tokens_BT, counted_BT


def row_losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """(B,): the mean loss per counted token. Attention is causal, so that no padding is seen."""
    tokens_BT, counted_BT = (part[:, 1:] for part in batch)
    logits: Any = model(input_ids=batch[0]).logits[:, :-1].float()
    losses_BT = nn.functional.cross_entropy(logits.transpose(1, 2), tokens_BT, reduction="none")
    return (losses_BT * counted_BT).sum(1) / counted_BT.sum(1)


def mean_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Over rows; all weigh the same."""
    return row_losses(model, batch).mean()


def terms(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """(B,) terms that add up to the mean loss."""
    return row_losses(model, batch) / len(batch[0])


class Adapted:
    """The model with adapters, put back to where they began by each `start`."""

    def __init__(self, size: Size, rate: float, seed: int, vocabulary: Sequence[str] = VOCABULARY):
        from peft import get_peft_model

        base, self.tokenizer = size.model_and_tokenizer(vocabulary)
        torch.manual_seed(seed)
        self.model: nn.Module = get_peft_model(base, lora()).eval()  # there is no dropout
        self._rate = rate
        self._trained = [p for p in self.model.parameters() if p.requires_grad]
        self._began = [p.detach().clone() for p in self._trained]

    def start(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The model, its adapters as they began, and a new AdamW."""
        with torch.no_grad():
            for p, began in zip(self._trained, self._began, strict=True):
                p.copy_(began)
                p.grad = None
        return self.model, torch.optim.AdamW(self._trained, lr=self._rate, weight_decay=0.0)
