"""`python -m benchmarks.optimizers`: measures what is missing and writes docs/optimizers.md."""

from __future__ import annotations

import argparse

from benchmarks.data import UnavailableError
from benchmarks.optimizers.cell import Setting, measure
from benchmarks.optimizers.makers import MAKERS
from benchmarks.results_file import cells

MORE_PLAYERS = ("adamw", "lion", "rprop", "muon")


def grid(*, quick: bool) -> list[Setting]:
    """Every optimizer on the MLP and the GPT-2 config, a few with twelve samples a step."""
    images = [Setting("mlp-mnist", name) for name in MAKERS]
    if quick:
        return images
    texts = [Setting("gpt2-brown", name) for name in MAKERS]
    return [*images, *texts, *(Setting("mlp-mnist", name, 12) for name in MORE_PLAYERS)]


def main() -> None:
    """Parses the command line, measures, writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the MLP alone, in a few minutes")
    parser.add_argument("--fresh", action="store_true", help="measure again what is on disk")
    parser.add_argument("--page-only", action="store_true", help="write the page from the disk")
    parser.add_argument("--processes", type=int, default=1, help="cells side by side")
    given = parser.parse_args()
    if not given.page_only:
        try:
            keys = [setting.key for setting in grid(quick=given.quick)]
            cells("optimizers", keys, measure, fresh=given.fresh, processes=given.processes)
        except UnavailableError as error:
            print(f"stopped: {error}. What was measured before is kept.")
    from benchmarks.optimizers.page import write_page

    write_page()


if __name__ == "__main__":
    main()
