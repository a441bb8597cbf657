"""Every ranking of the training rows, high for the likely planted. Letters: N training rows."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from time import process_time

import numpy as np
import torch
from torch import Tensor, nn

import inrun
from benchmarks.classification import tasks
from benchmarks.poison.training import Experiment

TOTAL, TRACED, AHEAD = "path, total", "path, standardised", "look-ahead"
LESS = ", less without trigger"


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
