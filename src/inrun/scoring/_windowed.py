"""The row of scoring windows that a run is made of, and what is told of each.

`Windows` opens and closes them; values of all steps of a window (see `WindowedStep`) are known when
it is closed. Letters: N samples, K targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, isfinite, nan
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inrun.capture import Capture
from inrun.errors import MisuseError
from inrun.ledger import AUDIT, BOOKS, WITHIN_WINDOW, ClosedWindow, Entries
from inrun.scoring._scorer import Scorer
from inrun.scoring._step import Step
from inrun.scoring._sums import Scored
from inrun.scoring._window import EARLIER, LONGEST, STEADY, TURNED, Following, OpenWindow
from inrun.scoring._windowed_step import AuditedStep, WindowedStep

AUDITED, FIRST_AUDIT = 50, 9  # one window of so many has exact values too; the first of them
JUMP = 2.0  # times the opening's learning rate, at which a window is closed


class Windows:
    """The windows of a run, one open at most.

    Args:
        scorer: that outlives steps.
        steps: of a window; None finds it by the cosine of the ends.
        rank: of the bases.
        books: whether the weights at the opening are kept, for the books.
    """

    def __init__(self, scorer: Scorer, steps: int | None, rank: int = 16, *, books: bool = True):
        self._scorer, self._rank, self._books = scorer, rank, books
        self._auto, self.length = steps is None, steps or 1
        self._squares: dict[str, float] = {}
        self._starts: dict[str, Tensor] = {}
        self._open: OpenWindow | None = None
        self._steps: list[WindowedStep] = []
        self._following: Following | None = None
        self._exact_values: list[np.ndarray] = []  # of the open window's steps, if it is audited
        self.told: list[ClosedWindow] = []

    def step(self, number: int) -> Step:
        """The step of this number, as one of a window."""
        step = WindowedStep(self._scorer, number, self)
        return AuditedStep(self._scorer, number, step) if self.audits else step

    def set_length(self, steps: int) -> None:
        """How many steps the next window has."""
        self.length = steps

    @property
    def is_open(self) -> bool:
        """Whether steps wait for their window's end."""
        return self._open is not None

    @property
    def audits(self) -> bool:
        """Whether the window that is open, or the next, is audited."""
        return len(self.told) % AUDITED == FIRST_AUDIT

    def begin(self, capture: Capture) -> OpenWindow:
        """A pass of a step begins: the window it is of."""
        if self._open is None:
            self._open = OpenWindow(
                self._scorer, capture, self._squares, self._rank, self._starts, self._following,
                books=self._books and not self.audits, audited=self.audits,
            )  # fmt: skip
            self._following = None
        return self._open

    @property
    def names(self) -> list[str] | None:
        """Of the parameters that the open window knows."""
        return None if self._open is None else self._open.names

    def learn(self, step: Step, capture: Capture) -> None:
        """Takes note of the mean squares of the gradients that a step consumes.

        Of large ones, which are measured in turn, as they were last measured.
        """
        for name, norm in capture.check.scaling.norms.items():
            scale = step.share_scale(name)
            if isinstance(scale, float) and scale and isfinite(norm):  # else nothing moves it
                # shares are of one process, the gradient of all
                consumed = norm * scale * self._scorer.processes.size
                self._squares[name] = consumed**2 / capture.trained[name].numel()

    def add_audited(self, step: WindowedStep, exact: Scored, capture: Capture) -> Scored:
        """As `add`, of a step that has exact values: these, with what is known of its window."""
        self._exact_values.append(exact.values)
        count = len(self.told)
        self.add(step, capture)
        if len(self.told) == count:
            return exact
        note = f"{AUDIT}: {self.told[-1].words()}"
        return exact._replace(entries=exact.entries._replace(note=note))

    def add(self, step: WindowedStep, capture: Capture) -> list[tuple[Step, Scored]]:
        """A step was taken: what is known of steps by that, which is nothing before the last."""
        self._steps.append(step)
        assert self._open is not None
        known = self._open.rates
        ratios = [rate / known[name] if known[name] else inf for name, rate in step.rates.items()]
        jumped = any(not 1 / JUMP <= ratio <= JUMP for ratio in ratios)
        found = self.close(capture) if jumped or len(self._steps) >= self.length else []
        if jumped and self._auto:
            self.length = 1
        return found

    @torch.no_grad()
    def close(self, capture: Capture) -> list[tuple[Step, Scored]]:
        """Closes the window that is open: its steps, and what they were worth, in their order."""
        window, self._open = self._open, None
        steps, self._steps = self._steps, []
        if window is None or not steps:
            return []
        with torch.enable_grad():
            closed = window.close(capture)
        ends, closing, cosine, captured, self._following = closed
        self._starts = window.starts()
        n, scorer = len(steps), self._scorer
        values = [
            step.values(ends, (j + 0.5) / n, len(scorer.targets)) for j, step in enumerate(steps)
        ]
        for found in values:
            _require_finite(found)
        losses = [t.double().cpu().numpy() for t in (window.losses, closing.losses)]
        owned = [found[step.is_owned] for step, found in zip(steps, values, strict=True)]
        exact, self._exact_values = self._exact_values, []
        if exact:
            self._note(
                ClosedWindow(steps[0].number, n, cosine, captured, nan, _agree(owned, exact))
            )
            return []
        entries = [step.entries(found) for step, found in zip(steps, values, strict=True)]
        last, residual = self._books_of(window, closing, capture, steps, entries, losses)
        told = ClosedWindow(steps[0].number, n, cosine, captured, residual)
        self._note(told)
        note = f"{WITHIN_WINDOW}: {told.words()}"
        entries = [entry._replace(note=note) for entry in entries]
        entries[-1] = last._replace(note=f"{BOOKS}: {told.words()}")
        return [
            (step, Scored(found, entry, "window"))
            for step, found, entry in zip(steps, owned, entries, strict=True)
        ]

    def _note(self, told: ClosedWindow) -> None:
        self.told.append(told)
        if self._auto:
            self.length = _next_length(self.length, told.cosine, told.first + told.steps - 1)

    def _books_of(
        self, window: OpenWindow, closing: Any, capture: Capture, steps: list[WindowedStep],
        entries: list[Entries], losses: list[np.ndarray],
    ) -> tuple[Entries, float]:  # fmt: skip
        """The last step's entries with the whole window's books in them; the residual's share."""
        opening, closed = losses
        moved = 0.0 if window.other is None else window.other.double().cpu().numpy()
        last = entries[-1]._replace(opening=opening + moved, closing=closed, other=moved)
        owns = np.stack([entry.samples + np.asarray(entry.unattributed) for entry in entries])
        processes = self._scorer.processes
        everyones = processes.mean(torch.from_numpy(owns)).numpy() * processes.size
        explained, own = everyones.sum(0), everyones[-1]
        if not self._books:
            none = np.full_like(opening, nan)
            return last._replace(opening=none, closing=none), nan
        sums: dict[str, float] = {}
        for step in steps:
            for name, shrunk in step.decays.items():
                sums[name] = sums.get(name, 0.0) + shrunk
        total, decay = window.moved(capture, closing, sums).numpy()
        last = last._replace(
            momentum=total - decay - explained, weight_decay=decay, earlier=explained - own
        )
        size = float(sum(np.abs(part).sum() for part in (explained, last.momentum, decay)))
        left = float(np.abs(opening - closed - total).sum())
        return last, left / size if size else 0.0

    @property
    def waiting(self) -> list[int]:
        """Numbers of the steps whose window is open, and that have no exact values."""
        return [] if self._exact_values else [step.number for step in self._steps]

    def drop(self) -> None:
        """Forgets the window that is open, with its steps."""
        self._open, self._steps, self._following = None, [], None
        self._exact_values = []

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What a checkpoint keeps, between two windows."""
        told = [list(window) for window in self.told]
        return {"length": self.length, "squares": self._squares, "told": told}, self._starts

    def restore(self, header: Mapping[str, Any], starts: Mapping[str, Tensor]) -> None:
        """Goes back to what `state` gave."""
        self.drop()
        self.length, self._squares = header["length"], dict(header["squares"])
        self.told, self._starts = [ClosedWindow(*row) for row in header["told"]], dict(starts)


def _next_length(length: int, cosine: float, taken: int) -> int:
    """How many steps the next window has.

    Args:
        length: of the last one.
        cosine: of its ends.
        taken: steps before the next.
    """
    longest = max(1, min(LONGEST, taken // EARLIER))
    if cosine < TURNED:
        length //= 2
    elif cosine > STEADY:
        length *= 2
    return min(longest, max(1, length))


def _agree(found: list[np.ndarray], exact: list[np.ndarray]) -> float:
    """The rank correlation of visits, in the mean over targets; NaN of fewer than three."""
    pairs = [np.concatenate(rows) for rows in (found, exact)]
    if len(pairs[0]) < 3:
        return nan
    ours, theirs = (values.argsort(0).argsort(0) for values in pairs)
    each = [np.corrcoef(ours[:, k], theirs[:, k])[0, 1] for k in range(ours.shape[1])]
    return float(np.mean(each))


def _require_finite(values_NK: np.ndarray) -> None:
    if not np.isfinite(values_NK).all():
        raise MisuseError(
            "The values of a scoring window are not finite: the optimizer's null update has no "
            "slope there (eps=0, moments that underflowed), or training diverged. Its steps are "
            "not booked."
        )
