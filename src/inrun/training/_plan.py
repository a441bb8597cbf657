"""`inrun plan`: what a training will take, from a few of its steps on this machine.

seconds   = first steps as timed + (steps - those) * median of the later ones; where only some
            steps are scored, what scoring adds is counted for those
memory    = the highest that was seen while those steps ran, and what a full momentum window holds
            beyond the short one that they had
disk      = counted: bytes per visit, step and weight
"""

from __future__ import annotations

from inrun.errors import require_extra

require_extra("train", "transformers", "accelerate")

# ruff: noqa: E402 - an extra that is not there is named before anything of it is imported

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.filesize import decimal
from rich.table import Table
from torch import nn
from transformers import TrainerCallback

from inrun.attribution import EveryStep, Options
from inrun.integrations.transformers import InRun
from inrun.ledger import FLUSH_SECONDS, FLUSH_VISITS
from inrun.replay import GIBIBYTE, kept_states
from inrun.training._config import TrainConfig
from inrun.training._run import Meter
from inrun.training._training import Training

FIRST = Options.smoothed_steps  # dearer than the others
STEADY, PLAIN, WARM = 8, 6, 2  # steps: later ones, unattributed ones, those before them
LONGEST = 50.0  # seconds for either of the two trainings: slower ones take fewer steps
WINDOW = 4  # of momentum while steps are timed, so that some are paid; its length costs no time
PART_BYTES = 3000  # of a part's footer, with a little for each column


@dataclass(frozen=True)
class Plan:
    """Seconds and bytes; `memory_plain` and `seconds_plain` are of the same training without us.

    `scored` is the share of steps that are scored; `memory_of_window` is part of `memory`.
    """

    steps: int
    batch: int
    parameters: int
    validation_rows: int
    scored: float
    seconds: float
    seconds_plain: float
    memory: int
    memory_plain: int
    memory_of_window: int
    disk: dict[str, int]

    def table(self) -> Table:
        """For a terminal."""
        table = Table(title=f"{self.steps} steps of {self.batch} rows, {self.parameters:,} weights")
        for column in ("", "without", "with attribution"):
            table.add_column(column, justify="left" if not column else "right")
        table.add_row("time", _in_time(self.seconds_plain), _in_time(self.seconds))
        table.add_row("memory, at most", decimal(self.memory_plain), decimal(self.memory))
        for name, size in self.disk.items():
            if size:
                table.add_row(f"disk: {name}", "", decimal(size))
        return table

    def advice(self) -> str:
        """How dear it is, and what would make it cheaper."""
        overhead = self.seconds / self.seconds_plain - 1
        lines = [
            f"Attribution adds {overhead:+.0%} to the time: each scored step passes "
            f"{self.validation_rows} validation rows, for a batch of {self.batch}."
        ]
        if self.scored < 1:
            lines.append(f"{self.scored:.1%} of the steps are scored, and stand for the others.")
        elif overhead > 1:
            lines.append(
                "Fewer --validation-rows, a larger --batch, --scored N or --budget make it cheaper."
            )
        if self.memory_of_window:
            lines.append(
                f"The momentum window holds {decimal(self.memory_of_window)} of the memory once "
                "it is full; --held-in FOLDER keeps most of that on a disk."
            )
        return "\n".join(lines)


def _in_time(seconds: float) -> str:
    """For people."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


class _Timer(TrainerCallback):
    """Seconds of each step, its data included."""

    def __init__(self) -> None:
        self._last, self.seconds = 0.0, list[float]()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Begins to count."""
        self._last = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **__: Any) -> None:
        """Notes a step, and stops where there is no more time and enough was seen."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now
        if len(self.seconds) > WARM and sum(self.seconds) > LONGEST:
            control.should_training_stop = True


class _Few(InRun):
    """Scores every step of the few; notes what waits for momentum before the end."""

    held: dict[str, float]

    def on_train_end(self, *arguments: Any, **kwargs: Any) -> None:
        """Nothing to end: a plan stores no run."""
        self.held = dict(self.attribution.waiting)
        super().on_train_end(*arguments, **kwargs)


def plan_training(training: Training, tell: Callable[[str], None] = lambda _: None) -> Plan:
    """Trains a few steps and throws them away; `tell` is told what goes on, in a sentence each."""
    most = "at most a minute each, or three steps"
    tell(f"Training {WARM + PLAIN} steps plainly, then {FIRST + STEADY} with attribution; {most}.")
    config, meter, steps = training.config, Meter(training.device), training.steps()
    plain, trained = _trained(training, WARM + PLAIN)
    memory_plain = max(meter.memory, _least(trained))
    tell(f"A plain step takes {np.median(plain[WARM:]):.2g} s. Now with attribution.")
    window, full = min(config.momentum_window, WINDOW), min(config.momentum_window, steps)
    few = _Few(
        training.utility(), ids="sample_id",
        **config.attach_settings() | {
            "momentum_window": window,
            "scoring": EveryStep(validation_parts=config.validation_parts),
        },
    )  # fmt: skip
    found, model = _trained(training, FIRST + STEADY, few)
    one, steady = float(np.median(plain[WARM:])), float(np.median(found[FIRST:] or found[-1:]))
    every = float(np.sum(found[:steps])) + max(0, steps - len(found)) * steady
    scored = _scored(config, steady / one - 1)
    seconds = (1 - scored) * steps * one + scored * every
    longer = full / max(1, window)  # what waits goes by steps
    held, held_on_disk = (longer * few.held[name] for name in ("full_bytes", "full_disk_bytes"))
    return Plan(
        steps=steps,
        batch=config.batch * config.accumulate,
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        validation_rows=len(training.judges()) // config.validation_parts,
        scored=scored,
        seconds=seconds,
        seconds_plain=steps * one,
        memory=max(meter.memory, memory_plain) + int(max(0, held - few.held["full_bytes"])),
        memory_plain=memory_plain,
        memory_of_window=int(held),
        disk=_disk(training, model, scored, seconds)
        | {"momentum window, while it trains": int(held_on_disk)},
    )


def _least(model: nn.Module) -> int:
    """Bytes of weights, gradients and two moments: what a process had left over may hide them."""
    trained = (p for p in model.parameters() if p.requires_grad)
    return 4 * sum(p.numel() * p.element_size() for p in trained)


def _trained(
    training: Training, count: int, scoring: InRun | None = None
) -> tuple[list[float], nn.Module]:
    """Seconds of each of so many steps, and the model after them."""
    model, timer = training.drawn(), _Timer()
    callbacks = [timer] if scoring is None else [scoring, timer]
    with training.apart(model, training.splits.training, callbacks, max_steps=count) as trainer:
        trainer.train()
    return timer.seconds, model


def _scored(config: TrainConfig, extra: float) -> float:
    """The share of the steps that are scored, where scoring one adds `extra` times its time."""
    if config.budget is not None:
        return min(1.0, config.budget / max(1e-9, extra))
    return config.scored if config.scored < 1 else 1 / config.scored


def _disk(training: Training, model: nn.Module, scored: float, seconds: float) -> dict[str, int]:
    """Bytes by what they hold, beside those of `Measured.disk` what is there while it trains.

    A visit is two numbers of 8 bytes that do not compress, one more for each target where there are
    several, and about 3 bytes for step and id; a step's books are 7 numbers per row, one row per
    target and one for the total. A token is 8 bytes and about as much for its text.
    """
    config, steps = training.config, training.steps()
    targets = len(training.utility().targets)
    columns = targets if targets > 1 else 0
    visits = int(scored * len(training.ids) * config.epochs)
    parts = 2 * (1 + max(visits // FLUSH_VISITS, int(seconds // FLUSH_SECONDS)))
    books = max(1, int(scored * steps)) * (columns + 1) * 56
    size = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    whole = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    tokens = 0.0
    if config.keep_tokens:
        batch = training.fetch(training.ids[: 4 * config.batch])
        tokens = 10 * visits * float(batch["attention_mask"].sum(1).float().mean())
    return {
        "values and books": visits * (16 + 8 * columns + 3) + books + parts * PART_BYTES,
        "values for each token": int(tokens),
        "trajectory": config.record * kept_states(steps, GIBIBYTE // (3 * size)) * 3 * size,
        "trained model": size if config.lora else whole,
        "checkpoints, while it trains": 2 * (2 * size + (size if config.lora else whole)),
    }
