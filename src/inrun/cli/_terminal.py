"""What goes to the terminal: everything printed passes through `terminal()`, or `plain` before it.

Text of a foreign run (names, ids, texts, errors that quote them) may hold escape sequences, which a
terminal obeys: they set its title, move its cursor, hide what stands there. `Terminal` replaces
every control character in what it renders, whoever made it; `plain` also keeps a text from being
read as markup.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment


def printable(text: object) -> str:
    """The text with every control character but line ends replaced."""
    return "".join(c if _shown(c) else "\ufffd" for c in str(text))


def _shown(c: str) -> bool:
    return c.isprintable() or c == "\n" or unicodedata.category(c) == "Zs"


def plain(text: object) -> str:
    """The same, with nothing in it read as markup."""
    return escape(printable(text))


class Terminal(Console):
    """A console that shows text as text."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """See `Console.render`: what is drawn, without a control character in its text."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment  # control: the console's own moves of the cursor
            else:
                yield segment._replace(text=printable(segment.text))


def terminal(*, stderr: bool = False) -> Terminal:
    """The console that commands print to."""
    return Terminal(stderr=stderr)
