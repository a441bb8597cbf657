"""`python -m benchmarks.tracing`: measures what is missing, writes docs/evidence/tracing.md."""

from __future__ import annotations

from benchmarks.command import measure_and_write
from benchmarks.tracing.cell import AHEAD, IN_STEP, measure
from benchmarks.tracing.page import write_page


def grid(quick: bool) -> list[str]:
    """The cells, a method each; without what looks ahead if it must be quick."""
    methods = ("bm25", "embedding", *IN_STEP, *(() if quick else AHEAD))
    return [f"{method} seed=0" for method in methods]


def main() -> None:
    """Parses the command line, measures, writes the page."""
    measure_and_write("tracing", __doc__, "without look-ahead", grid, measure, write_page)


if __name__ == "__main__":
    main()
