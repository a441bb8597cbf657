"""`inrun plan`: what a training will take, from a few of its steps on this machine.

seconds   = first steps as timed + (steps - those) * median of the later ones; where only some
            steps are scored, what scoring adds is counted for those
memory    = the highest that was seen while those steps ran, and what a full window of payout
            holds beyond the short one that they had
disk      = counted: bytes a visit, a step and a weight (see `disk_of_values`)
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.table import Table
from torch import nn

from inrun.errors import StoreError
from inrun.replay import GIBIBYTE, kept_states
from inrun.training._config import TrainConfig
from inrun.training._loop import MEASURED, count_trained
from inrun.training._measured import Meter, in_bytes, in_time
from inrun.training._timing import SMOOTHED, Timed, timed
from inrun.training._training import Training
from inrun.utility import Utility

PLAN = "plan.json"
STEADY, PLAIN, WARM = 8, 6, 2  # steps: later ones, unattributed ones, those before them
PART_VISITS, PART_SECONDS = 16384, 30.0  # when the store writes a part
PART_BYTES = 3000  # of a part's footer, with a little for each column


@dataclass(frozen=True)
class Plan:
    """Seconds and bytes; `memory_plain` and `seconds_plain` are of the same training without us."""

    steps: int
    parameters: int
    targets: int
    seconds: float
    seconds_plain: float
    share_of_validation: float
    memory: int
    memory_plain: int
    memory_of_validation: int
    disk_values: int
    disk_tokens: int
    disk_trajectory: int
    disk_model: int
    disk_checkpoint: int
    disk_payout: int
    memory_of_payout: int
    scored: float
    capture: str
    batch: int
    validation_rows: int

    @property
    def overhead(self) -> float:
        """Attribution's time over the training's own."""
        return self.seconds / self.seconds_plain - 1

    def table(self) -> Table:
        """For a terminal."""
        table = Table(title=f"{self.steps} steps of {self.batch} rows, {self.parameters:,} weights")
        for column in ("", "without", "with attribution"):
            table.add_column(column, justify="left" if not column else "right")
        table.add_row("time", in_time(self.seconds_plain), in_time(self.seconds))
        table.add_row("memory, at most", in_bytes(self.memory_plain), in_bytes(self.memory))
        for name, size in self._disk().items():
            table.add_row(f"disk: {name}", "", in_bytes(size))
        return table

    def _disk(self) -> dict[str, int]:
        found = {
            "values and books": self.disk_values,
            "values a token": self.disk_tokens,
            "trajectory": self.disk_trajectory,
            "trained model": self.disk_model,
            "checkpoint, while it trains": self.disk_checkpoint,
            "payout, while it trains": self.disk_payout,
        }
        return {name: size for name, size in found.items() if size}

    def advice(self) -> str:
        """What drives the cost, and what would change it."""
        passes = (
            f"the validation passes ({self.validation_rows} rows, {self.targets} targets) are "
            f"{self.share_of_validation:.0%}"
        )
        lines = [f"Attribution adds {self.overhead:+.0%} to the time, of which {passes}."]
        if self.scored < 1:
            lines.append(f"{self.scored:.1%} of the steps are scored, and stand for the others.")
        if self.overhead > 1 and self.share_of_validation > 0.5:
            lines.append("Fewer --validation-rows, or a larger --batch, make it cheaper.")
        if self.memory_of_payout:
            lines.append(
                f"Payout holds {in_bytes(self.memory_of_payout)} of the memory once its window is "
                "full; --payout-to FOLDER keeps most of that on a disk."
            )
        held = self.memory - self.memory_plain - self.memory_of_validation - self.memory_of_payout
        if self.memory > 1.5 * self.memory_plain:
            lines.append(
                f"Of the additional memory {in_bytes(self.memory_of_validation)} are the "
                "gradients that steps are judged by."
            )
            if self.capture == "hold" and held > self.memory_of_validation:
                lines.append("--capture stream keeps no layer's factors, at some exactness.")
        return "\n".join(lines)

    def write(self, folder: Path) -> None:
        """Keeps it in the folder of the run that is to come."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PLAN).write_text(json.dumps(asdict(self), indent=2) + "\n")


def plan_training(training: Training) -> Plan:
    """Trains a few steps and throws them away."""
    steps, meter, config = training.steps(), Meter(training.device), training.config
    plain = timed(training, meter, None, WARM + PLAIN).seconds
    memory_plain, utility = meter.memory, training.judged_by()
    found = timed(training, meter, utility, SMOOTHED + STEADY)
    model, _ = training.start()
    size = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    targets, one, steady = len(utility.targets), float(np.median(plain[WARM:])), _steady(found)
    if _halves(config, utility, steady / one - 1):
        steady -= found.passes / 2
    scored = _scored(config, steady / one - 1)
    all_scored = float(np.sum(found.seconds[:steps])) + max(0, steps - len(found.seconds)) * steady
    seconds = (1 - scored) * steps * one + scored * all_scored
    held, disk = _full_window(found, min(config.payout, steps))
    return Plan(
        steps=steps,
        parameters=count_trained(model),
        targets=targets,
        seconds=seconds,
        seconds_plain=steps * one,
        share_of_validation=min(1.0, found.passes / max(1e-9, steady - one)),
        memory=meter.memory + max(0, held - int(found.held["full_bytes"])),
        memory_plain=memory_plain,
        memory_of_validation=2 * targets * size,
        disk_values=disk_of_values(
            visits=int(scored * len(training.ids) * config.epochs),
            steps=max(1, int(scored * steps)), targets=targets, seconds=seconds,
        ),
        disk_tokens=int(scored * _disk_of_tokens(training)),
        disk_trajectory=_disk_of_trajectory(training, steps, 3 * size),
        disk_model=size if config.lora else _bytes_of(model),
        disk_checkpoint=3 * size,
        disk_payout=disk,
        memory_of_payout=held,
        scored=scored,
        capture=config.capture,
        batch=config.batch * config.accumulate,
        validation_rows=len(training.judges()) // config.rotating,
    )  # fmt: skip


def _halves(config: TrainConfig, utility: Utility, extra: float) -> bool:
    """Whether max_overhead halves the rows of each pass, rather than leave steps out."""
    most = config.max_overhead
    return most is not None and extra > most and config.capture != "stream" and utility.deals(2)


def _scored(config: TrainConfig, extra: float) -> float:
    """The share of the steps that are scored, where scoring one adds `extra` times its time."""
    if config.max_overhead is not None:
        return 1 / max(1, math.ceil(max(0.0, extra) / config.max_overhead))
    return config.every if config.every < 1 else 1 / config.every


def _full_window(found: Timed, window: int) -> tuple[int, int]:
    """Bytes in memory and on disk that a window holds, told from a short one: they go by steps."""
    times = window / max(1, found.window)
    return int(times * found.held["full_bytes"]), int(times * found.held["full_disk_bytes"])


def _bytes_of(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in model.state_dict().values())


def _steady(found: Timed) -> float:
    return float(np.median(found.seconds[SMOOTHED:]))


def disk_of_values(*, visits: int, steps: int, targets: int, seconds: float) -> int:
    """Bytes of visits and books.

    A visit is two numbers of 8 bytes that do not compress, one more a target where there are
    several, and about 3 bytes for step and id; a step's books are 7 numbers a row, a row a target
    and one for the total.
    """
    columns = targets if targets > 1 else 0
    parts = 2 * (1 + max(visits // PART_VISITS, int(seconds // PART_SECONDS)))
    return visits * (16 + 8 * columns + 3) + steps * (columns + 1) * 56 + parts * PART_BYTES


def _disk_of_tokens(training: Training) -> int:
    """8 bytes a token, and about as much for the token itself."""
    if not training.config.keep_tokens:
        return 0
    batch = training.fetch(training.ids[: 4 * training.config.batch])
    tokens = float(batch["attention_mask"].sum()) / len(batch["attention_mask"])
    return int(training.config.epochs * len(training.ids) * tokens * 10)


def _disk_of_trajectory(training: Training, steps: int, state: int) -> int:
    """The states that recording keeps within its budget."""
    return kept_states(steps, GIBIBYTE // state) * state if training.config.record else 0


def read_comparison(run: Path) -> Table:
    """A finished run's plan beside what was measured.

    Raises:
        StoreError: one of them is missing.
    """
    for name in (PLAN, MEASURED):
        if not (run / name).exists():
            raise StoreError(
                f"{run / name} is missing. Call `inrun plan ... --out {run}` before, and "
                f"`inrun train ... --out {run}` after it."
            )
    plan, measured = (json.loads((run / name).read_text()) for name in (PLAN, MEASURED))
    table = Table(title="Planned and measured", title_justify="left")
    for column in ("", "planned", "measured", "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    shown = {
        "time": ("seconds", in_time), "memory, at most": ("memory", in_bytes),
        "disk: values and books": ("disk_values", in_bytes),
        "disk: values a token": ("disk_tokens", in_bytes),
        "disk: trajectory": ("disk_trajectory", in_bytes),
        "disk: trained model": ("disk_model", in_bytes),
    }  # fmt: skip
    for name, (key, form) in shown.items():
        if plan[key] and measured[key]:
            ratio = f"{measured[key] / plan[key]:.2f}"
            table.add_row(name, form(plan[key]), form(measured[key]), ratio)
    return table
