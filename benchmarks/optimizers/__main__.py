"""`python -m benchmarks.optimizers`: writes docs/evidence/optimizers.md."""

from __future__ import annotations

from benchmarks.command import measure_and_write
from benchmarks.optimizers.cell import Setting, measure
from benchmarks.optimizers.makers import MAKERS
from benchmarks.optimizers.page import write_page

MORE_PLAYERS = ("adamw", "lion", "rprop", "muon")


def grid(quick: bool) -> list[str]:
    """Every optimizer on the MLP and the GPT-2 config, a few with twelve samples a step."""
    settings = [Setting("mlp-mnist", name) for name in MAKERS]
    if not quick:
        settings += [Setting("gpt2-brown", name) for name in MAKERS]
        settings += [Setting("mlp-mnist", name, 12) for name in MORE_PLAYERS]
    return [setting.key for setting in settings]


def main() -> None:
    """Parses the command line, measures, writes the page."""
    quick = "the MLP alone, in a few minutes"
    measure_and_write("optimizers", __doc__, quick, grid, measure, write_page)


if __name__ == "__main__":
    main()
