"""A few steps of a training, timed and thrown away: what `inrun plan` goes by."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import chain, repeat
from typing import NamedTuple

import torch
from torch import nn

from inrun.attribution import Attribution, EveryStep, attach
from inrun.training._measured import Meter
from inrun.training._samples import Id
from inrun.training._training import Training
from inrun.utility import Utility, evaluate

SMOOTHED = 10  # first steps, which are dearer
WINDOW = 4  # of payout while steps are timed, so that some are paid; how long it is costs no time


class Timed(NamedTuple):
    """Seconds of each step and of a validation pass; what payout's window of `window` steps holds.

    `held` has `full_bytes` and `full_disk_bytes`, as `Attribution.waiting`.
    """

    seconds: list[float]
    passes: float
    window: int
    held: dict[str, float]


def timed(training: Training, meter: Meter, utility: Utility | None, count: int) -> Timed:
    """Trains so many steps, all of them scored where there is a utility."""
    model, optimizer = training.start()
    window = min(training.config.payout, WINDOW)
    attribution, passes = None, 0.0
    if utility is not None:
        attribution = _attached(training, model, optimizer, utility, window)
        passes = _pass_seconds(training, model, utility)
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
    held = {"full_bytes": 0.0, "full_disk_bytes": 0.0}
    if attribution is not None:
        held = {name: attribution.waiting[name] for name in held}
        attribution.detach()
    return Timed(seconds, passes, window, held)


def _attached(
    training: Training,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    utility: Utility,
    window: int,
) -> Attribution:
    """As the training will be, but that every step is scored and few of them wait."""
    config = training.config
    whole = config.keep_tokens
    return attach(
        model, optimizer, utility, estimator=config.estimator, momentum_window=window,
        scoring=EveryStep(validation_parts=config.rotating),
        options=config.options(smoothed_steps=0 if whole else SMOOTHED),
    )  # fmt: skip


def _pass_seconds(training: Training, model: nn.Module, utility: Utility) -> float:
    """Of one validation pass over all targets."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for _ in range(2):  # the first one warms up
        began = time.perf_counter()
        evaluate(utility.dealt(training.config.rotating).part(0), model, named)
        _wait(training.device)
        passes = time.perf_counter() - began
    return passes


def _steps(training: Training, count: int) -> Iterator[list[list[Id]]]:
    """That many steps, from the start again where there are fewer."""
    again = chain.from_iterable(training.batches() for _ in repeat(None))
    return (next(again) for _ in range(count))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
