"""`python -m benchmarks.tracing`: measures what is not on disk yet, writes docs/tracing.md."""

from __future__ import annotations

import argparse

from benchmarks.data import UnavailableError
from benchmarks.results_file import cells
from benchmarks.tracing.cell import AHEAD, IN_STEP, measure


def grid(quick: bool) -> list[str]:
    """The cells, a method each; without what looks ahead if it must be quick."""
    methods = ("bm25", "embedding", *IN_STEP, *(() if quick else AHEAD))
    return [f"{method} seed=0" for method in methods]


def main() -> None:
    """Parses the command line, measures, writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="without look-ahead")
    parser.add_argument("--fresh", action="store_true", help="measure again what is on disk")
    parser.add_argument("--page-only", action="store_true", help="write the page from the disk")
    given = parser.parse_args()
    if not given.page_only:
        try:
            cells("tracing", grid(given.quick), measure, fresh=given.fresh)
        except UnavailableError as error:
            print(f"stopped: {error}. What was measured before is kept.")
    from benchmarks.tracing.page import write_page

    write_page()


if __name__ == "__main__":
    main()
