"""`python -m benchmarks.statements`: measures what is missing, writes its page."""

from __future__ import annotations

from benchmarks.command import measure_and_write
from benchmarks.statements.cell import Setting, measure
from benchmarks.statements.page import write_page


def grid(quick: bool) -> list[str]:
    """The standard cells, or one of them."""
    kinds = (("imbalanced", 0.0), ("imbalanced", 0.2), ("balanced", 0.2))
    cells = [Setting(shares, noise, data).key for shares, noise in kinds for data in range(4)]
    return cells[:1] if quick else cells


def main() -> None:
    """Parses the command line, measures, writes the page."""
    measure_and_write("statements", __doc__, "one draw of the digits", grid, measure, write_page)


if __name__ == "__main__":
    main()
