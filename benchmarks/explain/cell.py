"""One cell: a small language model, one bad shard in one step, and who names it.

Four sources write texts, each by a Markov chain of its own. From one random step on,
half of the batch of `LASTS` steps is a shard of one source that is bad in the way that the cell
says; an enormous loss is one row of one step. Asked are

    explain            `inrun.explain(run)`: the largest jump, the step that began it, rows, source
    gradient norm      the step whose gradient's norm stands out most; it names no rows
    validation loss    the step in which the validation loss rose most; it names no rows
    training loss      the step whose batch's loss stands out most, its rows of the largest loss

Letters: B rows of a batch, T tokens, V words.
"""

from __future__ import annotations

import tempfile
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import inrun
from inrun.ledger import deviations

KINDS = ("shuffled labels", "shuffled text", "another language", "duplicates", "enormous loss")
STEPS, B, T, V, SOURCES, BAD, LASTS = 200, 16, 16, 32, 4, 8, 3
TIMES = 100.0  # what the loss of the one row of "enormous loss" is multiplied by


class Shard(NamedTuple):
    """What was planted: where, which ids, of which source."""

    steps: range
    ids: list[int]
    source: int


class Data(NamedTuple):
    """Rows by id: `tokens` (N, T), `labels` (N, T), `source` (N,), `weight` (N,) of its loss."""

    tokens: Tensor
    labels: Tensor
    source: Tensor
    weight: Tensor


def measure(key: str) -> dict[str, Any]:
    """By who is asked: whether step, rows and source are right."""
    kind, seed = key.split("/")
    generator = torch.Generator().manual_seed(int(seed) + 100 * KINDS.index(kind))
    chains = [torch.rand(V, V, generator=generator) ** 40 for _ in range(SOURCES)]
    data = _rows(chains, STEPS * B, generator)
    validation = _rows(chains, 48, generator)
    shard = _planted(data, kind, generator)
    with tempfile.TemporaryDirectory() as folder:
        run, losses, rows = _trained(data, validation, int(seed), folder)
    return {name: _judged(asked, shard) for name, asked in _asked(run, losses, rows, data).items()}


def _rows(chains: list[Tensor], count: int, generator: torch.Generator) -> Data:
    source = torch.randint(SOURCES, (count,), generator=generator)
    tokens = torch.randint(V, (count, T), generator=generator)
    for number, chain in enumerate(chains):
        own = source == number
        for t in range(1, T):
            before = tokens[own, t - 1]
            tokens[own, t] = torch.multinomial(chain[before], 1, generator=generator)[:, 0]
    return Data(tokens, tokens.clone(), source, torch.ones(count))


def _planted(data: Data, kind: str, generator: torch.Generator) -> Shard:
    """Makes a shard of the data bad, in place."""
    step = int(torch.randint(60, 180, (), generator=generator))
    source = int(torch.randint(SOURCES, (), generator=generator))
    lasts, count = (1, 1) if kind == "enormous loss" else (LASTS, BAD)
    places = [torch.randperm(B, generator=generator)[:count] for _ in range(lasts)]
    ids = torch.cat([(step - 1 + later) * B + rows for later, rows in enumerate(places)])
    count *= lasts
    own = torch.nonzero(data.source == source)[:, 0]
    drawn = own[torch.randperm(len(own), generator=generator)[:count]]
    tokens = data.tokens[drawn].clone()
    if kind == "duplicates":
        tokens = tokens[:1].expand(count, T).clone()
    elif kind == "another language":
        tokens = V - 1 - tokens
    elif kind == "shuffled text":
        tokens = torch.stack([row[torch.randperm(T, generator=generator)] for row in tokens])
    labels = tokens.clone()
    if kind == "shuffled labels":
        labels = torch.stack([row[torch.randperm(T, generator=generator)] for row in tokens])
    if kind == "enormous loss":
        labels = torch.randint(V, (count, T), generator=generator)
        data.weight[ids] = TIMES
    data.tokens[ids], data.labels[ids], data.source[ids] = tokens, labels, source
    return Shard(range(step, step + lasts), ids.tolist(), source)


def row_losses(model: nn.Module, batch: Data) -> Tensor:
    """(B,) each row's mean loss per token, times its weight."""
    logits = model(input_ids=batch.tokens).logits[:, :-1]
    losses = F.cross_entropy(logits.transpose(1, 2), batch.labels[:, 1:], reduction="none")
    return losses.mean(1) * batch.weight


def _trained(data: Data, validation: Data, seed: int, folder: str) -> Any:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=V, n_positions=T, n_embd=48, n_layer=2, n_head=2, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    utility = inrun.Utility(lambda m, batch: row_losses(m, Data(*batch)).mean(), tuple(validation))
    options = inrun.Options(progress=False)
    attribution = inrun.attach(model, optimizer, utility, store=folder, options=options)
    losses = np.empty((STEPS, B))
    for number, ids in enumerate(torch.arange(STEPS * B).split(B)):
        batch = Data(*(column[ids] for column in data))
        with attribution.batch(ids):
            found = row_losses(model, batch)
            found.mean().backward()
        losses[number] = found.detach().numpy()
        optimizer.step()
        optimizer.zero_grad()
    attribution.detach()
    run = inrun.load(folder)
    run.describe({"sample_id": list(range(STEPS * B)), "source": data.source.tolist()})
    books = run.ledger()
    norms = books["gradient_norm"].to_numpy()
    rises = books["closing_loss"].to_numpy() - books["opening_loss"].to_numpy()
    return inrun.explain(run), losses, (norms, rises)


def _asked(found: Any, losses: np.ndarray, rows: Any, data: Data) -> dict[str, Any]:
    norms, rises = rows
    sources = found.sources["source"].to_pylist()
    loudest = 1 + int(np.argmax(deviations(losses.mean(1))))
    inside = losses[loudest - 1]
    ids = ((loudest - 1) * B + np.argsort(-inside)).tolist()
    own = data.source[(loudest - 1) * B : loudest * B].numpy()
    means = [inside[own == s].mean() if (own == s).any() else 0.0 for s in range(SOURCES)]
    return {
        "explain": (found.began, found.table["sample_id"].to_pylist(), int(sources[0])),
        "gradient norm": (1 + int(np.argmax(deviations(norms))), [], None),
        "validation loss": (1 + int(np.argmax(deviations(rises))), [], None),
        "training loss": (loudest, ids, int(np.argmax(means))),
    }


def _judged(asked: tuple[int, list[int], int | None], shard: Shard) -> dict[str, bool]:
    step, ids, source = asked
    first = ids[: min(BAD, len(shard.ids))]
    return {
        "step": step in shard.steps,
        "rows": 2 * len(set(first) & set(shard.ids)) > min(BAD, len(shard.ids)),
        "source": source == shard.source,
    }
