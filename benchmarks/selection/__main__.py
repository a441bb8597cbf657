"""`python -m benchmarks.selection`: measures what is missing, writes docs/evidence/selection.md."""

from __future__ import annotations

from typing import Any

from benchmarks.command import measure_and_write
from benchmarks.selection import cell, price
from benchmarks.selection.cell import Setting
from benchmarks.selection.price import PRICE

NOISES, RATES, SEEDS = (0.2, 0.0), (1e-3, 3e-3, 1e-2), 5


def measure(key: str) -> dict[str, Any]:
    """A cell of either kind."""
    if key.startswith(PRICE):
        return price.measure(key.removeprefix(PRICE))
    return cell.measure(key)


def grid(quick: bool) -> list[str]:
    """The standard cells, or one seed of them with wrong labels."""
    return [
        f"{kind}{Setting(noise, rate, seed).key}"
        for kind in ("", PRICE)
        for noise in (NOISES[:1] if quick else NOISES)
        for seed in range(1 if quick else SEEDS)
        for rate in RATES
    ]


def main() -> None:
    """Parses the command line, measures, writes the page."""
    from benchmarks.selection.page import write_page

    measure_and_write("selection", __doc__, "one seed with wrong labels", grid, measure, write_page)


if __name__ == "__main__":
    main()
