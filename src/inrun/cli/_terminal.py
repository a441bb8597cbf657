"""What goes to the terminal: everything printed passes through `terminal()`, or `plain` before it.

Text of a foreign run (names, ids, texts, errors that quote them) may hold escape sequences, which a
terminal obeys: they set its title, move its cursor, hide what stands there. `Terminal` replaces
every control character in what it renders, whoever made it; `plain` also keeps a text from being
read as markup.
"""

from __future__ import annotations

import re
import shlex
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from rich.box import HEAVY_HEAD
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

SILENCE = 10.0  # seconds without a line, off a terminal
PIPED = 2000  # columns of what no terminal shows
LEAST = 12  # characters that a name keeps
_NUMBER = re.compile(r"[-+]?[\d.,]+(e[-+]?\d+)?\s?%?$|(not known)?$|[-+\d.,e]+ to [-+\d.,e]+$")


def printable(text: object) -> str:
    """The text with every control character but line ends replaced."""
    return "".join(c if _shown(c) else "\ufffd" for c in str(text))


def _shown(c: str) -> bool:
    return c.isprintable() or c == "\n" or unicodedata.category(c) == "Zs"


def plain(text: object) -> str:
    """The same, with nothing in it read as markup."""
    return escape(printable(text))


class Terminal(Console):
    """A console that shows text as text; `spoke` is when it last printed something."""

    spoke = 0.0

    def print(self, *objects: Any, **how: Any) -> None:
        """See `Console.print`."""
        super().print(*objects, **how)
        self.spoke = time.monotonic()

    def say(self, *lines: object, style: str | None = None) -> None:
        """Lines as they are: none is read as markup, and none is broken."""
        for line in lines:
            self.print(printable(line), style=style, soft_wrap=True, highlight=False, markup=False)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """See `Console.render`: what is drawn, without a control character in its text."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment  # control: the console's own moves of the cursor
            else:
                yield segment._replace(text=printable(segment.text))


@contextmanager
def heard(
    console: Terminal, what: str, seconds: float | None = None
) -> Iterator[Callable[[str], None]]:
    """Off a terminal, where no bar moves, a line whenever none was printed for ten seconds.

    Args:
        console: where they go, and whose other lines count.
        what: the command is at, until what is yielded here was told otherwise.
        seconds: in place of ten.
    """
    ended, began, said = threading.Event(), time.monotonic(), [what]
    console.spoke = began

    def speak() -> None:
        while not ended.wait(max(0.0, console.spoke + (seconds or SILENCE) - time.monotonic())):
            if time.monotonic() - console.spoke >= (seconds or SILENCE):
                console.say(f"{said[0]} ({time.monotonic() - began:.0f} s)")

    speaker = threading.Thread(target=speak, daemon=True)
    if not console.is_terminal:
        speaker.start()
    try:
        yield lambda now: said.__setitem__(0, now)
    finally:
        ended.set()
        if speaker.ident is not None:
            speaker.join()


def terminal(*, stderr: bool = False) -> Terminal:
    """The console that commands print to; what is piped is as wide as it needs to be."""
    made = Terminal(stderr=stderr)
    return made if made.is_terminal else Terminal(stderr=stderr, width=PIPED)


def one_line(text: str) -> str:
    """The text with every run of spaces and line ends as one space."""
    return " ".join(text.split())


def shortened(text: str, width: int) -> str:
    """At most so many characters: what is left out is in the middle, where names differ least."""
    if len(text) <= width:
        return text
    end = max(0, (width - 3) // 2)
    return text[: width - 3 - end] + "..." + text[len(text) - end :]


def command(*words: object) -> str:
    """A command to copy, quoted for a shell."""
    return shlex.join(map(str, words))


class Cells:
    """A table whose numbers are never cut.

    Columns of words are cut in the middle where there is no room for them, and that is said; where
    not even the numbers fit, each row is written as a line of its own.

    Args:
        names: of the columns.
        title: above it.
    """

    def __init__(self, *names: str, title: str = ""):
        self.title, self._rows = title, [[Text(name).plain for name in names]]

    def add_row(self, *cells: str) -> None:
        """A row of cells, each as `Console.print` takes it."""
        self._rows.append([one_line(Text.from_markup(cell).plain) for cell in cells])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = self._rows
        columns = list(zip(*rows, strict=True))
        words = [any(not _NUMBER.match(cell) for cell in column[1:]) for column in columns]
        whole = widths = [max(map(len, column)) for column in columns]
        gap = 3 if console.is_terminal else 2
        while sum(widths) + gap * len(widths) + 1 > options.max_width:
            longest = max(
                (at for at, word in enumerate(words) if word), key=lambda at: widths[at], default=0
            )
            if not words[longest] or widths[longest] <= LEAST:
                yield from self._as_lines()
                return
            widths = [w - (at == longest) for at, w in enumerate(widths)]
        table = Table(
            title=self.title or None, title_justify="left",
            box=HEAVY_HEAD if console.is_terminal else None, pad_edge=console.is_terminal,
        )  # fmt: skip
        for at, name in enumerate(rows[0]):
            justify: Literal["left", "right"] = "left" if words[at] else "right"
            heading = Text(shortened(name, widths[at]))
            table.add_column(heading, no_wrap=True, min_width=widths[at], justify=justify)
        for row in rows[1:]:
            table.add_row(*(Text(shortened(c, w)) for c, w in zip(row, widths, strict=True)))
        yield table
        if widths != whole:
            yield Text("... stands for what is left out of a name; piped output has all of it.")

    def _as_lines(self) -> RenderResult:
        if self.title:
            yield Text(self.title)
        for row in self._rows[1:]:
            pairs = zip(self._rows[0], row, strict=True)
            yield Text("; ".join(f"{name} {cell}" for name, cell in pairs if cell))


class Progress:
    """Says what a long command is at: in place on a terminal, elsewhere a line every ten seconds.

        with Progress() as at:
            at("training again", 3, 60)

    It writes to stderr, so that what a command prints can be piped.

    Args:
        seconds: between two lines where there is no terminal; ten if None.
    """

    def __init__(self, seconds: float | None = None):
        console = terminal(stderr=True)
        self._shown = console.status("") if console.is_terminal else None
        self._lines = heard(console, "starting", seconds)

    def __call__(self, what: str, done: int = 0, every: int = 0) -> None:
        """The command is at `what`, of which so many are done."""
        what = f"{what}, {done:,} of {every:,}" if every else what
        self._at(what)
        if self._shown is not None:
            self._shown.update(plain(what))

    def __enter__(self) -> Progress:
        self._at = self._lines.__enter__()
        if self._shown is not None:
            self._shown.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown is not None:
            self._shown.stop()
        self._lines.__exit__(None, None, None)
