"""`python -m benchmarks.statements`: measures what is missing, writes its page."""

from __future__ import annotations

from benchmarks.command import measure_and_write
from benchmarks.statements.grid import grid, measure
from benchmarks.statements.page import write_page


def main() -> None:
    """Parses the command line, measures, writes the page."""
    measure_and_write("statements", __doc__, "one draw of the digits", grid, measure, write_page)


if __name__ == "__main__":
    main()
