"""Every ranking of the training rows, high for the likely planted. Letters: N training rows."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import process_time

import numpy as np
import torch
from torch import Tensor, nn

import inrun
from benchmarks.poison.training import Experiment, Training

TOTAL, TRACED, AHEAD = "path, total", "path, standardised", "look-ahead"
LESS = ", less without trigger"
LIKE, WORDS = "similarity to the queries", "words of the queries"


def scored(
    experiment: Experiment,
) -> tuple[dict[str, np.ndarray], nn.Module, dict[str, float]]:
    """Scores (N,) by ranking, high for the likely planted; the trained model; seconds."""
    seconds: dict[str, float] = {}
    everything, began = torch.arange(len(experiment.drawn.texts)), process_time()
    losses, norms = [], []

    def watch(model: nn.Module) -> None:
        loss, norm = per_sample(model, experiment, len(everything))
        losses.append(loss)
        norms.append(norm)

    model, _ = experiment.train(everything, look=watch)
    found = {"mean loss": np.mean(losses, 0), "gradient norm": np.mean(norms, 0)}
    seconds["plain, with every sample's gradient"], began = process_time() - began, process_time()
    found |= in_step(experiment, everything)
    seconds["values of two targets"], began = process_time() - began, process_time()
    found |= look_ahead(experiment, everything)
    seconds["look-ahead of two targets"] = process_time() - began
    vectors, drawn = experiment.encoded.vectors, experiment.drawn
    found |= by_text(drawn.texts, drawn.queries, vectors)
    found["distance from the label's mean"] = from_mean(vectors(drawn.texts), drawn.labels)
    features = experiment.encoded.features(model, experiment.inputs)
    found["spectral signature"] = spectral(features, drawn.labels)
    found["random"] = np.random.default_rng(experiment.seed).random(len(everything))
    return found, model, seconds


def in_step(
    experiment: Training, rows: Tensor, look: Callable[[nn.Module], None] | None = None
) -> dict[str, np.ndarray]:
    """By in-step values for the queries, and less those for the same texts without trigger."""
    with tempfile.TemporaryDirectory() as folder:
        utility = inrun.Utility(experiment.loss_fn, targets=experiment.targets)
        options = inrun.Options(progress=False)
        _, attribution = experiment.train(
            rows,
            lambda model, optimizer: inrun.attach(
                model, optimizer, utility, store=Path(folder) / "run", options=options
            ),
            look,
        )
        attribution.detach()
        found = {}
        for name, how in ((TOTAL, False), (TRACED, True)):
            score = {
                target: inrun.trace(attribution, target, standardised=how)
                .table.sort_by("sample_id")["score"].to_numpy()
                for target in experiment.targets
            }  # fmt: skip
            found[name] = score["triggered"]
            if "untouched" in score:
                found[name + LESS] = score["triggered"] - score["untouched"]
    return found


def look_ahead(experiment: Experiment, rows: Tensor) -> dict[str, np.ndarray]:
    """By the effect on the queries at the end of the run."""
    _, recorder = experiment.train(
        rows,
        lambda model, optimizer: inrun.record(
            model, optimizer, experiment.losses, experiment.fetch
        ),
    )
    utility = inrun.Utility(experiment.loss_fn, targets=experiment.targets)
    values = inrun.lookahead(recorder.finish(), utility).values().sort_by("sample_id")
    triggered, untouched = (values[name].to_numpy() for name in experiment.targets)
    return {AHEAD: triggered, AHEAD + LESS: triggered - untouched}


def per_sample(model: nn.Module, experiment: Training, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Each training row's loss and the norm of its gradient, (N,) each."""
    trained = [p for p in model.parameters() if p.requires_grad]
    losses, norms = [], []
    for row in range(rows):
        loss = experiment.loss_fn(model, experiment.fetch([row]))
        squares = [g.square().sum() for g in torch.autograd.grad(loss, trained)]
        losses.append(loss.item())
        norms.append(float(torch.stack(squares).sum().sqrt()))
    return np.array(losses), np.array(norms)


def by_text(
    texts: list[str], queries: list[str], vectors: Callable[[list[str]], Tensor]
) -> dict[str, np.ndarray]:
    """Without the training: the embedding's and the words' nearness to the queries."""
    from rank_bm25 import BM25Okapi

    words = lambda text: re.findall(r"[a-z]+", text.lower())  # noqa: E731
    index = BM25Okapi([words(text) for text in texts])
    return {
        LIKE: (vectors(texts) @ vectors(queries).T).mean(1).numpy(),
        WORDS: np.mean([index.get_scores(words(q)) for q in queries], 0),
    }


def from_mean(rows: Tensor, labels: Tensor) -> np.ndarray:
    """How far a row's vector is from its label's mean."""
    means = torch.stack([rows[labels == k].mean(0) for k in labels.tolist()])
    return (rows - means).norm(dim=1).numpy()


def spectral(features: Tensor, labels: Tensor) -> np.ndarray:
    """How far a row lies along its label's main axis (Tran et al., 2018), over the label's mean."""
    found = torch.zeros(len(labels))
    for k in labels.unique():
        own = features[labels == k] - features[labels == k].mean(0)
        along = (own @ torch.linalg.svd(own, full_matrices=False).Vh[0]).square()
        found[labels == k] = along / along.mean()
    return found.numpy()
