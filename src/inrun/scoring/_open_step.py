"""One optimizer step while it is open: blocks of samples come in, each with its backward pass.

Letters: B samples of a block, K targets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum

from torch import Tensor

from inrun.capture import Block, Capture, Sketch
from inrun.directions import Gradients
from inrun.factors import Factor, compute_dtype
from inrun.ledger import Ids
from inrun.scoring._scorer import Scorer
from inrun.utility import Evaluation

Stage = Enum("Stage", ["OPEN", "READ", "TAKEN", "SCORED"])


class OpenStep:
    """The blocks that a step will have, and what they need while they run.

    `weight` is how many steps it stands for, 0 where it is not scored; `audited` whether factors
    are kept beside sketches.
    """

    audited = False

    def __init__(self, scorer: Scorer, number: int, weight: float):
        self.number, self.weight, self.stage = number, weight, Stage.OPEN
        self._scorer = scorer
        self._ended: list[tuple[Ids, Block]] = []
        self._opening: Evaluation | None = None

    def begin_pass(self, capture: Capture) -> None:
        """A forward and a backward pass begin: `stream` needs the opening gradient within."""
        if capture.contracts_early:
            self._opening = self._scorer.validation.opening(capture)
            self._scorer.optimizers.block_begins()

    def contract(self, capture: Capture, name: str, factors: Sequence[Factor]) -> list[Tensor]:
        """Values (B, K) of factors inside the backward pass: what `stream` contracts with.

        Of several processes all call it for a parameter, also those that have no factors of it.
        """
        p, scorer = capture.trained[name], self._scorer
        mean = scorer.processes.apart().mean if scorer.processes.size > 1 else None
        move = scorer.optimizers.move_of(p, scorer.forecast.factor(len(self._ended) + 1), mean)
        if not factors:
            return []
        assert self._opening is not None
        opening = Gradients(self._opening.gradients[name])
        gradient_K = scorer.direction.gradient(opening, move).to(compute_dtype(p))
        Q = scorer.direction.slope(move).transposed(gradient_K)
        return [values.double() for values in scorer.contraction.contract(name, factors, Q)]

    def add(self, ids: Ids, block: Block) -> None:
        self._ended.append((ids, block))

    def finish(self, capture: Capture) -> bool:
        """Compares blocks with the gradients; True where some turned out not to be in them.

        The loop zeroed the gradients after those: they count no more. Nor does one that is wrong.
        """
        unread = capture.check.unread
        try:
            flags = capture.finish()
        except BaseException:
            del self._ended[len(self._ended) - unread :]
            raise
        for block in self.blocks:  # a gap is one for the whole step
            for name in capture.check.excluded:
                block.factors.pop(name, None)
        if not any(flags):
            return False
        del self._ended[: len(self._ended) - flags[::-1].index(True) - 1]
        return True

    @property
    def blocks(self) -> list[Block]:
        """Those that count, in their order."""
        return [block for _, block in self._ended]

    @property
    def owned(self) -> list[Block]:
        """Those of samples among them."""
        return [block for block in self.blocks if block.owned]

    @property
    def ids(self) -> Ids:
        return [i for ids, _ in self._ended for i in ids]  # type: ignore[return-value]  # of one kind

    def pass_by(self, *, skips: bool) -> None:
        """In place of being read, a step that is not scored."""
        self.stage = Stage.OPEN if skips else Stage.READ

    @property
    def sketches(self) -> Callable[[str, Factor], Sketch] | None:
        """What is kept of a parameter's factor in its place; None keeps factors."""
        return None
