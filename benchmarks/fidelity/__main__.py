"""`python -m benchmarks.fidelity`: measures what is missing, writes docs/evidence/fidelity.md."""

from __future__ import annotations

import argparse

from benchmarks.data import UnavailableError
from benchmarks.fidelity.ablation import measure as measure_ablation
from benchmarks.fidelity.cell import Setting, measure
from benchmarks.results_file import cells

MODELS = ("mlp-mnist", "resnet-mnist", "gpt2-brown", "llama-brown", "llama-tied-brown")
SWEPT = ("mlp-mnist", "gpt2-brown")
ABLATED = (("mlp-mnist", 0), ("mlp-mnist", 1), ("gpt2-brown", 0))
RATES = (0.01, 0.1, 0.3, 3.0, 10.0, 30.0)


def grid(size: str) -> list[Setting]:
    """The standard grid, a part of it that runs in under three minutes, or the GPU's."""
    if size == "quick":
        return [Setting(task) for task in ("mlp-mnist", "resnet-mnist", "gpt2-brown")]
    if size == "large":
        return [
            Setting(task, precision=precision)
            for task in ("gpt2-small-brown", "llama-1b-brown")
            for precision in ("float32", "bf16")
        ]
    settings = [Setting(task, seed=seed) for seed in range(3) for task in MODELS]
    for task in SWEPT:
        settings += [Setting(task, rate=rate) for rate in RATES]
        settings += [
            Setting(task, optimizer=name) for name in ("sgd", "sgd-momentum", "adam", "adamw-95")
        ]
        settings += [Setting(task, clip=False), Setting(task, schedule="cosine")]
        settings += [Setting(task, precision=precision) for precision in ("bf16", "bf16-both")]
    return settings + [Setting("minilm-r8", seed=seed) for seed in range(2)]


def main() -> None:
    """Parses the command line, measures, writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--quick", action="store_true", help="three models, one seed")
    group.add_argument("--large", action="store_true", help="GPT-2 small and a 1B Llama, on a GPU")
    parser.add_argument("--fresh", action="store_true", help="measure again what is on disk")
    parser.add_argument("--page-only", action="store_true", help="write the page from the disk")
    parser.add_argument("--processes", type=int, default=2, help="cells side by side")
    given = parser.parse_args()
    size = "quick" if given.quick else "large" if given.large else "standard"
    if not given.page_only:
        try:
            options = {"fresh": given.fresh, "processes": 1 if size == "large" else given.processes}
            cells("fidelity", [s.key for s in grid(size)], measure, **options)
            if size == "standard":
                keys = [Setting(task, seed=seed).key for task, seed in ABLATED]
                cells("fidelity_ablation", keys, measure_ablation, **options)
        except UnavailableError as error:
            print(f"stopped: {error}. What was measured before is kept.")
    from benchmarks.fidelity.page import write_page

    write_page()


if __name__ == "__main__":
    main()
