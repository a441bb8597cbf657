"""`python -m benchmarks.window`: measures what is not on disk yet, writes the page."""

from __future__ import annotations

from benchmarks.command import measure_and_write
from benchmarks.window.cell import measure
from benchmarks.window.page import write_page
from benchmarks.window.tasks import grid


def main() -> None:
    """Parses the command line, measures, writes the page."""
    measure_and_write("window", __doc__, "one seed of the digits", grid, measure, write_page)


if __name__ == "__main__":
    main()
