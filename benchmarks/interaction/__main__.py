"""`python -m benchmarks.interaction`: writes docs/evidence/interaction.md."""

from __future__ import annotations

from benchmarks.command import measure_and_write
from benchmarks.interaction.cell import OPTIMIZERS, Setting, measure
from benchmarks.interaction.losses import TASKS
from benchmarks.interaction.page import write_page


def grid(quick: bool) -> list[str]:
    """Every loss with both optimizers, and three seeds."""
    seeds = range(1 if quick else 3)
    return [
        Setting(loss, optimizer, seed).key
        for loss in TASKS
        for optimizer in OPTIMIZERS
        for seed in seeds
    ]


def main() -> None:
    """Parses the command line, measures, writes the page."""
    quick = "one seed"
    measure_and_write("interaction", __doc__, quick, grid, measure, write_page)


if __name__ == "__main__":
    main()
