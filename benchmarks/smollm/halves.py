"""The linear datamodeling score with LoRA: do sums of values say what half of the rows does?

Rows are texts about tales, three for each tale. Asked about are retellings of the first tales in
words that no row has, one query each, and the mean over retellings of tales that no row is about.
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import nn

import inrun
from benchmarks import EXACT
from benchmarks.datamodeling.cell import Values
from benchmarks.smollm.rows import Adapted, Batch, mean_loss, row_losses, terms
from benchmarks.smollm.training import RATES, VOCABULARY, Size
from inrun.replay import tracin
from inrun.truth import agreement
from inrun.uses import Contents, values_by_method
from inrun.utility import losses_of

PASSAGES = Path(__file__).parents[1] / "tracing" / "passages.json"
TRAINED, ASKED = ("exact", "edited", "topic"), "paraphrase"
HELD_OUT = "tales of no row"
SEEDS = (0,)  # of adapters and order; the halves are always the same
STATES = 2  # of TracIn, which takes a pass per step, state and query
METHODS = ("path", "look-ahead", "look-ahead, finite push", "TracIn", "gradient dot",
           "gradient cosine", "gradient norm", "loss", "BM25", "length", "same class",
           "random")  # fmt: skip


class Scale(NamedTuple):
    """How much is trained, asked and left out."""

    tales: int = 16
    queries: int = 3
    held_out: int = 8
    tokens: int = 16
    asked: int = 24  # tokens of a query
    batch: int = 8
    epochs: int = 2
    halves: int = 32


class Tuning:
    """LoRA on the rows; trained again without some, it computes those that remain alone."""

    def __init__(self, size: Size, scale: Scale, seed: int):
        self.scale, self.seed = scale, seed
        self.adapted = Adapted(size, RATES["lora"], seed)
        self.tales = _tales(size.tiny, scale.tales + scale.held_out)
        known, others = self.tales[: scale.tales], self.tales[scale.tales :]
        self.texts = [tale[kind] for tale in known for kind in TRAINED]
        self.rows = self._through(self.texts, scale.tokens)
        self.queries = {f"tale {k}": [t[ASKED]] for k, t in enumerate(known[: scale.queries])}
        self.queries[HELD_OUT] = [tale[ASKED] for tale in others]
        self.utility = inrun.Utility(
            lambda model, batch: row_losses(model, batch).double().mean(),
            targets={q: self._through(own, scale.asked) for q, own in self.queries.items()},
        )

    def _through(self, texts: list[str], most: int) -> Batch:
        """Texts cut to that many tokens, all but the first of which count."""
        read = self.adapted.tokenizer
        return self.adapted.batch([(read(text)["input_ids"][:most], 1) for text in texts])

    def fetch(self, ids: Any) -> Batch:
        """Rows by number."""
        return self.rows.rows(ids)

    def contents(self) -> Contents:
        """Texts and tales of rows and queries."""
        tales = [f"tale {row // len(TRAINED)}" for row in range(len(self.texts))]
        asked = [" ".join(texts) for texts in self.queries.values()]
        numbered = dict(enumerate(self.texts)), dict(enumerate(tales))
        return Contents(*numbered, asked, list(self.queries))

    def batches(self) -> list[list[int]]:
        """Ids of every step."""
        draw = torch.Generator().manual_seed(self.seed)
        orders = [torch.randperm(len(self.texts), generator=draw) for _ in range(self.scale.epochs)]
        return [ids.tolist() for order in orders for ids in order.split(self.scale.batch)]

    def retrain(
        self, without: int | str | Collection[int | str], *, renormalise: bool = True
    ) -> nn.Module:
        """The mean over those that remain; a step of which none remains gives no gradient."""
        assert renormalise
        gone = {without} if isinstance(without, (int, str)) else set(without)
        model, optimizer = self.adapted.start()
        for ids in self.batches():
            left = [i for i in ids if i not in gone]
            if left:
                mean_loss(model, self.fetch(left)).backward()
            optimizer.step()
            optimizer.zero_grad()
        return model

    def finished(self) -> nn.Module:
        """Trained on all rows."""
        return self.retrain([])

    def watched(self) -> tuple[inrun.Trajectory, Any]:
        """A recording of that training, and its in-step values."""
        model, optimizer = self.adapted.start()
        batches = self.batches()
        recorder = inrun.record(model, optimizer, terms, self.fetch, steps=len(batches))
        options = inrun.Options(progress=False)
        attribution = inrun.attach(model, optimizer, self.utility, options=options)
        for ids in batches:
            with recorder.batch(ids), attribution.batch(ids):
                mean_loss(model, self.fetch(ids)).backward()
            optimizer.step()
            optimizer.zero_grad()
        values = attribution.values()
        attribution.detach()
        return recorder.finish(), values


def _tales(tiny: bool, count: int) -> list[dict[str, str]]:
    """Passages of the tracing benchmark, or random words, some of them the tale's own."""
    if not tiny:
        found: list[dict[str, str]] = json.loads(PASSAGES.read_text())[:count]
        return found
    draw = random.Random(0)
    own = [draw.sample(VOCABULARY, 3) for _ in range(count)]
    kinds = (*TRAINED, ASKED)
    return [{k: " ".join(draw.choices(VOCABULARY[:9] + 3 * w, k=12)) for k in kinds} for w in own]


def halves(kind: str, size: Size, seed: int, scale: Scale = Scale()) -> dict[str, Any]:  # noqa: B008
    """Scores and rank correlations by query of every method, losses by training, seconds."""
    assert kind == "lora"
    tuning, values = Tuning(size, scale, seed), Values()
    values.tick("path")
    run, attributed = tuning.watched()
    values.tables["path"] = attributed.sort_by("sample_id")  # halves are drawn in this order
    replayed = [m for m in METHODS if m not in ("path", "TracIn")]
    values.tables |= values_by_method(
        run, tuning.utility, tuning.contents(), methods=replayed, seed=seed, tick=values.tick
    )
    values.tick("TracIn")
    values.tables["TracIn"] = tracin(run, tuning.utility, STATES).values()
    values.tick(EXACT)
    values.tables[EXACT] = inrun.lookahead(run, tuning.utility, damped=False).values()
    values.tick("trainings without halves")
    score = inrun.truth.lds(tuning, tuning.utility, values.tables, subsets=scale.halves)
    values.tick("end")
    del values.seconds["end"]
    start = losses_of(tuning.utility, tuning.adapted.start()[0])
    ends = torch.stack([start, losses_of(tuning.utility, tuning.finished())])
    return {
        "scores": {row.pop("method"): row for row in score.table.to_pylist()},
        "by query": {m: _by_query(tuning, table, score) for m, table in values.tables.items()},
        "ceiling": score.ceiling,
        "losses": score.losses.tolist(),
        "left out": score.left_out,
        "start and end": ends.tolist(),
        "seconds": values.seconds,
    }


def _by_query(tuning: Tuning, table: pa.Table, score: inrun.truth.DatamodelingScore) -> list[float]:
    """Spearman's over the halves, 0 where the method does not tell samples apart."""
    place = {who: row for row, who in enumerate(table["sample_id"].to_pylist())}
    found = []
    for query, losses in zip(tuning.queries, score.losses.T, strict=True):
        values = table[query].to_numpy()
        said = np.array([sum(values[place[i]] for i in gone) for gone in score.left_out])
        found.append(float(np.nan_to_num(agreement(said, losses).spearman)))
    return found
