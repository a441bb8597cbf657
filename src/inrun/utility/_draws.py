"""Validation losses that draw random numbers: whether one does, and its mean over fixed draws."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inrun.distributed import Processes, agreed
from inrun.utility._rows import row_count, take_rows
from inrun.utility._undisturbed import undisturbed
from inrun.utility._utility import Utility

SEED = 20_260_201  # of the first draw
ROUNDING = 1e-4  # of a loss: what kernels that add in another order may make


def drawn(utility: Utility, model: nn.Module, batch: Any) -> Any:
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

    A loss function that fails says so elsewhere.

    Args:
        utility: whose losses are called.
        model: that they judge.
        called: the processes that its passes are calls to.
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
