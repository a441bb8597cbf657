"""`python -m benchmarks.budget`: measures what is missing, writes docs/evidence/budget.md."""

from __future__ import annotations

from benchmarks.budget.cell import Setting, measure
from benchmarks.budget.page import write_page
from benchmarks.command import measure_and_write


def grid(quick: bool) -> list[str]:
    """The standard cells, or one seed of the digits."""
    tasks = ("digits",) if quick else ("digits", "mnist", "r8")
    return [Setting(task, seed).key for seed in range(1 if quick else 3) for task in tasks]


def main() -> None:
    """Parses the command line, measures, writes the page."""
    measure_and_write("budget", __doc__, "one seed of the digits", grid, measure, write_page)


if __name__ == "__main__":
    main()
