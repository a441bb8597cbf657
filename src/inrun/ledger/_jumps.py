"""How far a number is from what is usual around it, in robust deviations.

The usual is the median m of its neighbours, and a robust deviation their spread
1.4826 * median|x - m|, which is the standard deviation of normal numbers and is moved by no few
outliers:

    deviations(x) = (x - m) / spread

A constant run has no spread; there a number counts by a millionth of the median's size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from math import isfinite
from typing import Any

import numpy as np

AROUND = 50  # neighbours on each side
JUMP = 8.0  # robust deviations from which a step's rise of the loss is called a jump
FEWEST = 20  # neighbours that say what is usual


def usual_of(neighbours: np.ndarray) -> tuple[float, float]:
    """Median and robust spread of numbers; NaN where none is finite.

    Example:
        >>> import numpy as np
        >>> usual_of(np.array([1.0, 2.0, 3.0, 4.0, 100.0]))
        (3.0, 1.4826)
    """
    known = neighbours[np.isfinite(neighbours)]
    if not len(known):
        return float("nan"), float("nan")
    middle = float(np.median(known))
    spread = 1.4826 * float(np.median(np.abs(known - middle)))
    return middle, max(spread, 1e-6 * abs(middle), 1e-300)


def deviations(numbers: np.ndarray, around: int = AROUND) -> np.ndarray:
    """(S,) each number's deviations from what is usual among its `around` neighbours on each side.

    NaN where it is not finite itself.
    """
    found = np.full(len(numbers), np.nan)
    for at, number in enumerate(numbers.tolist()):
        beside = numbers[max(0, at - around) : at], numbers[at + 1 : at + 1 + around]
        middle, spread = usual_of(np.concatenate(beside))
        found[at] = (number - middle) / spread
    return found


class Jumps:
    """The same while steps come in, from those before alone."""

    def __init__(self) -> None:
        self._before: deque[float] = deque(maxlen=2 * AROUND)

    def words(self, row: Mapping[str, Any]) -> str:
        """What there is to say of one more step's row of the books: nothing but for a jump."""
        rise = row["closing_loss"] - row["opening_loss"]
        away = self._deviations(rise)
        if away <= JUMP:
            return ""
        return (
            f"step {row['step']}: the validation loss rose by {rise:.4g}, {away:.0f} robust "
            f"deviations from the steps before. inrun explain RUN --step {row['step']} says why."
        )

    def _deviations(self, rise: float) -> float:
        """Of one more rise; 0 where too few steps came before it, or it is not known."""
        if not isfinite(rise):
            return 0.0
        found = 0.0
        if len(self._before) >= FEWEST:
            middle, spread = usual_of(np.array(self._before))
            found = (rise - middle) / spread
        self._before.append(rise)
        return found
