"""By which factor k the gradients were multiplied between the last block and the step.

Each parameter tells |k| by its norm and the sign by its random direction. Clipping by norm,
unscaling, averaging and negation have one k for all parameters, and then what one of them cannot
tell by itself (a gradient that happens to be orthogonal to its direction) the others do. Where no
number explains the change it was made element by element, and k is None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from inrun.capture._taken_down import Measured

FULL = 1e-3  # `close` of precisions whose rounding is far below it


class Change(NamedTuple):
    """A parameter's gradient when its block ended, and as the optimizer consumes it.

    `close`: how far two such numbers may differ, relative to the gradient, for its precision.
    `untouched`: nothing was written to it in between. `least`: how far the norms may be apart for
    what lies between the smallest numbers of the precision.
    """

    mark: Measured
    now: Measured
    close: float
    untouched: bool = False
    least: float = 0.0

    def size(self) -> float:
        """|k|, if there is a k."""
        return self.now.norm / self.mark.norm

    def sign(self) -> int:
        """Of k; 0 where this gradient's component along its direction does not tell."""
        sure = self.close * (0.1 if self.close < FULL else 1.0)
        mark, now = self.mark, self.now
        told = abs(mark.probe) > sure * mark.norm + self.least
        if not (told and abs(now.probe) > sure * now.norm + self.least):
            return 0
        return 1 if now.probe * mark.probe > 0 else -1

    def explained_by(self, k: float, noise: float = 0.0) -> bool:
        """Whether multiplying by k is what happened; `noise` counts as 0 in this step."""
        allowed = self.close * (self.now.norm + abs(self.now.probe)) + self.least + noise
        return (
            abs(self.now.norm - abs(k) * self.mark.norm) <= allowed
            and abs(self.now.probe - k * self.mark.probe) <= allowed
        )


def factors(changes: Mapping[str, Change], noise: float) -> dict[str, float | None]:
    """K by parameter name, None where no such number exists or its sign cannot be told.

    Args:
        changes: of every parameter that the optimizer moves.
        noise: norm of a gradient that is rounding, in this step.
    """
    found = {name: _own(change) for name, change in changes.items()}
    sign_of = {n: c.sign() for n, c in changes.items() if found[n] is not None}
    common = _common([changes[n] for n, told in sign_of.items() if told])
    signs = set(sign_of.values()) - {0}
    sign = signs.pop() if len(signs) == 1 else None
    for name, change in changes.items():
        if change.mark.norm == 0:
            continue
        k = found[name]
        if common is not None and change.explained_by(common, abs(common) * noise):
            found[name] = common
        elif k is not None and sign_of[name] == 0 and k != 0 and not change.untouched:
            found[name] = None if sign is None else k * sign
    return found


def _own(change: Change) -> float | None:
    """What one parameter says by itself; positive where it cannot tell the sign."""
    if change.mark.norm == 0:
        return 1.0 if change.now.norm == 0 else None
    sign = change.sign()
    k = change.size() * (sign or 1)
    if sign:
        return k if change.explained_by(k) else None
    either = change.explained_by(k) or change.explained_by(-k)
    return k if either else None


def _common(told: list[Change]) -> float | None:
    """The factor of all that tell one, where it is the same."""
    if not told or len({c.sign() for c in told}) > 1:
        return None
    before = math.fsum(c.mark.norm**2 for c in told)
    k = told[0].sign() * math.sqrt(math.fsum(c.now.norm**2 for c in told) / before)
    return k if all(c.explained_by(k) for c in told) else None
