"""Keeps an audit out of the training's way: what fails in it ends it with a warning, nothing else.

The time that it takes counts neither as training nor as the attribution's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from inrun.capture import Block, Capture
from inrun.distributed import Processes
from inrun.errors import MisuseError
from inrun.factors import Factor
from inrun.truth._audit_utility import AuditUtility
from inrun.truth._auditor import FEWEST, MOST, Audit, Auditor, ReadStep
from inrun.truth._schedule import AuditSchedule
from inrun.utility import Utility


class Auditing:
    """An attribution's auditor, while there is one.

    Args:
        aside: within it time counts neither as training nor as attribution.
        warn: says why an audit ended.
    """

    def __init__(
        self, aside: Callable[[], AbstractContextManager[None]], warn: Callable[[str], None]
    ):
        self._aside, self._warn = aside, warn
        self._auditor: Auditor | None = None
        self._before: Mapping[str, Any] | None = None  # an audit that a checkpoint has in it

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint keeps; None where no audit is going on."""
        return None if self._auditor is None else self._auditor.state()

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Goes on from `state`: the audit that there is, or else the next one that begins."""
        self._before = state
        if self._auditor is not None and state is not None:
            self._auditor.restore(state)
            self._before = None

    def begin(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        utility: Utility,
        schedule: AuditSchedule,
        groups: int | None,
        processes: Processes,
    ) -> Audit:
        """Starts an audit, in place of one that is still going on.

        Raises:
            MisuseError: a number of groups that cannot be compared or played out.
        """
        if groups is not None and not FEWEST <= groups <= MOST:
            raise MisuseError(f"groups must be from {FEWEST} to {MOST}, not {groups}.")
        judge = AuditUtility(utility, model, processes)
        self._auditor = Auditor(model, optimizers, judge, schedule, groups, processes)
        if self._before is not None:
            self.restore(self._before)
        return self._auditor.audit

    def block_begins(
        self, capture: Capture, step: int, samples: int, *, first: bool
    ) -> Callable[[str, Factor], None] | None:
        """See `Auditor.block_begins`: who is to see the block's factors, if anybody."""
        if self._auditor is None:
            return None
        listen = self._auditor.block_begins(capture, step, samples, first=first)
        if listen is None:
            return None
        return lambda name, factor: self._guarded(lambda: listen(name, factor))

    def block_ended(self, capture: Capture, block: Block) -> None:
        """See `Auditor.block_ended`."""
        auditor = self._auditor
        if auditor is not None:
            self._guarded(lambda: auditor.block_ended(capture, block))
        block.calls = []

    @property
    def has_played(self) -> bool:
        """Whether the step under way was played out."""
        return self._auditor is not None and self._auditor.has_played

    def cancel(self) -> None:
        """See `Auditor.cancel`."""
        if self._auditor is not None:
            self._auditor.cancel()

    def unattributed(self, gradients: Mapping[str, Tensor]) -> None:
        """See `Auditor.unattributed`."""
        if self._auditor is not None:
            self._auditor.unattributed(gradients)

    def before_step(self, step: ReadStep) -> None:
        """See `Auditor.before_step`."""
        auditor = self._auditor
        if auditor is not None:
            self._guarded(lambda: auditor.before_step(step))

    def after_step(
        self, step: int, values_NK: np.ndarray, facts: Mapping[str, Any]
    ) -> pa.Table | None:
        """See `Auditor.after_step`."""
        auditor = self._auditor
        if auditor is None:
            return None
        return self._guarded(lambda: auditor.after_step(step, values_NK, facts))

    def _guarded(self, work: Callable[[], Any]) -> Any:
        with self._aside():
            try:
                return work()
            except Exception as error:
                if self._auditor is not None:
                    self._auditor.audit.ended = str(error)
                self._auditor = None
                self._warn(
                    f"The audit ended: {str(error).removesuffix('.')}. Training and scoring go on; "
                    "checks made before stay in the audit's table."
                )
                return None
