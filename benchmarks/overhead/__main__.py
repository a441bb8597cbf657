"""`python -m benchmarks.overhead`: measures what is missing, writes docs/evidence/cost.md."""

from __future__ import annotations

import argparse

import torch

from benchmarks.data import UnavailableError
from benchmarks.overhead.cell import measure
from benchmarks.overhead.methods import Size
from benchmarks.results_file import cells

STANDARD = (
    Size(),
    Size(validation=1),
    Size(tokens=64),
    Size(tokens=256),
    Size(batch=4, tokens=512),
    Size(batch=16, tokens=256),
    Size(layers=6, width=512),
)
LARGE = (
    Size(12, 768, 32, 1024, 1, vocabulary=50304, precision="bf16", apart=True),
    Size(22, 2048, 8, 2048, 1, kind="llama", vocabulary=32000, precision="bf16", apart=True),
)


def main() -> None:
    """Parses the command line, measures, writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the first size alone")
    parser.add_argument("--large", action="store_true", help="GPT-2 small, 1B Llama, on a GPU")
    parser.add_argument("--fresh", action="store_true", help="measure again what is on disk")
    parser.add_argument("--page-only", action="store_true", help="write the page from the disk")
    parser.add_argument(
        "--peer", metavar="MODULE:CLASS",
        help="print the first size's table with a column of another tool, a subclass of "
        "benchmarks.overhead.methods.Method; writes nothing",
    )  # fmt: skip
    given = parser.parse_args()
    if given.large and not torch.cuda.is_available():
        parser.error("--large needs a GPU; the other sizes are measured without one")
    if given.peer:
        from benchmarks.overhead.page import section

        print(section(STANDARD[0], measure(STANDARD[0].key, given.peer)))
        return
    if not given.page_only:
        sizes = LARGE if given.large else STANDARD[:1] if given.quick else STANDARD
        try:
            cells("overhead", [size.key for size in sizes], measure, fresh=given.fresh)
        except UnavailableError as error:
            print(f"stopped: {error}. What was measured before is kept.")
    from benchmarks.overhead.page import write_page

    write_page()


if __name__ == "__main__":
    main()
