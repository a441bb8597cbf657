"""`python -m benchmarks.pruning`: measures what is not on disk yet, writes docs/pruning.md."""

from __future__ import annotations

import argparse

from benchmarks.data import UnavailableError
from benchmarks.pruning.cell import Setting, measure
from benchmarks.results_file import cells


def grid(quick: bool) -> list[str]:
    """The standard cells, or one seed of the digits."""
    tasks = ("digits",) if quick else ("digits", "mnist", "r8")
    return [
        Setting(task, noise, seed).key
        for seed in range(1 if quick else 5)
        for noise in (0.2, 0.0)
        for task in tasks
    ]


def main() -> None:
    """Parses the command line, measures, writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed of the digits")
    parser.add_argument("--fresh", action="store_true", help="measure again what is on disk")
    parser.add_argument("--page-only", action="store_true", help="write the page from the disk")
    given = parser.parse_args()
    if not given.page_only:
        try:
            cells("pruning", grid(given.quick), measure, fresh=given.fresh)
        except UnavailableError as error:
            print(f"stopped: {error}. What was measured before is kept.")
    from benchmarks.pruning.page import write_page

    write_page()


if __name__ == "__main__":
    main()
