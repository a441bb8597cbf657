"""A training that goes on the chosen rows of each block: what `inrun.select.online` returns."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from inrun.capture import Hold
from inrun.errors import MisuseError, NotSupportedError
from inrun.optim import StepHooks
from inrun.owners import IdReader
from inrun.replay import (
    Fetch,
    Ids,
    Losses,
    Rollout,
    drawn_since,
    gradient_norm,
    random_state,
    unexpected,
)
from inrun.uses._candidates import Candidates
from inrun.uses._choosers import Chooser, Chosen, DrawnBatches


class Loop(NamedTuple):
    """What selection must know of the training loop, beyond what its blocks show.

    Attributes:
        losses: `losses(model, batch)` gives (B,) terms that add up to the training loss, as for
            `inrun.record`. For horizons above 1 and by='loss'.
        fetch: `fetch(ids)` gives the batch of these rows. For the same.
        clip_norm: what the loop passes to `clip_grad_norm_`, if it clips.
        reduction: 'mean' where the training loss is a mean over the rows, so that the chosen ones'
            gradient is made their mean; 'sum' where it is a sum.
        steps: how many optimizer steps the run will have, so that no look goes past its end.
    """

    losses: Losses | None = None
    fetch: Fetch | None = None
    clip_norm: float | None = None
    reduction: str = "mean"
    steps: int | None = None


class OnlineSelection:
    """What `inrun.select.online` returns; see there."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        parameters: dict[str, Tensor],
        capture: Hold,
        chooser: Chooser,
        keep: int | float,
        loop: Loop,
        drawn: DrawnBatches,
        rollout: Rollout | None,
    ):
        self._model, self._parameters, self._capture = model, parameters, capture
        self._chooser, self._keep, self._loop = chooser, keep, loop
        self._drawn, self._unchecked = drawn, rollout
        self._history: list[tuple[int, Ids, Chosen]] = []
        self._step, self._norm = 0, 0.0
        self._inside = self._blocks = False
        self._ids = IdReader()
        hooks = StepHooks(self, [optimizer])  # dropping the selection takes them off
        self._release = weakref.finalize(self, hooks.remove)

    @contextmanager
    def batch(self, ids: Iterable[Any], weights: Tensor | None = None) -> Iterator[None]:
        """One forward and backward pass over candidates inside; afterwards the chosen are trained.

        Several blocks before a step accumulate, and each chooses among its own rows.

        Args:
            ids: one id per row.
            weights: (B,) the rows' weights in the block's mean, where it is a weighted mean.

        Raises:
            MisuseError: ids that do not fit, nested blocks, no backward pass inside.
            NotSupportedError: a parameter's gradient cannot be told apart by rows.
            InvariantError: the rows' shares do not sum to the gradient.
        """
        if self._inside or not self._release.alive:
            what = "is inside a block already" if self._inside else "was detached"
            raise MisuseError(f"This selection {what}: no block can begin.")
        names, shares = self._ids.read(ids), None
        if self._loop.reduction == "mean":
            shares = _shares_of_mean(len(names), weights)
        before = {n: p.grad for n, p in self._parameters.items() if p.grad is not None}
        random = random_state(self._model) if self._unchecked is not None else None
        for p in self._parameters.values():
            p.grad = None
        self._inside = True
        try:
            with self._capture.block(len(names)) as block:
                yield
            self._capture.finish()
            self._refuse_gaps()
            total = {n: p.grad for n, p in self._parameters.items() if p.grad is not None}
            if self._unchecked is not None:
                drew = random is not None and drawn_since(random, self._model)
                self._unchecked.check(names, random if drew else None)
                self._unchecked = None
            found = Candidates(names, block, self._parameters, total, before, shares)
            gradient = self._choose(found)
        except BaseException:
            gradient = before
            raise
        finally:
            self._inside = False
            self._capture.next_step()
            self._capture.step_over()
            for name, p in self._parameters.items():
                p.grad = gradient.get(name)
        self._norm, self._blocks = gradient_norm(self._parameters), True

    def _choose(self, candidates: Candidates) -> dict[str, Tensor]:
        """Chooses, takes note, and returns the gradient of training on the chosen."""
        n = len(candidates)
        places = self._keep if isinstance(self._keep, int) else max(1, round(self._keep * n))
        self._drawn.offer(candidates.ids, min(places, n))
        chosen = Chosen(list(range(n)), torch.full((n,), torch.nan, dtype=torch.float64))
        with torch.no_grad():
            if places < n:
                chosen = self._chooser.choose(candidates, places, self._step)
            self._history.append((self._step, candidates.ids, chosen))
            self._drawn.note(self.chosen)
            return candidates.trained_on(chosen.rows)

    def _refuse_gaps(self) -> None:
        gaps = self._capture.check.gaps
        if gaps:
            raise NotSupportedError(
                f"The gradient of {gaps[0]} cannot be told apart by rows, so the chosen ones' "
                "cannot be put together. Freeze it, or use a loss without terms of parameters "
                "alone (weight_decay belongs to the optimizer)."
            )

    def _before_step(self, k: int, args: Any, kwargs: Any) -> None:
        """Holds the gradient against what the block left: values expected nothing but clipping."""
        if not self._blocks:
            return
        self._blocks = False
        wrong = unexpected(self._norm, gradient_norm(self._parameters), self._loop.clip_norm)
        if wrong is not None:
            raise MisuseError(
                f"Before this step, {wrong} Tell online(loop=Loop(clip_norm=...)) what you pass to "
                "clip_grad_norm_; a gradient scaler, or any other change of the gradient, is not "
                "looked ahead through."
            )

    def _after_step(self, k: int) -> None:
        self._step += 1

    @property
    def chosen(self) -> Ids:
        """Ids that the last block trained on.

        Raises:
            MisuseError: there was no block yet.
        """
        if not self._history:
            raise MisuseError("Nothing was chosen yet: run a block first.")
        _, ids, chosen = self._history[-1]
        return [ids[row] for row in chosen.rows]  # type: ignore[return-value]  # of one kind

    def history(self) -> pa.Table:
        """Every candidate of every block, in their order.

        Returns:
            `step` from 1, `sample_id`, `chosen`, and `score`: the value in units of the validation
            loss (positive: better than the block's average), the loss where that chose, null where
            nothing was computed.
        """
        steps: list[int] = []
        ids: list[int | str] = []
        taken, scores = [], []
        for step, names, chosen in self._history:
            rows = np.zeros(len(names), dtype=bool)
            rows[chosen.rows] = True
            steps += [step + 1] * len(names)
            ids += names
            taken.append(rows)
            scores.append(chosen.scores.numpy())
        score = np.concatenate(scores) if scores else np.zeros(0)
        return pa.table(
            {
                "step": pa.array(steps, pa.int64()),
                "sample_id": pa.array(ids),
                "chosen": np.concatenate(taken) if taken else np.zeros(0, dtype=bool),
                "score": pa.array(score, mask=np.isnan(score)),
            }
        )

    def detach(self) -> None:
        """Takes its eyes off the optimizer; the history stays."""
        self._release()

    def __enter__(self) -> OnlineSelection:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()


def _shares_of_mean(rows: int, weights: Tensor | None) -> Tensor:
    """(B,) float64, adding up to 1."""
    if weights is None:
        return torch.full((rows,), 1.0 / rows, dtype=torch.float64)
    found = torch.as_tensor(weights).detach().double().cpu().reshape(-1)
    if len(found) != rows or not (found >= 0).all() or found.sum() <= 0:
        raise MisuseError(
            f"weights must be one number of at least 0 for each of the {rows} rows, not all 0: the "
            f"weights in the block's mean. It has {len(found)}."
        )
    return found / found.sum()
