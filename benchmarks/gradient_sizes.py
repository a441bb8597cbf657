"""`python -m benchmarks.gradient_sizes`: what `Options(gradient_sizes=True)` adds to a step.

Two attributed trainings with a store, one of them with sizes, and plain training take their steps
in turn on the same batches. Times are the process's own, medians over turns.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from statistics import median

import torch

import inrun
from benchmarks.overhead.cell import Batches, timed
from benchmarks.overhead.methods import EveryStep, Method, Plain, Size
from benchmarks.results_file import RESULTS, environment

SIZES = (Size(2, 128, 8, 128), Size(2, 128, 4, 512))
WARM_UP, TURNS = 4, 7


class _Stored(EveryStep):
    """Every step scored into a store."""

    sized = False

    def attach(self, exact: int) -> inrun.Attribution:
        """See `Attributed.attach`."""
        self.folder = tempfile.TemporaryDirectory()
        return inrun.attach(
            self.model, self.optimizer, inrun.Utility(self.loss_fn, self.validation),
            store=Path(self.folder.name) / "run",
            options=inrun.Options(smoothed_steps=0, progress=False, gradient_sizes=self.sized),
        )  # fmt: skip

    def detach(self) -> None:
        """See `Method.detach`."""
        super().detach()
        self.folder.cleanup()


class _Sized(_Stored):
    """The same with the size of each sample's gradient."""

    sized = True


def measure(size: Size) -> dict[str, float]:
    """Medians of the turns' ratios to plain training, and of sizes to the same without."""
    device = torch.device("cpu")
    ways: list[Method] = [Plain(size, device), _Stored(size, device), _Sized(size, device)]
    batches, turns = Batches(size, device), list[list[float]]()
    for _ in range(WARM_UP + TURNS):
        ids, batch = batches.next()
        turns.append([timed(way, ids, batch, device) for way in ways])
    for way in ways:
        way.detach()
    plain, stored, sized = zip(*turns[WARM_UP:], strict=True)
    ratio = lambda a, b: round(median(x / y for x, y in zip(a, b, strict=True)), 3)  # noqa: E731
    return {
        "without / plain": ratio(stored, plain),
        "with / plain": ratio(sized, plain),
        "with / without": ratio(sized, stored),
    }


def main() -> None:
    """Writes `results/gradient_sizes.json` and prints it."""
    torch.set_num_threads(1)
    found = {size.words: measure(size) for size in SIZES}
    content = {"ratios": found, "environment": environment()}
    (RESULTS / "gradient_sizes.json").write_text(json.dumps(content, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
