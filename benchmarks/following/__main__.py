"""`python -m benchmarks.following`: measures what is missing, writes docs/evidence/following.md."""

from __future__ import annotations

from benchmarks.command import measure_and_write
from benchmarks.following.cell import measure
from benchmarks.following.page import write_page
from benchmarks.following.worker import SIZES

QUICK = ("GPT-2 2 x 32, 4 x 16", "MLP 16-64-64-4, 32 rows")


def grid(quick: bool) -> list[str]:
    """Every size, or the two that take seconds."""
    return [size for size in SIZES if not quick or size in QUICK]


def main() -> None:
    """Parses the command line, measures, writes the page."""
    quick = "an MLP and a tiny GPT-2, in about two minutes"
    measure_and_write("following", __doc__, quick, grid, measure, write_page)


if __name__ == "__main__":
    main()
