"""`python -m benchmarks.datamodeling`: measures what is not on disk yet, writes the page."""

from __future__ import annotations

from benchmarks.command import measure_and_write
from benchmarks.datamodeling.cell import Setting, measure
from benchmarks.datamodeling.page import write_page


def grid(quick: bool) -> list[str]:
    """The cells' names."""
    short, long = (1e-3, 5), (3e-3, 20)
    settings = [short] if quick else [short, long]
    return [Setting(*s, seed).key for s in settings for seed in range(1 if quick else 3)]


def main() -> None:
    """Parses the command line, measures, writes the page."""
    measure_and_write("datamodeling", __doc__, "the short run, one seed", grid, measure, write_page)


if __name__ == "__main__":
    main()
