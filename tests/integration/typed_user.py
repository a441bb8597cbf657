"""A user's script with every public name in use: type-checked from outside, never run."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor, nn

import inrun


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none") / len(batch[0])


def trained(model: nn.Module, x: Tensor, y: Tensor, store: Path) -> pa.Table:
    optimizer = torch.optim.AdamW(model.parameters())
    utility: inrun.Utility = inrun.Utility(loss_fn, (x, y))
    attribution: inrun.Attribution = inrun.attach(model, optimizer, utility, store=store)
    with attribution.batch(range(len(x))):
        loss_fn(model, (x, y)).backward()
    optimizer.step()
    covered: float = attribution.covered
    print(covered, attribution.residual_share, inrun.__version__)
    print(inrun.harm_profile(attribution), inrun.rollup(attribution, samples=pa.table({})))
    attribution.detach()
    return attribution.values()


def decided(store: Path) -> None:
    run: inrun.Run = inrun.load(store)
    pruning: inrun.Pruning = inrun.prune(run, 0.1)
    worth: inrun.Rollup = inrun.rollup(run, "source")
    sources: inrun.Trace = inrun.trace(run, "validation")
    checked: inrun.Comparison = inrun.check_pruning(
        pruning, lambda ids, seed: float(len(ids)), seeds=2
    )
    harms: inrun.HarmProfile = inrun.harm_profile(run)
    doubts: inrun.LabelDoubts = inrun.label_doubts(run)
    for answer in (pruning, worth, sources, checked, harms, doubts):
        rows: pa.Table = answer.to_arrow()
        print(answer, rows.num_rows)
    print(worth.table.num_rows, sources.table.num_rows)


def looked_ahead(model: nn.Module, x: Tensor, y: Tensor) -> pa.Table:
    optimizer = torch.optim.AdamW(model.parameters())
    recorder: inrun.Recorder = inrun.record(
        model, optimizer, losses, lambda ids: (x[list(ids)], y[list(ids)])
    )
    recorded: inrun.Trajectory = recorder.finish()
    found: inrun.Lookahead = inrun.lookahead(recorded, inrun.Utility(loss_fn, (x, y)))
    try:
        return found.values()
    except inrun.errors.MisuseError:
        raise SystemExit(1) from None


def true(table: pa.Table) -> inrun.truth.AuditReport:
    return inrun.truth.report(table)
