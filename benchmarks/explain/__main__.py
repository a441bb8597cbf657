"""`python -m benchmarks.explain`: plants bad shards, asks who did it, writes its page."""

from __future__ import annotations

from benchmarks.command import measure_and_write
from benchmarks.explain.cell import KINDS, measure
from benchmarks.explain.page import write_page


def grid(quick: bool) -> list[str]:
    """Eight runs of each kind, or one."""
    return [f"{kind}/{seed}" for seed in range(1 if quick else 8) for kind in KINDS]


def main() -> None:
    """Parses the command line, measures, writes the page."""
    measure_and_write("explain", __doc__, "one run of each kind", grid, measure, write_page)


if __name__ == "__main__":
    main()
