"""What outlives a step of what scores it: the method, and what is learned from step to step.

A step itself is a `Step`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inrun.capture import Block, Capture
from inrun.directions import Direction
from inrun.distributed import Processes
from inrun.factors import Contraction
from inrun.optim import Together
from inrun.scoring._plan import ParameterPlan, RuleCheck, Smoothing
from inrun.scoring._validation import Validation
from inrun.utility import Utility


class Scorer:
    """One of a run."""

    def __init__(
        self,
        model: nn.Module,
        optimizers: Together,
        utility: Utility,
        direction: Direction,
        smoothed_steps: int,
        contraction: Contraction,
        processes: Processes,
        *,
        sized: bool = False,
    ):
        self.sized = sized
        self.optimizers, self.processes, self.contraction = optimizers, processes, contraction
        self.direction, self.targets = direction, utility.targets
        self.smoothing = Smoothing(direction, smoothed_steps)
        self.forecast = Forecast()
        self.rule_check = RuleCheck()
        self.validation = Validation(model, utility, processes)
        self.untold: set[str] = set()  # whose shares cancel, and that are not smoothed
        self._steps_read = 0

    @property
    def estimator(self) -> str:
        return self.direction.name

    @property
    def one_direction(self) -> bool:
        """Whether all samples of a step meet the same direction."""
        return not self.direction.by_sample and not self.smoothing.steps

    def held(self, capture: Capture, blocks: Sequence[Block]) -> set[str]:
        """Parameters with shares to contract; in any process where directions are gathered."""
        names = list(capture.trained)
        without = [not any(block.factors.get(name) for block in blocks) for name in names]
        if capture.sharded:
            without = self.processes.all(without)
        return {name for name, none in zip(names, without, strict=True) if not none}

    def measure_updates(self, capture: Capture, plans: Mapping[str, ParameterPlan]) -> None:
        """For `coverage()`: how much of the update each parameter has."""
        self._steps_read += 1
        if not capture.coverage.wants_updates(self._steps_read):
            return
        squares = {name: plan.update_square() for name, plan in plans.items()}
        if capture.sharded and squares:  # each process has its own parts
            rows = torch.stack([square.double() for square in squares.values()])
            squares = dict(zip(squares, self.processes.mean(rows), strict=True))
        capture.coverage.updated(squares)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        contraction, tensors = self.contraction.state()
        header = {
            "forecast": self.forecast.numbers(), "checked": self.rule_check.steps,
            "passes": self.validation.passes, "contraction": contraction,
        }  # fmt: skip
        return header, tensors

    def restore(self, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.forecast = Forecast(*header["forecast"])
        self.rule_check = RuleCheck(header["checked"])
        self.validation.go_to(max(0, header["passes"] - 1))  # the last one is done again
        self.contraction.restore(header["contraction"], tensors)


class Forecast:
    """What `stream` expects to become of a gradient that is still coming in: what did last time.

    A direction that is formed inside the backward pass does not know yet how many micro-batches
    will be added nor by how much the sum will be clipped or unscaled. `scale` is the consumed
    gradient over the sum of the blocks' in the last step, which had so many `blocks`.
    """

    def __init__(self, scale: float = 1.0, blocks: float = 1) -> None:
        self._scale, self._blocks = scale, int(blocks)
        self.error = 0.0

    def learn(self, scale: float, blocks: int) -> None:
        """Takes note of a finished step, and of how far off its forecast was."""
        self.error = abs(self._scale / scale - 1) if scale else 0.0
        self._scale, self._blocks = scale, blocks

    def numbers(self) -> list[float]:
        """What must survive a restart."""
        return [self._scale, self._blocks]

    def factor(self, blocks_now: int) -> float:
        """Consumed gradient over the gradient so far."""
        return self._scale * max(1.0, self._blocks / blocks_now)
