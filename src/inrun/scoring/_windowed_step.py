"""Steps of scoring windows.

A `WindowedStep` goes the way of any step, without validation passes of its own: what it leaves is
its sketches and by how much each parameter's shares are to be multiplied. Values of all steps of a
window are known when it is closed. Letters: N samples, K targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import nan
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from inrun.capture import Capture, Sketch
from inrun.errors import MisuseError
from inrun.factors import Factor
from inrun.ledger import Entries
from inrun.optim import Move
from inrun.scoring._gradients import scales_of
from inrun.scoring._open_step import Stage
from inrun.scoring._scorer import Scorer
from inrun.scoring._step import Step
from inrun.scoring._sums import DirectionWatcher, Scored

if TYPE_CHECKING:
    from inrun.scoring._windowed import Windows


class WindowedStep(Step):
    """A step of a scoring window.

    `rates`: by parameter that moved, its learning rate. `decays`: what decay shrank it by.
    """

    def __init__(self, scorer: Scorer, number: int, windows: Windows):
        super().__init__(scorer, number, 1.0)
        self.windows = windows
        self.rates: dict[str, float] = {}
        self.decays: dict[str, float] = {}
        self._scales: dict[str, float] = {}
        self._optimizer_of: dict[str, int] = {}

    def begin_pass(self, capture: Capture) -> None:
        """See `Step.begin_pass`: the first of a window runs its opening pass."""
        self.open(capture)
        if len(self._scorer.optimizers.members) == 1:  # of others one may skip for one gradient
            capture.check.scaling.measure_in_turn()

    def open(self, capture: Capture) -> None:
        """Opens its window, if it is the first."""
        self._opened = self.windows.begin(capture)

    @property
    def sketches(self) -> Callable[[str, Factor], Sketch]:
        """See `Step.sketches`: what the window that is open keeps."""
        return self._opened.sketch

    def read_before_step(self, capture: Capture) -> None:
        """See `Step.read_before_step`: without a pass."""
        with torch.no_grad():
            self._take_moves(capture)

    def plan(self, capture: Capture, first: int = 0) -> None:
        """See `Step.plan`: what shares are to be multiplied by, besides the direction.

        Raises:
            MisuseError: no sample accounts for what became of a gradient, or it is no common
                factor.
        """
        scorer, skipping = self._scorer, self._leave_out_overflowed(capture, first)
        consumed = {name: move.gradient for name, (_, _, move) in self._moving.items()}
        scales = scales_of(consumed, capture, self.blocks, scorer.processes, skipping)
        gone = capture.check.excluded
        for name, (k, _, move) in self._moving.items():
            scale = scales[name]
            self._optimizer_of[name] = k
            k_scale = 1.0 if scale is None else float(scale)
            self._keep(name, move, None if name in gone else k_scale / scorer.processes.size)
        self._moving, self.stage = {}, Stage.READ

    def share_scale(self, name: str) -> Tensor | float:
        """The consumed gradient over the shares' sum; the window has the learning rate."""
        rate = self.rates.get(name, 0.0)
        return self._scales.get(name, 0.0) / rate if rate else 0.0

    def take(self, k: int) -> None:
        """Notes that this optimizer stepped; nothing is read."""
        self.stepped.add(k)
        self.stage = Stage.TAKEN

    def results(
        self, capture: Capture, watcher: DirectionWatcher | None = None
    ) -> list[tuple[Step, Scored]]:
        """See `Step.results`: those of the whole window with its last step."""
        self.stage = Stage.SCORED
        gone = {n for n, k in self._optimizer_of.items() if k not in self.stepped}
        for name in gone:
            self._scales.pop(name, None)
            del self.rates[name], self.decays[name]
        return self.windows.add(self, capture)

    def adopt(self, exact: Step, capture: Capture) -> None:
        """Goes by what a step with exact values, of the same blocks, has read and taken."""
        self._ended, self.stepped, gone = exact._ended, exact.stepped, capture.check.excluded
        for name, plan in exact._plans.items():
            if plan.optimizer in self.stepped:
                self._keep(name, plan.move, None if name in gone else float(plan.share_scale))

    def _keep(self, name: str, move: Move[Any, Any], share_scale: float | None) -> None:
        self.rates[name] = rate = float(move.setting.lr)
        self.decays[name] = rate * float(getattr(move.setting, "apart", 0.0))
        if share_scale is not None:
            self._scales[name] = rate * share_scale

    # ---- at the window's end

    def values(self, ends: Mapping[int, Any], x: float, targets: int) -> np.ndarray:
        """(N, K) of all blocks' shares, the step at place x of its window."""
        found = []
        for block in self.blocks:
            total: Tensor | None = None
            for name, sketches in block.sketches.items():
                scale = self._scales.get(name)
                for basis, numbers in sketches if scale is not None else ():  # else it did not move
                    at = ends[id(basis)].at(basis.opening, x)
                    met = basis.meet(numbers, at).double() * scale
                    total = met if total is None else total + met.to(total.device)
            none = np.zeros((block.samples, targets))
            found.append(none if total is None else total.cpu().numpy())
        return np.concatenate([np.zeros((0, targets)), *found])

    @property
    def is_owned(self) -> np.ndarray:
        """Of each share of the step whether it is a sample's."""
        owned = [block.owned for block in self.blocks for _ in range(block.samples)]
        return np.array(owned, dtype=bool)  # of none too, where a process has no sample

    def entries(self, values_NK: np.ndarray) -> Entries:
        """The step's own: of a window's losses none is its."""
        owned = self.is_owned
        none, unknown = np.zeros(values_NK.shape[1]), np.full(values_NK.shape[1], nan)
        return Entries(
            unknown, unknown, values_NK[owned].sum(0), none, none, values_NK[~owned].sum(0)
        )


class AuditedStep(Step):
    """A step of an audited window: scored exactly, and once more by sketches.

    Args:
        scorer: see `Step`.
        number: see `Step`.
        windowed: the same step as one of its window.
    """

    audited = True

    def __init__(self, scorer: Scorer, number: int, windowed: WindowedStep):
        super().__init__(scorer, number, 1.0)
        self._windowed = windowed

    def begin_pass(self, capture: Capture) -> None:
        """See `Step.begin_pass`: the first of a window opens it."""
        self._windowed.open(capture)

    @property
    def sketches(self) -> Callable[[str, Factor], Sketch]:
        """See `Step.sketches`."""
        return self._windowed.sketches

    def plan(self, capture: Capture, first: int = 0) -> None:
        """See `Step.plan`.

        Raises:
            MisuseError: a gradient was changed element by element, too.
        """
        super().plan(capture, first)
        for name, plan in self._plans.items():
            if isinstance(plan.scale, Tensor):
                raise MisuseError(
                    f"The gradient of {name} was changed between backward() and step() by "
                    "something that is no common factor (clip_grad_value_ does this, and masks), "
                    "which the sketches of scoring=inrun.Window cannot follow. Attach with "
                    "inrun.EveryStep(), or clip by norm."
                )

    def results(
        self, capture: Capture, watcher: DirectionWatcher | None = None
    ) -> list[tuple[Step, Scored]]:
        """See `Step.results`: exact ones."""
        exact = self.score(capture, watcher)
        self._windowed.adopt(self, capture)
        return [(self, self._windowed.windows.add_audited(self._windowed, exact, capture))]
