"""`python -m benchmarks.mislabelled`: writes docs/evidence/mislabelled.md."""

from __future__ import annotations

from benchmarks.command import measure_and_write
from benchmarks.mislabelled.cell import Setting, measure
from benchmarks.mislabelled.page import write_page


def grid(quick: bool) -> list[str]:
    """The standard cells, or one seed of the digits."""
    tasks = ("digits",) if quick else ("digits", "mnist", "r8")
    return [
        Setting(task, noise, seed).key
        for seed in range(1 if quick else 3)
        for noise in (0.05, 0.2, 0.4)
        for task in tasks
    ]


def main() -> None:
    """Parses the command line, measures, writes the page."""
    measure_and_write("mislabelled", __doc__, "one seed of the digits", grid, measure, write_page)


if __name__ == "__main__":
    main()
