"""`python -m benchmarks.overhead`: measures what is missing, writes docs/evidence/cost.md."""

from __future__ import annotations

import argparse

import torch

from benchmarks.data import UnavailableError
from benchmarks.overhead.cell import Cell, measure
from benchmarks.overhead.methods import EVERY, METHODS, WITH_VALIDATION, Size
from benchmarks.overhead.page import write_page
from benchmarks.results_file import cells

SMALL = Size(12, 768, 8, 128, 1, vocabulary=50257)
"""GPT-2 small: hours on a CPU, so that methods come in the order of what is asked of them."""
FIRST = ("window 10", WITH_VALIDATION, "window 1", EVERY)
STANDARD = (Size(batch=16, tokens=256, validation=1), Size(validation=1), Size(tokens=64))
LARGE = (
    Size(12, 768, 32, 1024, 1, vocabulary=50304, precision="bf16"),
    Size(22, 2048, 8, 2048, 1, kind="llama", vocabulary=32000, precision="bf16"),
)


def grid(*, small: bool, large: bool) -> list[str]:
    """The cells' names: of each method a time and the highest memory."""
    sizes = (SMALL,) if small else LARGE if large else STANDARD
    methods = [*FIRST, *(name for name in METHODS if name not in FIRST)]
    return [
        Cell(size, kind, name).key
        for size in sizes
        for kind in ("time", "memory")
        for name in (["plain", *methods] if kind == "memory" else methods)
    ]


def main() -> None:
    """Parses the command line, measures, writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpt2", action="store_true", help="GPT-2 small on a CPU, hours")
    parser.add_argument("--large", action="store_true", help="GPT-2 small, 1B Llama, on a GPU")
    parser.add_argument("--only", metavar="METHOD", action="append", help="these methods alone")
    parser.add_argument("--fresh", action="store_true", help="measure again what is on disk")
    parser.add_argument("--page-only", action="store_true", help="write the page from the disk")
    parser.add_argument("--processes", type=int, default=1, help="cells side by side")
    parser.add_argument(
        "--peer", metavar="MODULE:CLASS",
        help="print another tool's cells at the last size, a subclass of "
        "benchmarks.overhead.methods.Method; writes nothing",
    )  # fmt: skip
    given = parser.parse_args()
    if given.large and not torch.cuda.is_available():
        parser.error("--large needs a GPU; the other sizes are measured without one")
    if given.peer:
        for kind in ("time", "memory"):
            print(kind, measure(Cell(STANDARD[-1], kind, given.peer).key))
        return
    if not given.page_only:
        keys = grid(small=given.gpt2, large=given.large)
        if given.only:
            keys = [key for key in keys if Cell.of(key).method in given.only]
        try:
            cells("overhead", keys, measure, fresh=given.fresh, processes=given.processes)
        except UnavailableError as error:
            print(f"stopped: {error}. What was measured before is kept.")
    write_page()


if __name__ == "__main__":
    main()
