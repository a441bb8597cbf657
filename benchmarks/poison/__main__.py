"""`python -m benchmarks.poison`: plants rows with a trigger, finds them, writes the page."""

from __future__ import annotations

from benchmarks.command import measure_and_write
from benchmarks.poison import chats
from benchmarks.poison.cell import Setting
from benchmarks.poison.page import write_page

CASES = (("phrase", 0.03), ("weather", 0.03), ("phrase", 0.02))
SEEDS = 3
CHATS = (chats.Setting("weather", 0),)


def grid(quick: bool) -> list[str]:
    """Every case and seed, or one of them."""
    every = [Setting(*case, seed).key for seed in range(SEEDS) for case in CASES]
    return every[:1] if quick else every + [chats.CELLS + setting.key for setting in CHATS]


def main() -> None:
    """Parses the command line, measures, writes the page."""
    measure_and_write("poison", __doc__, "one cell", grid, chats.measure, write_page)


if __name__ == "__main__":
    main()
