"""The line that is shown while training runs, where there is a terminal: loss, books, overhead."""

from __future__ import annotations

import time

import numpy as np
from rich.console import Console
from rich.errors import LiveError
from rich.live import Live
from rich.text import Text

REFRESH_SECONDS = 0.25


class LiveLine:
    """Running totals of the books. Shows nothing where there is no terminal."""

    def __init__(self, enabled: bool):
        console = Console(stderr=True)
        self._live: Live | None = None
        if enabled and console.is_terminal:
            live = Live(console=console, transient=True, auto_refresh=False)
            try:
                live.start()
                self._live = live
            except LiveError:  # the program shows a live display of its own: keep out of its way
                pass
        self._residual = self._size = 0.0
        self._shown = 0.0

    def update(
        self, step: int, loss: float, entries: np.ndarray, residual: float, overhead: float
    ) -> None:
        """Takes one step in: `entries` are samples, momentum and weight decay."""
        self._residual += abs(residual)
        self._size += float(np.abs(entries).sum())
        if self._live is None or time.monotonic() - self._shown < REFRESH_SECONDS:
            return
        self._shown = time.monotonic()
        share = self._residual / self._size if self._size else 0.0
        self._live.update(
            Text(
                f"inrun  step {step}  validation loss {loss:.4f}  "
                f"books' residual {share:.2%}  attribution {overhead:.0%} of training time"
            ),
            refresh=True,
        )

    def close(self) -> None:
        """Takes the line off the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None


class Stopwatch:
    """Time inside the attribution against time outside it, from the first block on."""

    def __init__(self) -> None:
        self.inside = 0.0
        self._started: float | None = None
        self._entered = 0.0
        self._depth = 0

    def __enter__(self) -> Stopwatch:
        self._depth += 1
        if self._depth == 1:
            self._entered = time.perf_counter()
            if self._started is None:
                self._started = self._entered
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.inside += time.perf_counter() - self._entered

    @property
    def overhead(self) -> float:
        """Time in the attribution's own passes as a share of the rest of the training's time."""
        if self._started is None:
            return 0.0
        rest = time.perf_counter() - self._started - self.inside
        return self.inside / rest if rest > 0 else 0.0
