"""Tables of the benchmarks' pages, and the pages from their templates."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def fill(template: Path, parts: Mapping[str, str], page: Path) -> None:
    """Writes a page from its template, in which {{NAME}} stands for a part.

    Raises:
        KeyError: the template names parts that are not given.
    """
    text = template.read_text()
    for _ in range(2):  # parts may name others
        for name, part in parts.items():
            text = text.replace("{{" + name + "}}", part)
    missing = re.findall(r"{{(\w+)}}", text)
    if missing:
        raise KeyError(f"{template} names {', '.join(missing)}, which is not given.")
    page.write_text(text)
