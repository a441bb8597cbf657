"""`python -m benchmarks.form`: measures what is missing, writes docs/evidence/form.md."""

from __future__ import annotations

from benchmarks.command import measure_and_write
from benchmarks.form.cell import measure

SEEDS = 5


def grid(quick: bool) -> list[str]:
    """The seeds, or the first of them."""
    return [f"seed={seed}" for seed in range(1 if quick else SEEDS)]


def main() -> None:
    """Parses the command line, measures, writes the page."""
    from benchmarks.form.page import write_page

    measure_and_write("form", __doc__, "one seed", grid, measure, write_page)


if __name__ == "__main__":
    main()
