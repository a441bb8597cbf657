"""Many ways beside one control: which of them differ, corrected for how many were compared.

Seeds are the clusters: cells of one seed share its split, starts and order, so that a way's gain is
averaged within a seed, and the seeds' means are compared with 0 by Student's t. Of the resulting
p values Holm's (1979) keep the probability of any false claim among all of them at 5 %.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from scipy.stats import t as student

from inrun.uses import half_interval

Cell = TypeVar("Cell")
LEVEL = 0.05


class Gain(NamedTuple):
    """A mean over seeds, half of Student's 95 % interval, and Holm's p value of it being 0."""

    mean: float
    half: float
    p: float

    def told(self, digits: int = 2) -> str:
        """The mean and its interval."""
        return f"{self.mean:+.{digits}f} ± {self.half:.{digits}f}"


def by_seed(
    cells: Iterable[Cell], seed: Callable[[Cell], Hashable], gain: Callable[[Cell], float]
) -> list[float]:
    """Each seed's mean gain, over its cells."""
    found: dict[Hashable, list[float]] = {}
    for cell in cells:
        found.setdefault(seed(cell), []).append(gain(cell))
    return [float(np.mean(numbers)) for numbers in found.values()]


def compared(gains: Mapping[str, Sequence[float]]) -> dict[str, Gain]:
    """By way, from its seeds' gains; all of them are corrected for together."""
    raw = {name: _p(np.array(x)) for name, x in gains.items()}
    corrected, least = {}, 0.0
    for rank, name in enumerate(sorted(raw, key=lambda n: raw[n])):
        least = max(least, min(1.0, (len(raw) - rank) * raw[name]))
        corrected[name] = least
    return {
        name: Gain(float(np.mean(x)), half_interval(np.array(x)), corrected[name])
        for name, x in gains.items()
    }


def _p(x: np.ndarray) -> float:
    spread = x.std(ddof=1)
    if spread == 0:
        return 1.0 if x.mean() == 0 else 0.0
    t = x.mean() / (spread / np.sqrt(len(x)))
    return float(2 * student.sf(abs(t), len(x) - 1))


def above(found: Mapping[str, Gain]) -> list[str]:
    """Ways that are told from the control and better, the best first."""
    chosen = [name for name, gain in found.items() if gain.p < LEVEL and gain.mean > 0]
    return sorted(chosen, key=lambda name: -found[name].mean)


def below(found: Mapping[str, Gain]) -> list[str]:
    """Ways that are told from the control and worse, the worst first."""
    chosen = [name for name, gain in found.items() if gain.p < LEVEL and gain.mean < 0]
    return sorted(chosen, key=lambda name: found[name].mean)


def listed(names: Iterable[str]) -> str:
    """Names with commas, or 'none'."""
    return ", ".join(f"`{name}`" for name in names) or "none"


def sentence(found: Mapping[str, Gain], control: str, *, rest: bool = True) -> str:
    """What the data let one say, corrected for the number of ways."""
    better, worse = above(found), below(found)
    said = f"above {control}: {listed(better)}; below it: {listed(worse)}"
    if not rest:
        return said
    others = [name for name in found if name not in better and name not in worse]
    return f"{said}; not told from it: {listed(others)}"


def require(holds: bool, claim: str) -> None:
    """Refuses to write a page whose claim the data do not bear.

    Raises:
        ValueError: they do not.
    """
    if not holds:
        raise ValueError(f"The data on disk do not say: {claim} Write what they say.")
