"""Before the first step: where samples lie in every operation, and whether shares sum up.

Both are measured on a few rows of the validation batch, on the side, in evaluation mode.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from inrun.capture._capture import Capture
from inrun.capture._gradient_check import GradientCheck
from inrun.capture._layouts import (
    Constant,
    Key,
    MeasuredLayouts,
    RecordingLayouts,
    Verdict,
    judge,
)
from inrun.capture._uncompiled import uncompiled
from inrun.capture._uses import Use
from inrun.errors import InRunError, InRunWarning
from inrun.utility import (
    Utility,
    differing_row,
    gradients_of,
    loss_of,
    row_count,
    take_rows,
    undisturbed,
)

ROWS = 3

Recorded = list[tuple[Key, Tensor]]


def self_test(capture: Capture, model: nn.Module, utility: Utility) -> None:
    """Measures layouts into `capture.layouts` and checks the invariant on validation rows.

    Warns (`InRunWarning`) where the validation batch cannot be cut into rows: sample axes are then
    taken from shapes.

    Raises:
        InvariantError: shares do not sum to the gradient.
        NeverPossibleError: the model mixes samples.
        ReplaceLayerError: a layer that mixes samples is in use.
    """
    with uncompiled(capture.compiled):
        _self_test(capture, model, utility)


def _self_test(capture: Capture, model: nn.Module, utility: Utility) -> None:
    axis = utility.rows_axis
    target, batch = max(utility.batches.items(), key=lambda item: row_count(item[1], axis) or 0)
    rows = row_count(batch, axis)
    if capture.sharded:
        counts = capture.processes.gathered(rows)
        rows = None if None in counts else min(counts)
    if rows is None or rows < 2:
        _warn_assumed("its tensors do not share an axis of two rows or more")
        _check_sums(capture, model, utility, target, batch, 1)
        return
    count = min(ROWS, rows)
    try:
        verdicts = _measure(capture, model, utility, target, batch, count)
        _check_sums(
            capture, model, utility, target, take_rows(batch, range(count), axis), count, verdicts
        )
    except InRunError:
        raise
    except Exception as error:  # loss_fn is the user's: it may not take fewer rows
        _warn_assumed(f"loss_fn failed on {count} rows of it ({type(error).__name__}: {error})")
        _check_sums(capture, model, utility, target, batch, 1)
        return
    capture.layouts.learn(verdicts)


def _warn_assumed(why: str) -> None:
    warnings.warn(
        f"The validation batch cannot be used to find each operation's sample axis: {why}. The "
        "axis is taken from shapes: axis 0, or 1 where only that fits. If the model puts samples "
        "elsewhere, values go to the wrong samples.",
        InRunWarning,
        stacklevel=4,
    )


def _measure(
    capture: Capture, model: nn.Module, utility: Utility, target: str, batch: object, count: int
) -> dict[Key, Verdict]:
    """Three runs, repeated while they find more outputs that are the same for all samples."""
    axis = utility.rows_axis
    other = differing_row(batch, count, axis)
    whole, exchanged = list(range(count)), [*range(count - 1), other]
    known: dict[Key, Verdict] = {}
    while True:
        record = _recorder(capture, model, utility, target, known)
        verdicts = judge(
            record(take_rows(batch, whole, axis)),
            record(take_rows(batch, exchanged, axis)),
            record(take_rows(batch, whole[:-1], axis)),
            count,
        )
        constants = {key for key, verdict in verdicts.items() if isinstance(verdict, Constant)}
        nothing_new = constants <= {key for key in known if isinstance(known[key], Constant)}
        if capture.sharded:  # a pass is every process's: they end together
            (nothing_new,) = capture.processes.all([nothing_new])
        if nothing_new:
            return {**known, **verdicts}
        known |= {key: verdicts[key] for key in constants}


def _recorder(
    capture: Capture,
    model: nn.Module,
    utility: Utility,
    target: str,
    known: dict[Key, Verdict],
) -> Callable[[object], Recorded]:
    def record(batch: object) -> Recorded:
        layouts = RecordingLayouts(known)
        with undisturbed(model), capture.mode(1, layouts):
            loss_of(utility, model, target, batch)
        return layouts.outputs

    return record


def _check_sums(
    capture: Capture,
    model: nn.Module,
    utility: Utility,
    target: str,
    batch: object,
    samples: int,
    verdicts: dict[Key, Verdict] | None = None,
) -> None:
    """The invariant for the gradient of the validation loss on these rows."""
    check = GradientCheck(capture.trained, processes=capture.processes if capture.sharded else None)
    parameters = list(capture.trained.values())
    with undisturbed(model):
        layouts = MeasuredLayouts(verdicts)
        mode = capture.mode(samples, layouts)

        def add(use: Use) -> None:
            for name, how, factor in use.factors():
                capture.coverage.saw(name, how)
                check.add(name, factor)
            use.pending.clear()

        if capture.sharded:  # weights, which a rule may need, are whole in the backward pass alone
            mode.when_complete = torch.no_grad()(add)
        with mode:
            loss = loss_of(utility, model, target, batch)
        gradients = gradients_of(loss, model, parameters)
        reached = [use for use in mode.uses if use.reached]
        for use in reached:
            if use.pending:
                add(use)
    low_precision = any(use.low_precision for use in reached)
    found: dict[str, Tensor | None] = dict(zip(capture.trained, gradients, strict=True))
    check.end_block(found, low_precision, mode.skipped)
    check.conclude()
    capture.coverage.unmeasured_axes |= layouts.assumed
