"""Calls of the loss function: checked, over fixed draws, in parts, of unequal parts.

Where a validation set is split over processes in unequal parts, the loss of the whole is put
together from the processes' losses by their mean, so that each is multiplied by W times its part of
what the loss is a mean over. Letters: W processes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inrun.distributed import Processes, agreed
from inrun.errors import MisuseError
from inrun.utility._rows import (
    counts_of,
    kinds_of,
    parts_of,
    row_count,
    take_rows,
    tensors_of,
)
from inrun.utility._undisturbed import undisturbed
from inrun.utility._utility import Utility

SEED = 20_260_201  # of the first draw
ROUNDING = 1e-4  # of a loss: what kernels that add in another order may make


def loss_of(utility: Utility, model: nn.Module, target: str, batch: Any) -> Tensor:
    """One target's loss; MisuseError where `loss_fn` returned no scalar tensor."""
    try:
        loss = _drawn(utility, model, batch)
    except RuntimeError as error:
        _explain_devices(model, batch, target, error)
        raise
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        if isinstance(batch, Mapping) and not any(isinstance(v, Tensor) for v in batch.values()):
            raise MisuseError(
                f"loss_fn failed on the validation batch, a dict of {', '.join(map(str, batch))} "
                f"({type(error).__name__}: {error}). A dict is one batch; where its keys are "
                "names of targets, give it as Utility(loss_fn, targets=...)."
            ) from error
        raise
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        raise MisuseError(
            f"loss_fn returned {found} for target {target!r}; it must return one number as a "
            "tensor, the loss that a value is measured in. Reduce it, for instance with .mean()."
        )
    return loss.reshape(())


def _explain_devices(model: nn.Module, batch: Any, target: str, error: RuntimeError) -> None:
    """Says it where loss_fn failed because the batch is not where the model is."""
    there = {str(p.device) for p in model.parameters()}
    here = {str(t.device) for t in tensors_of(batch)}
    if here and there and not here & there:
        raise MisuseError(
            f"loss_fn failed on target {target!r}, whose batch is on {', '.join(sorted(here))} "
            f"while the model is on {', '.join(sorted(there))}. Move the validation batch to the "
            "model's device, and build the optimizer after moving the model."
        ) from error


def _drawn(utility: Utility, model: nn.Module, batch: Any) -> Any:
    """The loss, or its mean over so many draws, which are the same at every call.

    To be called where torch's random state is put back by the caller.
    """
    if utility.draws == 1:
        return _called(utility, model, batch)
    losses: list[Any] = []
    with states_kept():
        for number in range(utility.draws):
            _seed(SEED + number)
            losses.append(_called(utility, model, batch))
    if not all(isinstance(loss, Tensor) and loss.numel() == 1 for loss in losses):
        return losses[0]  # whose form the caller complains of
    return torch.stack([loss.reshape(()) for loss in losses]).mean()


def _called(utility: Utility, model: nn.Module, batch: Any) -> Any:
    """The loss; of a pass for the loss alone without a graph, where `loss_fn` needs none inside.

    It needs one where it differentiates the model's outputs itself: forces, residuals of
    differential equations, gradient penalties.
    """
    if torch.is_grad_enabled():
        return utility.loss_fn(model, batch)
    if not utility.differentiates:
        state = torch.get_rng_state()
        try:
            return utility.loss_fn(model, batch)
        except RuntimeError as error:
            if "does not require grad" not in str(error):
                raise
        utility.differentiates = True
        torch.set_rng_state(state)
    with torch.enable_grad():
        loss = utility.loss_fn(model, batch)
    return loss.detach() if isinstance(loss, Tensor) else loss


def is_repeatable(utility: Utility, model: nn.Module, called: Processes) -> bool:
    """Whether two calls at the same weights, with other random numbers, give the same losses.

    A loss function that fails says so elsewhere. Passes are calls to the processes `called`.
    """

    def few(batch: Any) -> Any:
        """As many rows as may be passed at once: all where that was not said."""
        size, axis = utility.batch_size, utility.rows_axis
        if size is None or (row_count(batch, axis) or 0) <= size:
            return batch
        return take_rows(batch, range(size), axis)

    def call(seed: int) -> list[float]:
        with undisturbed(model), states_kept(), torch.no_grad():
            _seed(seed)
            losses = (_called(utility, model, few(b)) for b in utility.batches.values())
            return [float(loss) for loss in losses]

    try:
        first, second = agreed(called, lambda: (call(SEED), call(SEED + 1)))
    except Exception:
        return True
    pairs = zip(first, second, strict=True)
    return all(
        abs(a - b) <= ROUNDING * max(abs(a), abs(b)) or not math.isfinite(a - b) for a, b in pairs
    )


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@contextmanager
def states_kept() -> Iterator[None]:
    """Puts back the random states that `undisturbed` does not: numpy's and Python's."""
    of_numpy, of_python = np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        np.random.set_state(of_numpy)
        random.setstate(of_python)


def in_parts(
    utility: Utility, model: nn.Module, target: str, batch: Any
) -> Iterator[tuple[Any, float]]:
    """Parts of a batch, and what their losses are multiplied by; the whole where it fits."""
    size, axis, scale = utility.batch_size, utility.rows_axis, utility.scales.get(target, 1.0)
    if size is None or (row_count(batch, axis) or 0) <= size:
        yield batch, scale
        return
    kinds = loss_kinds(utility, model, target, batch)
    if not kinds:
        raise MisuseError(
            f"The loss of target {target!r} on a few rows is not that of two parts of them put "
            "together, neither as a sum nor as a mean over rows or labels, so passing it in parts "
            "(batch_size) would give another loss. Make loss_fn a mean or a sum over rows, without "
            "random numbers, or give a batch that fits at once."
        )
    for part, share in parts_of(batch, size, axis, kinds[0]):
        yield part, share * scale


def loss_kinds(utility: Utility, model: nn.Module, target: str, batch: Any) -> list[str]:
    """What a target's loss may be, see `kinds_of`; found out once, by a few rows."""
    if target not in utility.kinds:
        with undisturbed(model):
            utility.kinds[target] = kinds_of(
                lambda part: loss_of(utility, model, target, part), batch,
                utility.rows_axis, utility.batch_size,
            )  # fmt: skip
    return utility.kinds[target]


def require_divisible(utility: Utility, model: nn.Module) -> None:
    """Raises MisuseError where a target's loss is to be passed in parts, and cannot."""
    for target, batch in utility.batches.items():
        next(in_parts(utility, model, target, batch))


def weighed(utility: Utility, model: nn.Module, processes: Processes) -> Utility:
    """The utility of this process, whose mean over processes is that of all rows.

    Called by all processes. Where they have as many rows each, it is the one that was given.

    Raises:
        MisuseError: unequal parts whose losses cannot be put together; said in every process.
    """
    if processes.size == 1:
        return utility
    axis = utility.rows_axis
    own = [row_count(batch, axis) for batch in utility.batches.values()]
    everyones = processes.gathered(own)
    if all(rows == everyones[0] for rows in everyones):
        return utility
    told = any(None in rows for rows in everyones)

    def counted() -> list[dict[str, float | None]]:
        found = []
        for target, batch in utility.batches.items() if not told else ():
            by_name = counts_of(batch, axis)
            kinds = loss_kinds(utility, model, target, batch)
            found.append({k: by_name[k](batch) if k in by_name else None for k in kinds})
        return found

    scales = {}
    everyones_counts = processes.gathered(agreed(processes, counted))
    for number, target in enumerate(utility.targets):
        found = [] if told else [part[number] for part in everyones_counts]
        common = [kind for kind in (found[0] if found else ()) if all(kind in f for f in found)]
        if not common:
            raise MisuseError(
                f"The processes have {[rows[number] for rows in everyones]} validation rows of "
                f"target {target!r}, and the loss on a few of them is neither a sum nor a mean "
                "over rows or labels, so that the loss of all rows is not known from theirs. Give "
                "each process the same number of rows, or all rows to each."
            )
        sizes = [part[common[0]] for part in found]
        if None not in sizes:
            scales[target] = processes.size * sizes[processes.rank] / sum(sizes)
    return utility.scaled(scales)
