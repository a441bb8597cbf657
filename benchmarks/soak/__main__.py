"""`python -m benchmarks.soak`: measures what is missing, writes docs/evidence/soak.md."""

from __future__ import annotations

import argparse

from benchmarks.results_file import cells
from benchmarks.soak.cell import measure
from benchmarks.soak.page import write_page


def main() -> None:
    """Parses the command line, measures, writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--fresh", action="store_true", help="measure again what is on disk")
    parser.add_argument("--page-only", action="store_true", help="write the page from the disk")
    given = parser.parse_args()
    if not given.page_only:
        keys = [f"{capture} {given.steps}" for capture in ("hold", "stream")]
        cells("soak", keys, measure, fresh=given.fresh)
    write_page()


if __name__ == "__main__":
    main()
