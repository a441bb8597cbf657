"""Short rows on SmolLM2 with LoRA in a plain loop, on its last layers.

The layers below are frozen, so each row goes through them once and what comes out is kept, as for
the encoder of `benchmarks.classification`. Letters: B rows of a batch, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.smollm.training import VOCABULARY, Size, lora

LAYERS = 10  # of 30, with adapters
Row = tuple[Sequence[int], int]
"""Tokens, and the first of them that the loss counts."""


class Batch(NamedTuple):
    """What the frozen layers make of rows (B, T, D), their tokens, and which the loss counts."""

    hidden: Tensor
    tokens: Tensor
    counted: Tensor

    def rows(self, ids: Any) -> Batch:
        """Some of them, without the padding that these do not need."""
        at = torch.as_tensor(ids)
        longest = int(self.counted[at].nonzero()[:, 1].max()) + 1
        return Batch(*(part[at, :longest] for part in self))


def row_losses(model: Any, batch: Batch) -> Tensor:
    """(B,): the mean loss per counted token. Attention is causal, so that no padding is seen."""
    hidden_BTD, tokens_BT, counted_BT = batch
    inner, counted = model.get_base_model(), counted_BT[:, 1:]
    outputs = inner.model(inputs_embeds=hidden_BTD).last_hidden_state[:, :-1]
    logits = inner.lm_head(outputs[counted]).float()  # the head is a fifth of the whole model
    losses = nn.functional.cross_entropy(logits, tokens_BT[:, 1:][counted], reduction="none")
    each_BT = losses.new_zeros(counted.shape).masked_scatter(counted, losses)
    return each_BT.sum(1) / counted.sum(1)


def mean_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Over rows; all weigh the same."""
    return row_losses(model, batch).mean()


def terms(model: nn.Module, batch: Batch) -> Tensor:
    """(B,) terms that add up to the mean loss."""
    return row_losses(model, batch) / len(batch.tokens)


class Adapted:
    """The model with adapters on its last layers, put back to where they began by each `start`."""

    def __init__(self, size: Size, rate: float, seed: int, vocabulary: Sequence[str] = VOCABULARY):
        from peft import get_peft_model

        base, self.tokenizer = size.model_and_tokenizer(vocabulary)
        whole, self._rate = base.model, rate
        below = len(whole.layers) - (1 if size.tiny else LAYERS)
        self._embed, self._angles = whole.embed_tokens, whole.rotary_emb
        self._frozen, whole.layers = whole.layers[:below], whole.layers[below:]
        torch.manual_seed(seed)
        self.model: nn.Module = get_peft_model(base, lora()).eval()  # there is no dropout
        self._trained = [p for p in self.model.parameters() if p.requires_grad]
        self._began = [p.detach().clone() for p in self._trained]

    def start(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The model, its adapters as they began, and a new AdamW."""
        with torch.no_grad():
            for p, began in zip(self._trained, self._began, strict=True):
                p.copy_(began)
                p.grad = None
        return self.model, torch.optim.AdamW(self._trained, lr=self._rate, weight_decay=0.0)

    def batch(self, rows: Sequence[Row], side_by_side: int = 8) -> Batch:
        """Rows through the frozen layers, padded on the right."""
        longest = max(len(tokens) for tokens, _ in rows)
        tokens_BT = torch.zeros(len(rows), longest, dtype=torch.long)
        counted_BT = torch.zeros(len(rows), longest, dtype=torch.bool)
        for number, (tokens, first) in enumerate(rows):
            tokens_BT[number, : len(tokens)] = torch.tensor(tokens)
            counted_BT[number, max(first, 1) : len(tokens)] = True
        hidden = [self._below(part) for part in tokens_BT.split(side_by_side)]
        return Batch(torch.cat(hidden), tokens_BT, counted_BT)

    @torch.no_grad()
    def _below(self, tokens_BT: Tensor) -> Tensor:
        hidden_BTD = self._embed(tokens_BT)
        angles = self._angles(hidden_BTD, torch.arange(tokens_BT.shape[1])[None])
        for layer in self._frozen:
            hidden_BTD = layer(hidden_BTD, position_embeddings=angles)
        return hidden_BTD
