"""Whose shares are compared with the gradient in this step: of large ones a quarter, in turn.

What makes shares wrong is in the model or in the loop and comes again with every step: a rule, a
hook, a penalty: no reason to read each layer's activations once more for it in every step.
"""

from __future__ import annotations

from inrun.factors import Factor

LARGE = 65_536  # elements that a factor holds; smaller ones are compared in every step
FIRST_STEPS = 8  # in which all are compared
TURNS = 4


class Rota:
    """Asked for each factor of a step; the answer is one for all of a parameter's.

    Args:
        always: whether all are compared in every step.
    """

    def __init__(self, *, always: bool):
        self._always = always
        self._large: list[str] = []
        self._met: dict[str, None] = {}  # large ones that this step was the first to show
        self._now: set[str] = set()
        self._steps = 0

    def asks(self, name: str, factor: Factor) -> bool:
        """Whether this parameter's shares are to be compared in this step."""
        if self._always or name in self._now:
            return True
        if name in self._large:
            return False
        if sum(t.numel() for t in factor.held) > LARGE:
            self._met[name] = None
        return True

    def next_step(self, blocks: int) -> None:
        """Turns to those of the next step.

        Args:
            blocks: of the step that is over. Whether earlier blocks are in a gradient at all is
                told by the comparison too, so that where they accumulate all are compared.
        """
        self._steps += 1
        self._large += [name for name in self._met if name not in self._large]
        self._met = {}
        every = self._steps < FIRST_STEPS or blocks > 1
        turns = 1 if every else max(1, min(TURNS, len(self._large)))
        self._now = set(self._large[self._steps % turns :: turns])
