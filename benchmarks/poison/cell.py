"""One cell: a training with planted rows, every ranking, and trainings without what it ranks first.

The model is the pretrained MiniLM's last layer with a head (see `benchmarks.classification`), in
AdamW. All rankings see the same training. Letters: N training rows, k planted ones.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import inrun
from benchmarks.classification import tasks
from benchmarks.keyed import Keyed
from benchmarks.poison.texts import Planted, plant

WANTED, RANDOM = "trade", 2  # the topic that the trigger stands for; removals by chance
TOTAL, TRACED, AHEAD = "path, total", "path, standardised", "look-ahead"
LESS = ", less without trigger"
REMOVED = (TOTAL, AHEAD, "mean loss", "similarity to the queries")


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


@dataclass(frozen=True)
class Setting(Keyed):
    """Which trigger, what share of the rows is planted, and a seed for everything."""

    trigger: str
    share: float
    seed: int


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


class Experiment:
    """One draw, ready to be trained."""

    def __init__(self, drawn: Planted, encoded: Encoded, scale: Scale, seed: int):
        self.drawn, self.encoded, self.scale, self.seed = drawn, encoded, scale, seed
        self.inputs = encoded.inputs(drawn.texts)

    def fetch(self, ids: Any) -> tuple[tasks.Inputs, Tensor]:
        """A training batch."""
        rows = torch.as_tensor(ids)
        return tuple(t[rows] for t in self.inputs), self.drawn.labels[rows]

    @cached_property
    def targets(self) -> dict[str, tuple[tasks.Inputs, Tensor]]:
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
                    tasks.loss_fn(model, self.fetch(ids)).backward()
                else:
                    with watching.batch(ids.tolist()):
                        tasks.loss_fn(model, self.fetch(ids)).backward()
                optimizer.step()
                optimizer.zero_grad()
            if look and epoch % self.scale.looked == 0:
                look(model)
        return model, watching

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


def measure(key: str) -> dict[str, Any]:
    """Recall by ranking, behaviour after each training, processor seconds."""
    setting = Setting.of(key)
    scale, (texts, labels, names) = Scale(), tasks.r8_texts()
    drawn = plant(
        (texts, labels), names.index(WANTED), setting.trigger, setting.share, scale.size,
        setting.seed,
    )  # fmt: skip
    return found_and_removed(Experiment(drawn, minilm(), scale, setting.seed))


def found_and_removed(experiment: Experiment) -> dict[str, Any]:
    """What `measure` returns, of any experiment."""
    planted = experiment.drawn.planted.numpy()
    k, everything = int(planted.sum()), torch.arange(len(planted))
    scores, model, seconds = scored(experiment)
    removed = {name: torch.as_tensor(_order(scores[name])[:k].copy()) for name in REMOVED}
    removed["the planted rows"] = torch.nonzero(experiment.drawn.planted)[:, 0]
    for n in range(RANDOM):
        generator = torch.Generator().manual_seed(1000 * (1 + experiment.seed) + n)
        removed[f"random {n}"] = torch.randperm(len(planted), generator=generator)[:k]
    behaviour = {"nothing": experiment.behaviour(model)}
    for name, rows in removed.items():
        left = everything[~torch.isin(everything, rows)]
        behaviour[name] = experiment.behaviour(experiment.train(left)[0])
    return {
        "planted": k,
        "rows": len(planted),
        "recall": {name: _recall(score, planted) for name, score in scores.items()},
        "behaviour": behaviour,
        "seconds": seconds,
    }


def scored(
    experiment: Experiment,
) -> tuple[dict[str, np.ndarray], nn.Module, dict[str, float]]:
    """Scores (N,) by ranking, high for the likely planted; the trained model; seconds."""
    seconds: dict[str, float] = {}
    began = process_time()
    losses, norms = [], []

    def watch(model: nn.Module) -> None:
        loss, norm = per_sample(model, experiment)
        losses.append(loss)
        norms.append(norm)

    everything = torch.arange(len(experiment.drawn.texts))
    model, _ = experiment.train(everything, look=watch)
    found = {"mean loss": np.mean(losses, 0), "gradient norm": np.mean(norms, 0)}
    seconds["plain, with every sample's gradient"], began = process_time() - began, process_time()
    found |= in_step(experiment, everything)
    seconds["values of two targets"], began = process_time() - began, process_time()
    found |= look_ahead(experiment, everything)
    seconds["look-ahead of two targets"] = process_time() - began
    found |= by_text(experiment)
    features = experiment.encoded.features(model, experiment.inputs)
    found["spectral signature"] = spectral(features, experiment.drawn.labels)
    found["random"] = np.random.default_rng(experiment.seed).random(len(everything))
    return found, model, seconds


def in_step(experiment: Experiment, rows: Tensor) -> dict[str, np.ndarray]:
    """By in-step values for the queries, and less those for the same texts without trigger."""
    with tempfile.TemporaryDirectory() as folder:
        utility = inrun.Utility(tasks.loss_fn, targets=experiment.targets)
        options = inrun.Options(progress=False)
        _, attribution = experiment.train(
            rows,
            lambda model, optimizer: inrun.attach(
                model, optimizer, utility, store=Path(folder) / "run", options=options
            ),
        )
        attribution.detach()
        tables = {
            (how, name): inrun.trace(attribution, name, standardised=how == "standardised").table
            for how in ("total", "standardised")
            for name in ("triggered", "untouched")
        }
    score = {at: table.sort_by("sample_id")["score"].to_numpy() for at, table in tables.items()}
    return {
        TOTAL: score["total", "triggered"],
        TOTAL + LESS: score["total", "triggered"] - score["total", "untouched"],
        TRACED: score["standardised", "triggered"],
        TRACED + LESS: score["standardised", "triggered"] - score["standardised", "untouched"],
    }


def look_ahead(experiment: Experiment, rows: Tensor) -> dict[str, np.ndarray]:
    """By the effect on the queries at the end of the run."""
    _, recorder = experiment.train(
        rows,
        lambda model, optimizer: inrun.record(model, optimizer, tasks.losses, experiment.fetch),
    )
    utility = inrun.Utility(tasks.loss_fn, targets=experiment.targets)
    values = inrun.lookahead(recorder.finish(), utility).values().sort_by("sample_id")
    triggered, untouched = (values[name].to_numpy() for name in experiment.targets)
    return {AHEAD: triggered, AHEAD + LESS: triggered - untouched}


def per_sample(model: nn.Module, experiment: Experiment) -> tuple[np.ndarray, np.ndarray]:
    """Each training row's loss and the norm of its gradient, (N,) each."""
    trained = [p for p in model.parameters() if p.requires_grad]
    losses, norms = [], []
    for row in range(len(experiment.drawn.texts)):
        loss = tasks.loss_fn(model, experiment.fetch([row]))
        squares = [g.square().sum() for g in torch.autograd.grad(loss, trained)]
        losses.append(loss.item())
        norms.append(float(torch.stack(squares).sum().sqrt()))
    return np.array(losses), np.array(norms)


def by_text(experiment: Experiment) -> dict[str, np.ndarray]:
    """Without the training: the embedding's and the words' nearness to the queries."""
    from rank_bm25 import BM25Okapi

    words = lambda text: re.findall(r"[a-z]+", text.lower())  # noqa: E731
    index = BM25Okapi([words(text) for text in experiment.drawn.texts])
    rows = experiment.encoded.vectors(experiment.drawn.texts)
    queries = experiment.encoded.vectors(experiment.drawn.queries)
    apart = torch.stack(
        [rows[experiment.drawn.labels == k].mean(0) for k in experiment.drawn.labels.tolist()]
    )
    return {
        "similarity to the queries": (rows @ queries.T).mean(1).numpy(),
        "distance from the label's mean": (rows - apart).norm(dim=1).numpy(),
        "words of the queries": np.mean(
            [index.get_scores(words(q)) for q in experiment.drawn.queries], 0
        ),
    }


def spectral(features: Tensor, labels: Tensor) -> np.ndarray:
    """How far a row lies along its label's main axis (Tran et al., 2018), over the label's mean."""
    found = torch.zeros(len(labels))
    for k in labels.unique():
        own = features[labels == k] - features[labels == k].mean(0)
        along = (own @ torch.linalg.svd(own, full_matrices=False).Vh[0]).square()
        found[labels == k] = along / along.mean()
    return found.numpy()


def _order(score: np.ndarray) -> np.ndarray:
    return np.argsort(-score, kind="stable")


def _recall(score: np.ndarray, planted: np.ndarray) -> dict[str, float]:
    """The share of the planted rows among the first k and 2k, k being how many there are."""
    k, order = int(planted.sum()), _order(score)
    return {f"{n}k": float(planted[order[: n * k]].sum() / k) for n in (1, 2)}
