"""`python -m benchmarks.heads`: measures what is missing, writes docs/evidence/heads.md."""

from __future__ import annotations

from benchmarks.command import measure_and_write
from benchmarks.heads.cell import grid, measure
from benchmarks.heads.page import write_page


def main() -> None:
    """Parses the command line, measures, writes the page."""
    quick = "at the smallest width, training alone, and attributed as attached"
    measure_and_write(
        "heads", __doc__, quick, lambda few: grid()[: 2 if few else None], measure, write_page
    )


if __name__ == "__main__":
    main()
