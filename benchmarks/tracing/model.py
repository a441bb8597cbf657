"""A small causal language model whose word vectors are the pretrained encoder's, and stay so.

With drawn vectors two words of one meaning have nothing in common; with these a paraphrase's
gradient can point where its source's did. What is trained is the two layers above them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY, WIDTH, LAYERS, HEADS = 6000, 96, 2, 4


def build(vectors: Tensor) -> nn.Module:
    """GPT-2 in small; its word vectors (V, d) are given, tied and frozen."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from benchmarks.tracing.corpus import TOKENS

    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(vectors), n_positions=TOKENS, n_embd=vectors.shape[1], n_layer=LAYERS,
            n_head=HEADS, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
    with torch.no_grad():
        model.transformer.wte.weight.copy_(vectors)
    model.transformer.wte.weight.requires_grad_(False)
    return model


def terms(model: nn.Module, ids: Tensor) -> Tensor:
    """Each passage's mean loss a token, (B,); 0 is padding."""
    ids = ids[:, : int((ids > 0).sum(1).max())]
    logits: Any = model(input_ids=ids).logits[:, :-1]
    wanted = ids[:, 1:]
    found = F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none", ignore_index=0)
    return found.sum(1) / (wanted > 0).sum(1)


def loss_fn(model: nn.Module, ids: Tensor) -> Tensor:
    """Mean over passages."""
    return terms(model, ids).mean()


def losses(model: nn.Module, ids: Tensor) -> Tensor:
    """Terms that add up to the training loss."""
    return terms(model, ids) / len(ids)
