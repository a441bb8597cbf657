"""`python -m benchmarks.influence`: measures what is missing, writes docs/evidence/influence.md."""

from __future__ import annotations

from benchmarks.command import measure_and_write
from benchmarks.influence.cell import Setting
from benchmarks.influence.kinds import measure
from benchmarks.influence.models import TASKS
from benchmarks.influence.page import write_page

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
            f"proxy: {Setting(task, rate, seed, steps).key}"
            for seed in seeds
            for task in ("mlp-relu", "mlp-gelu")
            for rate in GRID_RATES
            for steps in GRID_STEPS
        ]
    beside = [key.replace("fidelity", kind) for kind in ("damped", "decay") for key in fidelities]
    proxies += [key.replace("proxy", "error") for key in proxies]
    beside += [key.replace("fidelity", "queries") for key in fidelities if "seed=0" in key]
    beside += [
        key.replace("fidelity", "published")
        for key in fidelities
        if "seed=0" in key and "task=mlp" in key
    ]
    return fidelities + beside + proxies + costs


def main() -> None:
    """Parses the command line, measures, writes the page."""
    measure_and_write("influence", __doc__, "the MLPs, one seed", grid, measure, write_page)


if __name__ == "__main__":
    main()
