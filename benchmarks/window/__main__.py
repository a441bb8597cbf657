"""`python -m benchmarks.window`: measures what is not on disk yet, writes the page."""

from __future__ import annotations

from benchmarks.command import measure_and_write
from benchmarks.window.cell import Setting, measure
from benchmarks.window.page import write_page

RATES = {"digits": (1e-3, 3e-3, 1e-2), "gpt": (3e-4, 1e-3)}
LENGTHS = ("1", "2", "5", "10", "auto")


def grid(quick: bool) -> list[str]:
    """The cells' names."""
    settings = [
        Setting(task, rate, steps, seed)
        for task, rates in RATES.items()
        for rate in rates
        for steps in LENGTHS
        for seed in range(1 if quick else 3)
    ]
    return [f"agreement: {setting.key}" for setting in settings]


def main() -> None:
    """Parses the command line, measures, writes the page."""
    measure_and_write("window", __doc__, "one seed", grid, measure, write_page)


if __name__ == "__main__":
    main()
