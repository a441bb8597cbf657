"""`python -m benchmarks.datamodeling`: measures what is not on disk yet, writes the page."""

from __future__ import annotations

from benchmarks.command import measure_and_write
from benchmarks.datamodeling.cell import Setting, measure
from benchmarks.datamodeling.dattri import installed
from benchmarks.datamodeling.page import write_page

SHORT, LONG = (1e-3, 5), (3e-3, 20)


def grid(quick: bool) -> list[str]:
    """The cells' names."""
    digits = [Setting(*SHORT, 0)] if quick else [
        Setting(*how, seed) for seed in range(3) for how in (SHORT, LONG)
    ]  # fmt: skip
    mnist = [Setting(0.05, 5, 0, "mnist-lr")]
    mnist += [Setting(0.05, 3, 0, task) for task in ("mnist-mlp", "mnist-mlp-gelu")]
    keys = [setting.key for setting in [*digits, *([] if quick else mnist)]]
    beside = [key for key in keys if "seed=0" in key and "gelu" not in key]
    return keys + ([f"dattri: {key}" for key in beside] if installed() else [])


def main() -> None:
    """Parses the command line, measures, writes the page."""
    measure_and_write("datamodeling", __doc__, "the short run, one seed", grid, measure, write_page)


if __name__ == "__main__":
    main()
