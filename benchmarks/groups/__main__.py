"""`python -m benchmarks.groups`: measures what is not on disk yet, writes the page."""

from __future__ import annotations

from benchmarks.command import measure_and_write
from benchmarks.datamodeling.__main__ import LONG, SHORT
from benchmarks.datamodeling.cell import Setting
from benchmarks.groups.cell import measure
from benchmarks.groups.page import write_page


def grid(quick: bool) -> list[str]:
    """The cells' names."""
    runs = (SHORT,) if quick else (SHORT, LONG)
    return [Setting(*how, seed).key for how in runs for seed in range(1 if quick else 3)]


def main() -> None:
    """Parses the command line, measures, writes the page."""
    measure_and_write("groups", __doc__, "the short run, one seed", grid, measure, write_page)


if __name__ == "__main__":
    main()
