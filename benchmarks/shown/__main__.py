"""`python -m benchmarks.shown`: runs what the pages show, writes docs/shown/ and pictures."""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks.command import measure_and_write
from benchmarks.results_file import RESULTS
from benchmarks.shown.cell import RUNS, measure
from benchmarks.shown.pictures import draw

PAGES = Path(__file__).parents[2] / "docs" / "shown"


def grid(quick: bool) -> list[str]:
    """The runs; the steps behind the pictures alone take seconds."""
    return ["steps"] if quick else list(RUNS)


def write_pages() -> None:
    """Transcripts and pictures, from the results on disk."""
    cells = json.loads((RESULTS / "shown.json").read_text())["cells"]
    PAGES.mkdir(exist_ok=True)
    for key, cell in cells.items():
        if key == "steps":
            draw(cell["result"])
            continue
        for name, text in cell["result"].items():
            (PAGES / f"{name}.txt").write_text(_thinned(text) + "\n")


def main() -> None:
    """Parses the command line, runs, writes."""
    measure_and_write("shown", __doc__, "the pictures' steps alone", grid, measure, write_pages)


def _thinned(text: str) -> str:
    """The first two and the last of lines of progress in a row; each paragraph once."""
    progress = r"((?:^step \d+ of .*\n){2})(?:^step \d+ of .*\n)+(?=step \d+ of )"
    text = re.sub(progress, r"\1...\n", text, flags=re.M)
    return "\n\n".join(dict.fromkeys(text.split("\n\n")))


if __name__ == "__main__":
    main()
