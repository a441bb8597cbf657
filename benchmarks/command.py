"""The command line that benchmarks of one grid share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from benchmarks.data import UnavailableError
from benchmarks.results_file import cells


def measure_and_write(
    name: str,
    description: str | None,
    quick: str,
    grid: Callable[[bool], list[str]],
    measure: Callable[[str], Any],
    write_page: Callable[[], None],
) -> None:
    """Parses the command line, measures what is missing, writes the page.

    Args:
        name: of the results' file.
        description: the command's.
        quick: what `--quick` measures, in words.
        grid: (quick) -> the cells' names.
        measure: (cell's name) -> its result.
        write_page: from the results on disk.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--fresh", action="store_true", help="measure again what is on disk")
    parser.add_argument("--page-only", action="store_true", help="write the page from the disk")
    parser.add_argument("--processes", type=int, default=1, help="cells side by side")
    given = parser.parse_args()
    if not given.page_only:
        try:
            keys = grid(given.quick)
            cells(name, keys, measure, fresh=given.fresh, processes=given.processes)
        except UnavailableError as error:
            print(f"stopped: {error}. What was measured before is kept.")
    write_page()
