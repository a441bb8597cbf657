"""Before the first step: what enters the model beside its data, and whether shares sum up.

One pass over a few rows of the validation batch, on the side, in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from inrun.capture._block_setting import opaque_calls, uncompiled
from inrun.capture._capture import Capture
from inrun.capture._gradient_check import GradientCheck
from inrun.capture._uses import Use
from inrun.distributed import agreed
from inrun.operations import replace
from inrun.owners import ownership
from inrun.utility import (
    Utility,
    gradients_of,
    loss_of,
    row_count,
    take_rows,
    tensors_of,
    undisturbed,
)

ROWS = 3

Loss = Callable[[Any], Tensor]


def self_test(capture: Capture, model: nn.Module, utility: Utility, *, sums: bool = True) -> None:
    """Learns what enters a validation pass, and with `sums` checks the invariant on its gradient.

    Raises:
        InvariantError: shares do not sum to the gradient.
        ReplaceLayerError: a layer whose gradients cannot be divided is in use.
    """
    axis = utility.rows_axis
    target, whole = next(iter(utility.batches.items()))
    loss = partial(loss_of, utility, model, target)
    with uncompiled():
        batch = _few_rows(capture, model, loss, whole, axis)
        capture.inputs.lies(axis, _axes(capture, model, loss, whole, axis))
        mode = capture.mode(ownership(row_count(batch, axis) or 1))
        mode.owners.entered = []
        watched = capture.inputs.watched(mode.owners, learning=True)
        with undisturbed(model), watched, torch.no_grad(), opaque_calls(mode.opaque), mode:
            loss(batch)
        own = [*tensors_of(batch), *tensors_of(whole)]
        capture.inputs.learn(own, mode.owners.entered)
        if sums:
            _check_sums(capture, model, loss, batch)


def _few_rows(capture: Capture, model: nn.Module, loss: Loss, batch: Any, axis: int) -> Any:
    """A few rows of the batch, or all of it where loss_fn takes no fewer."""
    rows = row_count(batch, axis)
    counts = capture.called.gathered(rows)
    rows = None if None in counts else min(counts)
    if rows is None or rows <= ROWS:
        return batch
    few = take_rows(batch, range(ROWS), axis)

    def tried() -> object:
        with undisturbed(model), torch.no_grad():
            loss(few)
        return few

    try:
        return agreed(capture.called, tried)
    except Exception:  # loss_fn is the user's, and what is wrong with all rows shows with them
        return batch


def _axes(
    capture: Capture, model: nn.Module, loss: Loss, batch: Any, axis: int
) -> dict[tuple[int, bool], int]:
    """Where the batch lies, by number of axes and kind of numbers, where not all in one axis.

    Sequence-first models have it in the second axis of their data and in the first of their labels.
    One length that all tensors have says so if the loss agrees: of some rows it must be the mean,
    or the sum, of theirs.
    """
    tensors = tensors_of(batch)
    if len(tensors) < 2 or row_count(batch, axis) is not None:
        return {}
    common = set.intersection(*[set(t.shape) for t in tensors])
    if len(common) != 1 or (size := common.pop()) < ROWS:
        return {}
    places = {id(t): [i for i, n in enumerate(t.shape) if n == size] for t in tensors}
    if any(len(axes) != 1 for axes in places.values()):
        return {}

    def loss_on(rows: list[int]) -> float:
        index = torch.tensor(rows)

        def few(t: Tensor) -> Tensor:
            return t.index_select(places[id(t)][0], index.to(t.device)) if id(t) in places else t

        with undisturbed(model), torch.no_grad():
            return float(loss(replace(batch, few)))

    rows = range(ROWS)
    try:
        parts = [[*rows], *([row] for row in rows)]
        together, *each = agreed(capture.called, lambda: [loss_on(part) for part in parts])
    except Exception:  # loss_fn is the user's: rows do not lie there
        return {}
    total = sum(each)
    close = 1e-3 * sum(abs(x) for x in each)
    if min(abs(together - total), abs(together - total / ROWS)) > close:
        return {}
    return {(t.ndim, t.is_floating_point()): places[id(t)][0] for t in tensors}


def _check_sums(capture: Capture, model: nn.Module, loss: Loss, batch: Any) -> None:
    """The invariant for the gradient of the validation loss, all rows taken for one sample."""
    check = GradientCheck(capture.trained, processes=capture.called)
    parameters = list(capture.trained.values())
    with undisturbed(model):
        mode = capture.mode(ownership(1))
        mode.owners.entries.everything = True

        def add(use: Use) -> None:
            for name, how, factor in use.factors():
                capture.coverage.saw(name, how)
                check.sums.add(name, factor)
            use.pending.clear()

        if capture.sharded:  # weights, which a rule may need, are whole in the backward pass alone
            mode.when_complete = torch.no_grad()(add)
        with opaque_calls(mode.opaque), mode:
            value = loss(batch)
        capture.called.meet()  # the backward pass is a call to the others
        gradients = gradients_of(value, model, parameters)
        reached = [use for use in mode.uses if use.reached]
        for use in reached:
            if use.pending:
                add(use)
    capture.called.meet()  # and so is what compares
    low_precision = any(use.low_precision for use in reached)
    found: dict[str, Tensor | None] = dict(zip(capture.trained, gradients, strict=True))
    missed = mode.skipped
    check.exclude(missed)
    check.end_block(found, low_precision, missed)
    check.finish()
