"""`inrun plan`: what a training will take, from a few of its steps on this machine.

seconds   = first steps as timed + (steps - those) * median of the later ones
memory    = the highest that was seen while those steps ran
disk      = counted: bytes a visit, a step and a weight (see `disk_of_values`)
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from torch import nn

from inrun.attribution import attach
from inrun.errors import StoreError
from inrun.replay import GIBIBYTE, kept_states
from inrun.training._loop import MEASURED, count_trained
from inrun.training._measured import Meter
from inrun.training._samples import Id
from inrun.training._training import Training
from inrun.utility import Utility, evaluate

PLAN = "plan.json"
SMOOTHED, STEADY, PLAIN, WARM = 10, 8, 6, 2  # steps: smoothed first ones, later ones, unattributed
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
        table.add_row("time", _time(self.seconds_plain), _time(self.seconds))
        table.add_row("memory, at most", _bytes(self.memory_plain), _bytes(self.memory))
        for name, size in self._disk().items():
            table.add_row(f"disk: {name}", "", _bytes(size))
        return table

    def _disk(self) -> dict[str, int]:
        found = {
            "values and books": self.disk_values,
            "values a token": self.disk_tokens,
            "trajectory": self.disk_trajectory,
            "trained model": self.disk_model,
            "checkpoint, while it trains": self.disk_checkpoint,
        }
        return {name: size for name, size in found.items() if size}

    def advice(self) -> str:
        """What drives the cost, and what would change it."""
        lines = [
            f"Attribution adds {self.overhead:+.0%} to the time, of which the validation passes "
            f"({self.validation_rows} rows, {self.targets} targets) are "
            f"{self.share_of_validation:.0%}."
        ]
        if self.overhead > 1 and self.share_of_validation > 0.5:
            lines.append("Fewer --validation-rows, or a larger --batch, make it cheaper.")
        held = self.memory - self.memory_plain - self.memory_of_validation
        if self.memory > 1.5 * self.memory_plain:
            lines.append(
                f"Of the additional memory {_bytes(self.memory_of_validation)} are the targets' "
                "gradients (two sets)."
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
    steps, meter = training.steps(), Meter(training.device)
    plain, _ = _timed(training, meter, None, WARM + PLAIN)
    memory_plain, utility = meter.memory, training.utility()
    seconds, passes = _timed(training, meter, utility, SMOOTHED + STEADY)
    model, _ = training.start()
    weights = [p for p in model.parameters() if p.requires_grad]
    size = sum(p.numel() * p.element_size() for p in weights)
    targets = len(utility.targets)
    total = float(np.sum(seconds[:steps])) + max(0, steps - len(seconds)) * _steady(seconds)
    steady = _steady(seconds)
    return Plan(
        steps=steps,
        parameters=count_trained(model),
        targets=targets,
        seconds=total,
        seconds_plain=steps * float(np.median(plain[WARM:])),
        share_of_validation=min(1.0, passes / max(1e-9, steady - float(np.median(plain[WARM:])))),
        memory=meter.memory,
        memory_plain=memory_plain,
        memory_of_validation=2 * targets * size,
        disk_values=disk_of_values(
            visits=len(training.ids) * training.config.epochs, steps=steps, targets=targets,
            seconds=total,
        ),
        disk_tokens=_disk_of_tokens(training),
        disk_trajectory=_disk_of_trajectory(training, steps, 3 * size),
        disk_model=size if training.config.lora else _bytes_of(model),
        disk_checkpoint=3 * size,
        capture=training.config.capture,
        batch=training.config.batch * training.config.accumulate,
        validation_rows=len(training.judges()),
    )  # fmt: skip


def _bytes_of(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in model.state_dict().values())


def _steady(seconds: list[float]) -> float:
    return float(np.median(seconds[SMOOTHED:] or seconds))


def _timed(
    training: Training, meter: Meter, utility: Utility | None, count: int
) -> tuple[list[float], float]:
    """Seconds of each step, and of one validation pass over all targets."""
    config = training.config
    model, optimizer = training.start()
    attribution, passes = None, 0.0
    if utility is not None:
        attribution = attach(
            model, optimizer, utility, estimator=config.estimator, capture=config.capture,
            contraction=config.contraction, progress=False,
        )  # fmt: skip
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        for _ in range(2):  # the first one warms up
            began = time.perf_counter()
            evaluate(utility, model, named)
            _wait(training.device)
            passes = time.perf_counter() - began
    seconds = []
    for parts in _steps(training, count):
        began = time.perf_counter()
        for ids, (batch, share) in zip(parts, training.weighted(parts), strict=True):
            if attribution is None:
                (training.loss_fn(model, batch) * share).backward()
            else:
                with attribution.batch(ids):
                    (training.loss_fn(model, batch) * share).backward()
        training.clip(model)
        optimizer.step()
        optimizer.zero_grad()
        _wait(training.device)
        seconds.append(time.perf_counter() - began)
        meter.look()
    if attribution is not None:
        attribution.detach()
    return seconds, passes


def _steps(training: Training, count: int) -> Iterator[list[list[Id]]]:
    """That many steps, from the start again where there are fewer."""
    again = chain.from_iterable(training.batches() for _ in repeat(None))
    return (next(again) for _ in range(count))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
        "time": ("seconds", _time), "memory, at most": ("memory", _bytes),
        "disk: values and books": ("disk_values", _bytes),
        "disk: values a token": ("disk_tokens", _bytes),
        "disk: trajectory": ("disk_trajectory", _bytes),
        "disk: trained model": ("disk_model", _bytes),
    }  # fmt: skip
    for name, (key, form) in shown.items():
        if plan[key] and measured[key]:
            ratio = f"{measured[key] / plan[key]:.2f}"
            table.add_row(name, form(plan[key]), form(measured[key]), ratio)
    return table


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if size >= 100 or unit == "B" else f"{size:.1f} {unit}"
