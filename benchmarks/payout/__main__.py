"""`python -m benchmarks.payout`: measures what is missing, writes docs/evidence/payout.md."""

from __future__ import annotations

from benchmarks.command import measure_and_write
from benchmarks.payout.cell import Setting, measure
from benchmarks.payout.page import write_page


def grid(quick: bool) -> list[str]:
    """The standard cells, or one seed of the digits."""
    tasks = ("digits",) if quick else ("digits", "mnist", "r8")
    return [Setting(task, seed).key for seed in range(1 if quick else 3) for task in tasks]


def main() -> None:
    """Parses the command line, measures, writes the page."""
    measure_and_write("payout", __doc__, "one seed of the digits", grid, measure, write_page)


if __name__ == "__main__":
    main()
