"""Text from the data, as a terminal may show it: no escape sequence of it is ever sent."""

from __future__ import annotations

from rich.markup import escape


def printable(text: object) -> str:
    """The text with every control character but line ends replaced."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in str(text))


def plain(text: object) -> str:
    """The same, with nothing in it read as markup."""
    return escape(printable(text))
