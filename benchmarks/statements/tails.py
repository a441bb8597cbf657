"""Counts of wrong labels from simulated doubts, with light tails and with heavy ones.

Doubts of right labels are drawn from a normal distribution or from Student's t of three degrees of
freedom, and those of wrong and planted ones from the same, moved up: where tails are heavy, some
right labels look more doubtful than any wrong one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.keyed import Keyed
from inrun.uses._wrong_labels import CLEAR, SEPARATED, counted

TAILS, NOISES = ("normal", "t3"), (0.0, 0.05, 0.1, 0.2, 0.4)
ROWS, PLANTED, DRAWS = 300, 60, 200
LEAST, MOST = 0.85, 0.995  # AUC of wrong labels against right ones
SEPARATIONS = (0.0, 0.9, SEPARATED, CLEAR)  # lower bounds


@dataclass(frozen=True)
class Setting(Keyed):
    """The tails of doubts, and the share of wrong labels."""

    tails: str
    noise: float


def measure(key: str) -> dict[str, Any]:
    """By stated separation: counts, how many intervals hold the truth, sums of errors."""
    setting = Setting.of(key)
    rng = np.random.default_rng([TAILS.index(setting.tails), round(100 * setting.noise)])
    shifts, wrong = _shifts(setting.tails), round(setting.noise * (ROWS - PLANTED))
    found: list[dict[str, Any]] = [{"counts": 0, "held": 0, "error": 0.0} for _ in SEPARATIONS]
    is_planted = np.arange(ROWS) < PLANTED
    is_wrong = np.arange(ROWS) < PLANTED + wrong  # the planted ones among them
    for _ in range(DRAWS):
        shift = np.interp(rng.uniform(LEAST, MOST), *shifts)
        told = counted(_drawn(setting.tails, rng, ROWS) + shift * is_wrong, is_planted)
        cell = found[int(np.digitize(told.separation, SEPARATIONS[1:]))]
        cell["counts"] += 1
        cell["held"] += int(told.low <= wrong <= told.high)
        cell["error"] += told.wrong - wrong
    return {f"{low:g}": cell for low, cell in zip(SEPARATIONS, found, strict=True)}


def _drawn(tails: str, rng: np.random.Generator, size: int) -> np.ndarray:
    drawn: np.ndarray = rng.normal(size=size) if tails == "normal" else rng.standard_t(3, size)
    return drawn


def _shifts(tails: str) -> tuple[np.ndarray, np.ndarray]:
    """AUCs and what has to be added for them."""
    rng, shifts = np.random.default_rng(0), np.linspace(0, 12, 400)
    apart = _drawn(tails, rng, 200_000) - _drawn(tails, rng, 200_000)
    return np.array([(apart < shift).mean() for shift in shifts]), shifts
