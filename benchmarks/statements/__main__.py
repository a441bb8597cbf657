"""`python -m benchmarks.statements`: measures what is missing, writes its page."""

from __future__ import annotations

from benchmarks.command import measure_and_write
from benchmarks.statements import checks, judges
from benchmarks.statements.grid import grid, measure
from benchmarks.statements.page import write_page


def judged(quick: bool) -> list[str]:
    """Whole data sets as they are, and the digits with some classes made rare; or one of them."""
    kinds = {"natural": ("digits", "mnist", "r8"), "imbalanced": ("digits", "mnist")}
    cells = [
        judges.Setting(task, shares, noise, seed).key
        for seed in range(5)
        for shares, tasks in kinds.items()
        for noise in (0.2, 0.0)
        for task in tasks
    ]
    return cells[:1] if quick else cells


def checked(quick: bool) -> list[str]:
    """Four draws of the digits, or one of them."""
    return [checks.Setting(data).key for data in range(1 if quick else 4)]


def main() -> None:
    """Parses the command line, measures, writes the page."""
    for name, cells, measured in (
        ("judges", judged, judges.measure),
        ("checks", checked, checks.measure),
    ):
        measure_and_write(name, __doc__, "one draw of the digits", cells, measured, lambda: None)
    measure_and_write("statements", __doc__, "one draw of the digits", grid, measure, write_page)


if __name__ == "__main__":
    main()
