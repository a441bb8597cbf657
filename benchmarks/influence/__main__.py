"""`python -m benchmarks.influence`: measures what is not on disk yet, writes docs/influence.md."""

from __future__ import annotations

import argparse

from benchmarks.data import UnavailableError
from benchmarks.influence.cell import Setting, print_peak
from benchmarks.influence.kinds import measure
from benchmarks.influence.models import TASKS
from benchmarks.results_file import cells

RATES = (1e-3, 1e-4, 1e-5)
GRID_RATES = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
GRID_STEPS = (12, 24, 47, 94)


def grid(quick: bool) -> list[str]:
    """The standard cells, or a part of them that runs in a few minutes."""
    tasks = ("mlp-relu", "mlp-gelu") if quick else tuple(TASKS)
    seeds = range(1) if quick else range(3)
    costs = [f"cost: {Setting(task, 1e-3).key}" for task in tasks]
    fidelities = [
        f"fidelity: {Setting(task, rate, seed).key}"
        for seed in seeds
        for task in tasks
        for rate in RATES
    ]
    proxies = []
    if not quick:
        proxies = [
            f"proxy: {Setting(task, rate, steps=steps).key}"
            for task in ("mlp-relu", "mlp-gelu")
            for rate in GRID_RATES
            for steps in GRID_STEPS
        ]
    beside = [key.replace("fidelity", kind) for kind in ("carried", "decay") for key in fidelities]
    proxies += [key.replace("proxy", "rounding") for key in proxies]
    beside += [key.replace("fidelity", "queries") for key in fidelities if "seed=0" in key]
    return fidelities + beside + proxies + costs


def main() -> None:
    """Parses the command line, measures, writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the MLPs, one seed")
    parser.add_argument("--fresh", action="store_true", help="measure again what is on disk")
    parser.add_argument("--page-only", action="store_true", help="write the page from the disk")
    parser.add_argument("--peak", nargs=2, metavar=("WHAT", "CELL"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peak:
        print_peak(Setting.of(given.peak[1]), given.peak[0])
        return
    if not given.page_only:
        try:
            cells("influence", grid(given.quick), measure, fresh=given.fresh)
        except UnavailableError as error:
            print(f"stopped: {error}. What was measured before is kept.")
    from benchmarks.influence.page import write_page

    write_page()


if __name__ == "__main__":
    main()
