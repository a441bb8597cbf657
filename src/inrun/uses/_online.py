"""`inrun.select.online`: candidates in, the chosen ones trained on, in an ordinary loop."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from inrun.capture import Hold, self_test
from inrun.distributed import is_sharded
from inrun.errors import MisuseError, NotSupportedError
from inrun.optim import derivative_of, rule_for, trained_parameters
from inrun.replay import Fetch, Losses, Rollout, Task
from inrun.uses._choosers import AtRandom, ByLoss, ByValue, Chooser
from inrun.uses._online_selection import OnlineSelection
from inrun.uses._outlook import Ahead, Drawn, NextState, Outlook, Upcoming, When
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
        optimizer: any of `torch.optim`; for horizons above 1 one of a smooth rule, since a step by
            signs cannot be looked through. For the same reason Adam's first ten steps look one step
            ahead only, through the mean slope of the update.
        utility: the validation loss; of several targets their weighted sum. With `utility.dealt(n)`
            each step looks at the next of them.
        keep: how many of a block's rows to train on, as an int, or what share of them, as a float
            below 1. Blocks that are no larger are trained on whole.
        by: 'value', or as a control 'random' or 'loss' (the largest losses first).
        horizon: at how many steps' distance the validation loss is read; None is the run's end.
        rounds: in how many parts the places are filled. After each the step is looked at anew, with
            those that were chosen in it.
        every: for a horizon above 1, how many steps one roll-out serves; where not given a quarter
            of the horizon, at most 4. The last of them looks `every - 1` steps less far, from where
            the roll-out was, which training left meanwhile. So many copies of parameters and
            moments are in memory.
        losses: `losses(model, batch)` gives (B,) terms that add up to the training loss, as for
            `inrun.record`. For horizons above 1 and by='loss'.
        fetch: `fetch(ids)` gives the batch of these rows. For the same.
        upcoming: `upcoming(n)` gives the ids of the n batches that come after the present one, if
            that is known; else batches are drawn from the rows that were chosen so far.
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
    capture = Hold(model, parameters)
    self_test(capture, model, utility)
    drawn = Drawn(seed)
    task = None if losses is None or fetch is None else Task(losses, fetch, clip_norm)
    rollout, chooser = None, _control(by, model, task, seed)
    if chooser is None:
        outlook: Outlook = NextState(utility, model, parameters)
        if horizon != 1:
            assert task is not None
            derivative_of(rule_for(optimizer))  # refuses one that has none
            rollout = Rollout(model, optimizer, task, utility)
            when = _when(horizon, every, steps)
            outlook = Ahead(outlook, rollout, upcoming or drawn, when, moves=rounds > 1)
        chooser = ByValue(optimizer, parameters, outlook, clip_norm, rounds)
    return OnlineSelection(
        model, optimizer, parameters, capture, chooser, keep, reduction, drawn, rollout, clip_norm
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
    return When(horizon, every or max(1, min(4, (horizon or steps or 1) // 4)), steps)


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
    if any(is_sharded(p) for p in model.parameters()):
        raise NotSupportedError(
            "The model's parameters are sharded: the chosen ones' gradient is put together in one "
            "process only. Choose offline (inrun.select.offline), or train unsharded with LoRA."
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
