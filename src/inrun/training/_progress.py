"""How far a training is: a bar in a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINES = 10  # in a log


class TrainingProgress:
    """Shown while training goes on."""

    def __init__(self, console: Console, steps: int, done: int):
        self._console, self._steps = console, steps
        self._bars = Progress(
            TextColumn("step {task.completed} of {task.total}"), BarColumn(),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            TextColumn("{task.fields[facts]}"),
            console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bars.add_task("training", total=steps, completed=done, facts="")
        self._began, self._first = time.monotonic(), done

    def __enter__(self) -> TrainingProgress:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def step(self, done: int, facts: str) -> None:
        """Shows that so many steps are done."""
        self._bars.update(self._task, completed=done, facts=facts)
        line = done * LINES // self._steps > (done - 1) * LINES // self._steps
        if line and not self._console.is_terminal:
            seconds = time.monotonic() - self._began
            left = seconds / max(1, done - self._first) * (self._steps - done)
            self._console.print(
                f"step {done} of {self._steps}: {facts}; {seconds:.0f} s, about {left:.0f} s left",
                soft_wrap=True,
            )
