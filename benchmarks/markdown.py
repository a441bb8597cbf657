"""Tables of the benchmarks' pages, and the pages from their templates."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.claims import block

EVIDENCE = Path(__file__).parents[1] / "docs" / "evidence"  # pages of results, made from templates
TABLES = EVIDENCE / "tables"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def fill(template: Path, parts: Mapping[str, str], page: Path) -> None:
    """Writes a page from its template: {{NAME}} stands for a part, {{CLAIM}} for the claim.

    Raises:
        KeyError: the template names parts that are not given.
    """
    text = template.read_text().replace("{{CLAIM}}", block(template.parent.name))
    for _ in range(2):  # parts may name others
        for name, part in parts.items():
            text = text.replace("{{" + name + "}}", part)
    missing = re.findall(r"{{(\w+)}}", text)
    if missing:
        raise KeyError(f"{template} names {', '.join(missing)}, which is not given.")
    page.write_text(text)


def long_table(
    name: str,
    caption: str,
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    folder: str = "tables",
) -> str:
    """A long table, apart from its page: a CSV file, and the link below which the site shows it.

    Args:
        name: of the file in docs/evidence/tables, without its ending.
        caption: what the table holds.
        head: names of the columns.
        rows: the cells.
        folder: docs/evidence/tables as the page sees it.
    """
    TABLES.mkdir(parents=True, exist_ok=True)
    with (TABLES / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([head, *rows])
    return f"[{caption}]({folder}/{name}.csv)"
