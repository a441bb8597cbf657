"""Values of single steps beside exact Shapley values: every coalition a real step of AdamW.

Four texts are a batch, each in a row of its own, so that a sample's gradient is that of its text
alone, by plain autograd. The trainer's AdamW, learning rate and clipping, in a loop of our own that
copies model and optimizer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import inrun
from benchmarks.smollm.training import HELD_OUT, RATES, Size, lora
from inrun.truth import StepGame, agreement, sample_shares, shapley_values

SAMPLES, CLIP = 4, 1.0
CHECKED = (2, 3, 5, 8)
JUDGES = 4  # texts of the validation batch


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The mean over the next tokens of all rows."""
    tokens, mask = batch
    logits = model(input_ids=tokens, attention_mask=mask).logits[:, :-1].float()
    wanted = tokens[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    return nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())


def agreement_with_exact(
    kind: str, size: Size, checked: tuple[int, ...] = CHECKED
) -> dict[str, Any]:
    """A record per checked step: exact values, and those of `path` as attached."""
    model, tokenizer = size.model_and_tokenizer()
    if kind == "lora":
        from peft import get_peft_model

        model = get_peft_model(model, lora())
    model.eval()  # no dropout: a coalition's loss is a number
    texts = size.texts(HELD_OUT + SAMPLES * max(checked))
    utility = inrun.Utility(loss_fn, _batch(tokenizer, texts[:JUDGES]))
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATES[kind], weight_decay=0.0)
    options = inrun.Options(progress=False)
    attribution = inrun.attach(model, optimizer, utility, options=options)
    records = []
    for step in range(1, max(checked) + 1):
        begin = HELD_OUT + SAMPLES * (step - 1)
        batch = _batch(tokenizer, texts[begin : begin + SAMPLES])
        exact = _exact(model, optimizer, batch, utility) if step in checked else None
        ids = [f"{step}:{i}" for i in range(SAMPLES)]
        with attribution.batch(ids):
            loss_fn(model, batch).backward()
        nn.utils.clip_grad_norm_(weights, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        if exact is not None:
            records.append({"step": step, **exact, **_found(attribution, ids, exact)})
    attribution.detach()
    return {"records": records}


def _batch(tokenizer: Any, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Tokens and mask, (n, T) each, padded on the right."""
    rows = [torch.tensor(tokenizer(text)["input_ids"]) for text in texts]
    pad = nn.utils.rnn.pad_sequence
    masks = [torch.ones_like(row) for row in rows]
    return pad(rows, batch_first=True), pad(masks, batch_first=True)


def _exact(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any, utility: inrun.Utility
) -> dict[str, Any]:
    """Exact values in the game that `path` plays, and in the one where the past always acts."""
    shares = _consumed(model, batch)
    table = StepGame(model, optimizer, shares, utility).table()[:, 0]
    n = SAMPLES
    shared, given = shapley_values(table)[:n], shapley_values(table[2**n :])
    return {"shared": shared.tolist(), "given": given.tolist()}


def _consumed(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Each text's own part of the gradient that the optimizer gets, by plain autograd."""
    tokens, mask = batch
    counts = mask[:, 1:].sum(1)

    def term(i: int) -> Tensor:
        own = slice(0, int(mask[i].sum()))
        alone = tokens[i : i + 1, own], mask[i : i + 1, own]
        return loss_fn(model, alone) * counts[i] / counts.sum()

    shares = sample_shares(model, term, SAMPLES)
    norm = float(torch.stack([s.sum(0).norm() for s in shares.values()]).norm())
    k = min(1.0, CLIP / (norm + 1e-6))
    for share in shares.values():
        share.mul_(k)
    return shares


def _found(attribution: inrun.Attribution, ids: list[str], exact: dict[str, Any]) -> dict[str, Any]:
    table = attribution.values()
    values = dict(zip(table["sample_id"].to_pylist(), table["value"].to_pylist(), strict=True))
    found = np.array([values[i] for i in ids])
    games = ("shared", "given")
    return {
        "values": found.tolist(),
        "agreement": {g: agreement(found, np.array(exact[g]))._asdict() for g in games},
    }
