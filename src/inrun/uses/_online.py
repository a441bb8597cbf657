"""`inrun.select.online`: candidates in, the chosen ones trained on, in an ordinary loop."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from inrun.capture import Hold, MeasuredLayouts, self_test
from inrun.errors import MisuseError, NotSupportedError
from inrun.optim import trained_parameters
from inrun.replay import (
    Fetch,
    Ids,
    Losses,
    Rollout,
    Task,
    drawn_since,
    gradient_norm,
    random_state,
    read_ids,
)
from inrun.uses._candidates import Candidates
from inrun.uses._choosers import AtRandom, ByLoss, ByValue, Chooser, Chosen
from inrun.uses._outlook import Ahead, NextState, Outlook, Seen, Upcoming, When
from inrun.utility import Utility

BY = ("value", "random", "loss")


def online(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    utility: Utility,
    keep: int | float,
    *,
    by: str = "value",
    horizon: int | None = 1,
    rounds: int = 4,
    every: int | None = None,
    losses: Losses | None = None,
    fetch: Fetch | None = None,
    upcoming: Upcoming | None = None,
    steps: int | None = None,
    clip_norm: float | None = None,
    reduction: str = "mean",
    seed: int = 0,
) -> OnlineSelection:
    """Trains on the best of each batch of candidates, from now to `detach()`.

        selection = inrun.select.online(model, optimizer, utility, keep=16)
        for ids in batches_of_64:
            with selection.batch(ids):
                loss_fn(model, fetch(ids)).backward()
            optimizer.step(); optimizer.zero_grad()

    When the block ends, `.grad` holds the gradient of training on the chosen alone, put together
    from shares that are at hand: there is no second backward pass. Clip and step as ever.

    A candidate's value is minus the derivative of the validation loss `horizon` steps later in the
    candidate's weight, the mean being taken over it too: positive is better than the average of the
    candidates. It is the value of `inrun.lookahead(run, utility, horizon)` but for a common factor,
    read ahead of time: the steps in between are anticipated ones.

    Cost: one forward and backward pass over the candidates, contracting their shares with one
    direction `rounds` times, and for horizon 1 as many validation passes. Further ahead each
    anticipated step adds about five passes over `keep` rows, a roll-out has `horizon - 1` of them,
    and one is made every `every` steps.

    Args:
        model: the model that is trained.
        optimizer: any of a smooth rule; one that steps by signs has no derivative.
        utility: the validation loss; of several targets their weighted sum.
        keep: how many of a block's rows to train on, as an int, or what share of them, as a float
            below 1. Blocks that are no larger are trained on whole.
        by: 'value', or as a control 'random' or 'loss' (the largest losses first).
        horizon: at how many steps' distance the validation loss is read; None is the run's end.
        rounds: in how many parts the places are filled. After each the step is looked at anew, with
            those that were chosen in it.
        every: for a horizon above 1, how many steps one roll-out serves; a quarter of the horizon
            where not given. The last of them looks `every - 1` steps less far. As many copies of
            parameters and moments are in memory.
        losses: `losses(model, batch)` gives (B,) terms that add up to the training loss, as for
            `inrun.record`. For horizons above 1 and by='loss'.
        fetch: `fetch(ids)` gives the batch of these rows. For the same.
        upcoming: `upcoming(n)` gives the ids of the n batches that come after the present one, if
            that is known; else batches of `keep` rows are drawn from all ids that came by so far.
        steps: how many optimizer steps the run will have, so that no look goes past its end.
        clip_norm: what the loop passes to `clip_grad_norm_`, if it clips.
        reduction: 'mean' where the training loss is a mean over the rows, so that the chosen ones'
            gradient is made their mean; 'sum' where it is a sum.
        seed: of what is drawn.

    Raises:
        MisuseError: arguments that do not fit each other.
        NotSupportedError: several processes, or an optimizer without a rule or derivative.
        ReplaceLayerError: a layer makes rows depend on each other.
        InvariantError: shares do not sum to the gradient.
    """
    _check(keep, rounds, every, reduction)
    needed = "horizons above 1" if horizon != 1 and by == "value" else "by='loss'"
    if (needed == "horizons above 1" or by == "loss") and (losses is None or fetch is None):
        raise MisuseError(
            f"{needed} needs losses=... and fetch=..., as inrun.record does: rows are gone through "
            "again without your loop."
        )
    parameters = _trained(model, optimizer)
    capture = Hold(model, parameters, MeasuredLayouts())
    self_test(capture, model, utility)
    seen = Seen(seed)
    task = None if losses is None or fetch is None else Task(losses, fetch, clip_norm)
    rollout, chooser = None, _control(by, model, task, seed)
    if chooser is None:
        outlook: Outlook = NextState(utility, model, parameters)
        if horizon != 1:
            assert task is not None
            rollout = Rollout(model, optimizer, task, utility)
            when = _when(horizon, every, steps)
            outlook = Ahead(outlook, rollout, upcoming or seen, when, moves=rounds > 1)
        chooser = ByValue(optimizer, parameters, outlook, clip_norm, rounds)
    return OnlineSelection(
        model, optimizer, parameters, capture, chooser, keep, reduction, seen, rollout, clip_norm
    )


def _control(by: str, model: nn.Module, task: Task | None, seed: int) -> Chooser | None:
    """The chooser that looks at no value; None for 'value'."""
    if by == "random":
        return AtRandom(seed)
    if by == "loss":
        assert task is not None
        return ByLoss(model, task)
    if by != "value":
        raise MisuseError(f"by {by!r} is not one of {', '.join(BY)}.")
    return None


def _when(horizon: int | None, every: int | None, steps: int | None) -> When:
    if (horizon is None and steps is None) or (horizon is not None and horizon < 1):
        raise MisuseError(
            f"horizon is {horizon} and steps is {steps}. A horizon counts steps, at least 1; to "
            "look to the run's end (None), steps=... must say how many steps it will have."
        )
    return When(horizon, every or max(1, (horizon or steps or 1) // 4), steps)


def _check(keep: int | float, rounds: int, every: int | None, reduction: str) -> None:
    share = isinstance(keep, float)
    if not (0 < keep < 1 if share else keep >= 1):
        raise MisuseError(
            f"keep is {keep}: pass a number of rows of each block, at least 1, or a share of them "
            "between 0 and 1."
        )
    if rounds < 1 or (every is not None and every < 1):
        raise MisuseError(f"rounds is {rounds} and every is {every}; both count from 1.")
    if reduction not in ("mean", "sum"):
        raise MisuseError(f"reduction {reduction!r} is not one of mean, sum.")


def _trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The parameters that the optimizer trains, by name.

    Raises:
        NotSupportedError: several processes share the gradient.
        MisuseError: the optimizer holds a parameter that the model does not, or none that trains.
    """
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise NotSupportedError(
            f"{type(model).__name__} averages gradients inside backward(), before anything can be "
            "chosen. Select in one process, or choose offline: inrun.select.offline."
        )
    held = {id(p) for p in trained_parameters(optimizer) if p.requires_grad}
    named: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if id(p) in held}
    if not named or len(named) != len(held):
        raise MisuseError(
            f"The optimizer trains {len(held)} parameters, of which the model has {len(named)}. "
            "Selection rebuilds the gradient of every one from the model's own operations: build "
            "the optimizer from model.parameters()."
        )
    return named


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
        reduction: str,
        seen: Seen,
        rollout: Rollout | None,
        clip_norm: float | None,
    ):
        self._model, self._parameters, self._capture = model, parameters, capture
        self._chooser, self._keep, self._reduction = chooser, keep, reduction
        self._seen, self._unchecked = seen, rollout
        self._clip_norm = clip_norm
        self._history: list[tuple[int, Ids, Chosen]] = []
        self._step, self._norm = 0, 0.0
        self._inside = self._blocks = False
        this = weakref.ref(self)  # dropping the selection takes its hooks off

        def before(*_: object) -> None:
            selection = this()
            if selection is not None:
                selection._before_step()

        def after(*_: object) -> None:
            selection = this()
            if selection is not None:
                selection._step += 1

        handles = [
            optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)
        ]  # fmt: skip
        self._release = weakref.finalize(self, lambda: [handle.remove() for handle in handles])

    @contextmanager
    def batch(self, ids: Iterable[Any], weights: Tensor | None = None) -> Iterator[None]:
        """One forward and backward pass over candidates inside; afterwards the chosen are trained.

        Several blocks before a step accumulate, and each chooses among its own rows.

        Args:
            ids: one id a row.
            weights: (B,) the rows' weights in the block's mean, where it is a weighted mean.

        Raises:
            MisuseError: ids that do not fit, nested blocks, no backward pass inside.
            NotSupportedError: a parameter's gradient cannot be told apart by rows.
            InvariantError: the rows' shares do not sum to the gradient.
        """
        if self._inside or not self._release.alive:
            what = "is inside a block already" if self._inside else "was detached"
            raise MisuseError(f"This selection {what}: no block can begin.")
        names, shares = read_ids(ids), None
        if self._reduction == "mean":
            shares = _shares_of_mean(len(names), weights)
        before = {n: p.grad for n, p in self._parameters.items() if p.grad is not None}
        random = random_state(self._model) if self._unchecked is not None else None
        for p in self._parameters.values():
            p.grad = None
        self._inside = True
        try:
            with self._capture.block(len(names)) as block:
                yield
            self._capture.end_block()
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
            self._capture.check.next_step()
            for name, p in self._parameters.items():
                p.grad = gradient.get(name)
        self._norm, self._blocks = gradient_norm(self._parameters), True

    def _choose(self, candidates: Candidates) -> dict[str, Tensor]:
        """Chooses, takes note, and returns the gradient of training on the chosen."""
        n = len(candidates)
        places = self._keep if isinstance(self._keep, int) else max(1, round(self._keep * n))
        self._seen.note(candidates.ids, min(places, n))
        chosen = Chosen(list(range(n)), torch.full((n,), torch.nan, dtype=torch.float64))
        with torch.no_grad():
            if places < n:
                chosen = self._chooser.choose(candidates, places, self._step)
            self._history.append((self._step, candidates.ids, chosen))
            return candidates.trained_on(chosen.rows)

    def _refuse_gaps(self) -> None:
        gaps = self._capture.check.gaps
        if gaps:
            raise NotSupportedError(
                f"The gradient of {gaps[0]} cannot be told apart by rows, so the chosen ones' "
                "cannot be put together. Freeze it, or use a loss without terms of parameters "
                "alone (weight_decay belongs to the optimizer)."
            )

    def _before_step(self) -> None:
        """Holds the gradient against what the block left: values expected nothing but clipping."""
        if not self._blocks:
            return
        self._blocks = False
        norm, limit = gradient_norm(self._parameters), self._clip_norm
        wanted = 1.0 if limit is None else min(1.0, limit / (self._norm + 1e-6))
        found = norm / self._norm if self._norm else 1.0
        if abs(found - wanted) > 1e-3 * max(found, wanted):
            raise MisuseError(
                f"The gradient's length was {self._norm:.6g} after the block and {norm:.6g} in "
                f"optimizer.step(), a factor of {found:.6g}; with clip_norm={limit} it should be "
                f"{wanted:.6g}. Tell online(clip_norm=...) what you pass to clip_grad_norm_; a "
                "gradient scaler, or any other change of the gradient, is not looked ahead through."
            )

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
        steps, ids, taken, scores = [], [], [], []
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
    """(B,) float64, adding up to 1.

    Raises:
        MisuseError: not a weight a row.
    """
    if weights is None:
        return torch.full((rows,), 1.0 / rows, dtype=torch.float64)
    found = torch.as_tensor(weights).detach().double().cpu().reshape(-1)
    if len(found) != rows or not (found >= 0).all() or found.sum() <= 0:
        raise MisuseError(
            f"weights must be one number of at least 0 for each of the {rows} rows, not all 0: the "
            f"weights in the block's mean. It has {len(found)}."
        )
    return found / found.sum()
