"""`python -m benchmarks.fidelity`: measures what is not on disk yet and writes docs/fidelity.md."""

from __future__ import annotations

import argparse

from benchmarks.data import UnavailableError
from benchmarks.fidelity.cell import Setting, measure
from benchmarks.results_file import cells

MODELS = ("mlp-mnist", "resnet-mnist", "gpt2-brown", "llama-brown", "llama-tied-brown")
SWEPT = ("mlp-mnist", "gpt2-brown")
RATES = (0.01, 0.1, 0.3, 3.0, 10.0, 30.0)


def grid(quick: bool) -> list[Setting]:
    """The standard grid, or a part of it that runs in under three minutes."""
    if quick:
        return [Setting(task) for task in ("mlp-mnist", "resnet-mnist", "gpt2-brown")]
    settings = [Setting(task, seed=seed) for seed in range(3) for task in MODELS]
    for task in SWEPT:
        settings += [Setting(task, rate=rate) for rate in RATES]
        settings += [
            Setting(task, optimizer=name) for name in ("sgd", "sgd-momentum", "adam", "adamw-95")
        ]
        settings += [Setting(task, clip=False), Setting(task, schedule="cosine")]
    return [*settings, Setting("minilm-r8")]


def main() -> None:
    """Parses the command line, measures, writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three models, one seed")
    parser.add_argument("--fresh", action="store_true", help="measure again what is on disk")
    parser.add_argument("--page-only", action="store_true", help="write the page from the disk")
    given = parser.parse_args()
    keys = [setting.key for setting in grid(given.quick)]
    if not given.page_only:
        try:
            cells("fidelity", keys, measure, fresh=given.fresh)
        except UnavailableError as error:
            print(f"stopped: {error}. What was measured before is kept.")
    from benchmarks.fidelity.page import write_page

    write_page()


if __name__ == "__main__":
    main()
