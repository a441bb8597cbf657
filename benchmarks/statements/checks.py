"""Checks by training again, audits, and totals of which a part is scored: stated and measured.

Differences between trainings are real ones: 240 trainings on random 240 of 300 digits, of which two
at a time are an arm and its control that differ by chance alone. Normal differences stand beside
them. A gain is put there by adding it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student

from benchmarks.keyed import Keyed
from benchmarks.statements.trainings import (
    TRAINING,
    Digits,
    accuracy,
    attributed,
    batches,
    digits,
    loss_fn,
    model,
    optimizer_of,
)
from inrun.truth import median_interval
from inrun.uses._gain import half_at_every_look, half_interval, mean_of, next_of, smallest_seen

TRAININGS, KEPT, CHECKS, PLANNED, MOST = 240, 240, 1000, 5, 20
AUDITS, EVERY, DRAWS = (3, 6, 8, 12), (2, 4, 8), 200
QUANTILES: dict[str, Callable[[np.ndarray], Any]] = {
    "1.96": lambda visits: 1.96,
    "Student's t": lambda visits: student.ppf(0.975, np.maximum(visits, 1)),
}


@dataclass(frozen=True)
class Setting(Keyed):
    """A draw of the digits, a fifth of which have wrong labels."""

    data: int


def measure(key: str) -> dict[str, Any]:
    """By where differences come from, how checks did; audits; totals."""
    setting = Setting.of(key)
    data, rng = digits("balanced", 0.2, setting.data), np.random.default_rng(setting.data)
    scores = np.array([_plain(data, rng.permutation(TRAINING)[:KEPT], s) for s in range(TRAININGS)])
    pairs = np.stack([rng.permutation(TRAININGS)[: 2 * MOST] for _ in range(CHECKS)])
    drawn = scores[pairs[:, :MOST]] - scores[pairs[:, MOST:]]
    return {
        "checks": {
            "trainings": _checks(drawn + 1e-9 * rng.normal(size=drawn.shape)),
            "normal": _checks(rng.normal(size=(CHECKS, MOST))),
        },
        "audits": _audits(rng),
        "totals": _totals(data, setting.data, rng),
    }


def _plain(data: Digits, rows: np.ndarray, seed: int) -> float:
    network = model(seed)
    optimizer = optimizer_of(network)
    for ids in batches(torch.as_tensor(rows), seed):
        loss_fn(network, (data.images[ids], data.labels[ids])).backward()
        optimizer.step()
        optimizer.zero_grad()
    return accuracy(network, data.test)


def _checks(x: np.ndarray) -> dict[str, float]:
    """Shares of checks, (checks, trainings) differences of mean 0."""
    fixed = x[:, :PLANNED]
    looks = range(2, MOST + 1)
    smallest = float(np.mean([smallest_seen(row) for row in fixed[:300]]))

    def ever(row: np.ndarray, half: Callable[[np.ndarray], float], last: int) -> bool:
        return any(row[:n].mean() > half(row[:n]) for n in looks if n <= last)

    def planned(row: np.ndarray) -> float:
        return half_interval(row) if len(row) == PLANNED else half_at_every_look(row)

    inside = [abs(row[:n].mean()) <= half_at_every_look(row[:n]) for row in x for n in looks]
    return {
        "covered": float(np.mean([abs(mean_of(r).mean) <= half_interval(r) for r in fixed])),
        "covered at every look": float(np.mean(np.reshape(inside, (len(x), -1)).all(1))),
        "supported": float(np.mean([r.mean() > half_interval(r) for r in fixed])),
        "supported by 10 looks, Student": float(np.mean([ever(r, half_interval, 10) for r in x])),
        "supported by 10 looks": float(np.mean([ever(r, planned, 10) for r in x])),
        "supported by 20 looks, Student": float(np.mean([ever(r, half_interval, MOST) for r in x])),
        "supported by 20 looks": float(np.mean([ever(r, planned, MOST) for r in x])),
        "next inside": float(np.mean([_next(row) for row in x])),
        "smallest seen": float(np.mean([r.mean() + smallest > half_interval(r) for r in fixed])),
    }  # fmt: skip


def _next(row: np.ndarray) -> bool:
    found = next_of(row[:PLANNED])
    return bool(found.low <= row[PLANNED] <= found.high)


def _audits(rng: np.random.Generator) -> dict[str, dict[str, float]]:
    """By checks, how often the interval of the median agreement holds it; the checks are drawn.

    1 - R of a check is lognormal here: most checks agree closely, a few badly.
    """

    def share(count: int, interval: Callable[[np.ndarray], Sequence[float]]) -> float:
        found = (interval(np.exp(rng.normal(size=count))) for _ in range(CHECKS))
        return float(np.mean([low <= 1 <= high for low, high in found]))

    def bootstrap(x: np.ndarray) -> Sequence[float]:
        medians = np.median(x[rng.integers(len(x), size=(400, len(x)))], axis=1)
        low, high = np.percentile(medians, [2.5, 97.5])
        return float(low), float(high)

    def order(x: np.ndarray) -> Sequence[float]:
        low, high = median_interval(x)
        return (low, high) if np.isfinite(low) else (-np.inf, np.inf)

    return {str(n): {"bootstrap": share(n, bootstrap), "order": share(n, order)} for n in AUDITS}


def _totals(data: Digits, seed: int, rng: np.random.Generator) -> dict[str, dict[str, float]]:
    """By `Sampled(every)`, the share of totals within so many standard errors of the true ones."""
    seen = attributed(data, seed)
    values, steps = seen.values[0].mean(2), seen.steps
    true, last = values.sum(1), int(steps.max())
    found = {}
    for every in EVERY:
        covered: dict[str, list[float]] = {name: [] for name in QUANTILES}
        for _ in range(DRAWS):
            begins = np.arange(1, last + 1, every)
            scored = np.zeros(last + every + 1, bool)
            scored[begins + rng.integers(every, size=len(begins))] = True
            x = np.where(scored[steps], every * values, 0.0)
            visits = scored[steps].sum(1)
            error = np.sqrt((1 - 1 / every) * (x**2).sum(1))
            for name, quantile in QUANTILES.items():
                inside = np.abs(x.sum(1) - true) <= quantile(visits) * error
                covered[name].append(float(inside[visits > 0].mean()))
        found[str(every)] = {name: float(np.mean(shares)) for name, shares in covered.items()}
    return found
