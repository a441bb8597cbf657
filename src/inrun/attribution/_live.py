"""The line that is shown while training runs, where there is a terminal: loss, books, overhead."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from typing import Any

from rich.console import Console
from rich.errors import LiveError
from rich.live import Live
from rich.text import Text

from inrun.ledger import Jumps

REFRESH_SECONDS = 0.25


class LiveLine:
    """The last step and the running residual. Shows nothing where there is no terminal."""

    def __init__(self, enabled: bool, console: Console | None = None):
        console = console or Console(stderr=True)
        self._live: Live | None = None
        self._shown, self._jumps = 0.0, Jumps()
        if enabled and console.is_terminal:
            live = Live(console=console, transient=True, auto_refresh=False)
            try:
                live.start()
                self._live = live
            except LiveError:  # the program shows a live display of its own: keep out of its way
                pass

    def update(
        self,
        row: Mapping[str, Any],
        residual_share: float,
        overhead: float,
        more: Callable[[], str] = str,
    ) -> None:
        """Shows a row of the books, at most four times a second; `more` gives its last words.

        A step whose loss jumps gets a line of its own, which stays.
        """
        if self._live is None:
            return
        words = self._jumps.words(row)
        if words:
            self._live.console.print(Text(f"inrun  {words}"))
        if time.monotonic() - self._shown < REFRESH_SECONDS:
            return
        self._shown = time.monotonic()
        left = f"{residual_share:.2%}" if isfinite(residual_share) else "not known"
        known = (
            f"validation loss {row['closing_loss']:.4f}  books' residual {left}  "
            if isfinite(row["closing_loss"])
            else f"samples {row['samples']:+.4g}  "
        )
        text = f"inrun  step {row['step']}  {known}attribution +{overhead:.0%} time{more()}"
        self._live.update(Text(text), refresh=True)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


class Stopwatch:
    """Time inside the attribution against time outside it, from the first block on."""

    def __init__(self) -> None:
        self.inside = self.aside = 0.0
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
    def started(self) -> bool:
        return self._started is not None

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Time inside counts neither as the attribution's nor as the training's."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.aside += time.perf_counter() - began

    @property
    def overhead(self) -> float:
        """Time in the attribution's own passes as a share of the rest of the training's time."""
        if self._started is None:
            return 0.0
        rest = time.perf_counter() - self._started - self.inside - self.aside
        return self.inside / rest if rest > 0 else 0.0
