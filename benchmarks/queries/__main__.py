"""`python -m benchmarks.queries`: measures what is not on disk yet, writes the page."""

from __future__ import annotations

from benchmarks.command import measure_and_write
from benchmarks.queries.cell import COUNTS, TASKS, Setting, measure
from benchmarks.queries.page import write_page


def grid(quick: bool) -> list[str]:
    """The cells' names."""
    return [Setting(task, count).key for task in TASKS for count in COUNTS[: 2 if quick else None]]


def main() -> None:
    """Parses the command line, measures, writes the page."""
    measure_and_write("queries", __doc__, "at most 8 queries", grid, measure, write_page)


if __name__ == "__main__":
    main()
