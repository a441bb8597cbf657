"""One cell: a language model trained on the corpus with a target a query; each source's rank.

Values of different steps are not of one size (losses fall fastest at the start, and what else was
in the batch matters), so a passage's values for a query are also *standardised*: less the mean over
the samples of the step, over their standard deviation, summed over the passage's visits.
"""

from __future__ import annotations

import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

import inrun
from benchmarks import data
from benchmarks.tracing import model as lm
from benchmarks.tracing.corpus import DISTANCES, corpus, encoded
from inrun.replay import tracin

BATCH, RATE, EPOCHS = 32, 1e-3, 1
IN_STEP = ("path", "sgd", "linearized")
AHEAD = ("look-ahead", "TracIn, 3 states")
ASKED_AHEAD = 5  # sources whose queries are asked by look-ahead: each is a sweep of its own


def measure(key: str) -> dict[str, Any]:
    """Ranks of the true source by distance, 1 being the best, for one method."""
    method, seed = key.rsplit(" seed=", 1)
    began = time.perf_counter()
    scores = _scores(method, int(seed))
    ranks = {name: {d: _ranks(found[d]) for d in DISTANCES} for name, found in scores.items()}
    return {"ranks": ranks, "seconds": round(time.perf_counter() - began, 1)}


def _scores(method: str, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """By name and distance: (queries, passages), high for the likely source."""
    if method == "bm25":
        return {"BM25": _bm25()}
    if method == "embedding":
        return {"embedding similarity": _embedding()}
    asked = corpus().sources if method in IN_STEP else ASKED_AHEAD
    names = [f"{d} {s}" for d in DISTANCES for s in range(asked)]
    visits = _visits(method, seed, names)
    found = {}
    for how, per_visit in (("total", _plain), ("standardised", _standardised)):
        sums = _summed(visits, names, per_visit)
        found[f"{method}, {how}"] = {
            d: sums[i * asked : (i + 1) * asked] for i, d in enumerate(DISTANCES)
        }
    return found


def _start(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = lm.build(encoded(lm.VOCABULARY, lm.WIDTH).vectors)
    trained = [p for p in model.parameters() if p.requires_grad]
    return model, torch.optim.AdamW(trained, lr=RATE, weight_decay=0.01)


def _visits(method: str, seed: int, names: list[str]) -> pa.Table:
    """Every visit's value for every query."""
    whole = encoded(lm.VOCABULARY, lm.WIDTH)
    place = {name: row for row, name in enumerate(whole.names)}
    utility = inrun.Utility(
        lm.loss_fn, targets={n: whole.queries[place[n] : place[n] + 1] for n in names}
    )
    model, optimizer = _start(seed)
    fetch = lambda ids: whole.passages[torch.as_tensor(ids)]  # noqa: E731
    with tempfile.TemporaryDirectory() as folder:
        if method in AHEAD:
            recorder = inrun.record(model, optimizer, lm.losses, fetch)
            _train(model, optimizer, recorder, whole.passages, seed)
            run = recorder.finish()
            result = (
                tracin(run, utility, 3) if method.startswith("TracIn")
                else inrun.lookahead(run, utility)
            )  # fmt: skip
            return result.visits()
        attribution = inrun.attach(
            model,
            optimizer,
            utility,
            estimator=method,
            store=Path(folder) / "run",
            options=inrun.Options(progress=False, smoothed_steps=0, self_test=False),
        )
        _train(model, optimizer, attribution, whole.passages, seed)
        attribution.detach()
        return attribution.visits()


def _train(
    model: nn.Module, optimizer: torch.optim.Optimizer, watch: Any, passages: Tensor, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        for ids in torch.randperm(len(passages), generator=generator).split(BATCH):
            with watch.batch(ids):
                lm.loss_fn(model, passages[ids]).backward()
            optimizer.step()
            optimizer.zero_grad()


def _plain(values: np.ndarray, step: np.ndarray) -> np.ndarray:
    return values


def _standardised(values: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Less the step's mean over its standard deviation, both over samples, by query."""
    counts = np.maximum(np.bincount(step), 1)[:, None]
    sums, squares = (np.zeros((len(counts), values.shape[1])) for _ in range(2))
    np.add.at(sums, step, values)
    mean = sums / counts
    off = values - mean[step]
    np.add.at(squares, step, off**2)
    spread = np.sqrt(squares / counts)
    return off / np.where(spread > 0, spread, 1)[step]


def _summed(visits: pa.Table, names: list[str], per_visit: Any) -> np.ndarray:
    """(queries, passages)."""
    values = np.stack([visits[name].to_numpy() for name in names], 1)
    scored = per_visit(values, visits["step"].to_numpy())
    found = np.zeros((len(corpus().texts), len(names)))
    np.add.at(found, visits["sample_id"].to_numpy(), scored)
    return found.T


def _ranks(scores: np.ndarray) -> list[int]:
    """Of source s for query s; a tie counts against it."""
    return [int((row >= row[s]).sum()) for s, row in enumerate(scores)]


def _bm25() -> dict[str, np.ndarray]:
    from rank_bm25 import BM25Okapi

    whole = corpus()
    index = BM25Okapi([_words(text) for text in whole.texts])
    return {
        d: np.stack([index.get_scores(_words(q)) for q in queries])
        for d, queries in whole.queries.items()
    }


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def _embedding() -> dict[str, np.ndarray]:
    """Cosine similarity of the pretrained encoder's mean-pooled sentences."""
    whole = corpus()
    passages = _embedded(whole.texts)
    return {d: (_embedded(q) @ passages.T).numpy() for d, q in whole.queries.items()}


def _embedded(texts: list[str]) -> Tensor:
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(data.minilm())
    model = AutoModel.from_pretrained(data.minilm()).eval()
    parts = []
    with torch.no_grad():
        for begin in range(0, len(texts), 64):
            batch = tokenizer(
                texts[begin : begin + 64], truncation=True, max_length=96, padding=True,
                return_tensors="pt",
            )  # fmt: skip
            mask = batch["attention_mask"].unsqueeze(2)
            hidden = model(**batch).last_hidden_state * mask
            parts.append(nn.functional.normalize(hidden.sum(1) / mask.sum(1), dim=1))
    return torch.cat(parts)
