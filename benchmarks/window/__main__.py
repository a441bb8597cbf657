"""`python -m benchmarks.window`: measures what is not on disk yet, writes the page."""

from __future__ import annotations

from benchmarks.classification.tasks import RECIPES
from benchmarks.command import measure_and_write
from benchmarks.smollm.training import RATES
from benchmarks.window.cell import measure
from benchmarks.window.page import write_page
from benchmarks.window.tasks import LABELLED, Setting


def grid(quick: bool) -> list[str]:
    """The cells' names."""
    rates = {
        "digits": (1e-4, 1e-3, 3e-3, 1e-2),
        **{task: (RECIPES[recipe].learning_rate,) for task, recipe in LABELLED.items()},
        "wide": (1e-4, 3e-4, 1e-3), "smollm": (RATES["lora"],), "gpt": (3e-4, 1e-3),
    }  # fmt: skip
    if quick:
        rates = {"digits": rates["digits"]}
    seeds = {"wide": 1, "smollm": 1, "gpt": 1}
    return [
        Setting(task, rate, seed).key
        for seed in range(1 if quick else 3)
        for task, each in rates.items()
        for rate in each
        if seed < seeds.get(task, 3)
    ]


def main() -> None:
    """Parses the command line, measures, writes the page."""
    measure_and_write("window", __doc__, "one seed of the digits", grid, measure, write_page)


if __name__ == "__main__":
    main()
