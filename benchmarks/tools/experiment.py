"""Our side: the training recorded, our values, and the trainings without samples.

A sample is removed as the tools' scores mean it: its loss leaves the batch's mean, and the other
samples keep their weight (`removal="drop"`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import inrun
from benchmarks import EXACT, data
from benchmarks.keyed import Keyed
from benchmarks.tools.frame import LENGTH, VOCABULARY, Clock, Frame, Gpt2, Said, answer, row_losses
from inrun.replay import lookahead_between, tracin

SAMPLES, BATCH, QUERIES, LEFT_OUT = 256, 16, 10, 40
DROP, NOISE = "drop", 1e-5


@dataclass(frozen=True)
class Setting(Keyed):
    """How the model is trained, and from where it starts."""

    rate: float
    epochs: int
    seed: int = 0


def framed(setting: Setting) -> Frame:
    """The frame of a setting, trained by the plain loop."""
    words = data.brown(VOCABULARY, LENGTH)
    torch.manual_seed(setting.seed)
    start = _copied(Gpt2())
    queries = words[SAMPLES : SAMPLES + QUERIES].clone()
    left_out = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(100))[:LEFT_OUT]
    frame = Frame(
        words[:SAMPLES].clone(), queries, list(_batches(setting)), left_out.tolist(), setting.rate,
        start, start,
    )  # fmt: skip
    frame.finished = _copied(trained(frame))
    return frame


def trained(frame: Frame) -> nn.Module:
    """The plain loop."""
    model = frame.model()
    optimizer = frame.optimizer(model)
    for ids in frame.batches:
        words = frame.words[ids]
        row_losses(model(words), words).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def recorded(frame: Frame) -> inrun.Trajectory:
    """The same loop, recorded."""
    model = frame.model()
    optimizer = frame.optimizer(model)
    recorder = inrun.record(
        model, optimizer, lambda m, words: row_losses(m(words), words) / len(words),
        lambda ids: frame.words[torch.as_tensor(ids)], steps=len(frame.batches),
    )  # fmt: skip
    for ids in frame.batches:
        words = frame.words[ids]
        with recorder.batch(ids):
            row_losses(model(words), words).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return recorder.finish()


def moved(frame: Frame) -> Frame:
    """The same with Gaussian noise on its start."""
    noise = torch.Generator().manual_seed(1)
    start = {n: p + NOISE * torch.randn(p.shape, generator=noise) for n, p in frame.start.items()}
    return replace(frame, start=start)


def asked(frame: Frame) -> inrun.Utility:
    """Each query's loss, in double precision."""

    def judge(model: nn.Module, words: Tensor) -> Tensor:
        return row_losses(model(words), words).double().mean()

    rows = {f"query {k}": row for k, row in enumerate(frame.queries.split(1))}
    return inrun.Utility(judge, targets=rows)


def values(frame: Frame, _: Path) -> Said:
    """Recorded once; then each method, or the one that the command line names as its third word."""
    clock, said = Clock(), Said({}, {})
    run, utility = recorded(frame), asked(frame)
    said.finished = _copied(run.finished())  # which other states are put into
    said.seconds[""] = clock.look()
    ways = {
        "look-ahead": lambda: inrun.lookahead(run, utility, removal=DROP).values(),
        EXACT: lambda: inrun.lookahead(run, utility, removal=DROP, damped=False).values(),
        "look-ahead, carried push": lambda: inrun.lookahead(
            run, utility, removal=DROP, push="finite", samples=frame.left_out
        ).values(),
        "look-ahead, between": lambda: lookahead_between(run, utility),
        "in-step": lambda: inrun.lookahead(run, utility, 1, removal=DROP).values(),
        "TracIn, 5 states": lambda: tracin(run, utility, removal=DROP).values(),
    }
    named = [name for name in ways if name in sys.argv[3:]]
    for name, way in ways.items():
        if named and name not in named:
            continue
        said.values[name] = as_array(way(), utility)
        said.seconds[name] = clock.look()
    return said


def as_array(table: Any, utility: inrun.Utility) -> np.ndarray:
    """(n, K), by sample; not a number where a sample has no value."""
    names: Sequence[str] = utility.targets if len(utility.targets) > 1 else ("value",)
    found = np.full((SAMPLES, len(names)), np.nan)
    found[table["sample_id"].to_numpy()] = np.stack([table[n].to_numpy() for n in names], 1)
    return found


def _batches(setting: Setting) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(setting.seed)
    for _ in range(setting.epochs):
        yield from (
            ids.clone() for ids in torch.randperm(SAMPLES, generator=generator).split(BATCH)
        )


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.state_dict().items()}


if __name__ == "__main__":
    answer(values)
