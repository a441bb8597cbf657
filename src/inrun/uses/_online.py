"""`inrun.select.online`: candidates in, the chosen ones trained on, in an ordinary loop."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from inrun.capture import Hold, self_test
from inrun.distributed import is_sharded
from inrun.errors import MisuseError, NotSupportedError, require_one_of
from inrun.optim import derivative_of, rule_for, trained_parameters
from inrun.replay import Rollout, Task
from inrun.uses._choosers import (
    Ahead,
    AtRandom,
    ByLoss,
    ByValue,
    Chooser,
    DrawnBatches,
    Look,
    NextState,
    Upcoming,
)
from inrun.uses._one_look import ByOneLook
from inrun.uses._online_selection import Loop, OnlineSelection
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
    rounds: int | None = 4,
    loop: Loop | None = None,
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
    read ahead of time: the steps in between are anticipated, on batches drawn from the rows that
    were chosen so far. What is drawn follows `torch.manual_seed`.

    Cost: one forward and backward pass over the candidates, contracting their shares with one
    direction `rounds` times, and for horizon 1 as many validation passes. Further ahead each
    anticipated step adds about five passes over `keep` rows; a roll-out has `horizon - 1` of them
    and serves a quarter of the horizon, at most four steps, with as many copies of parameters and
    moments in memory.

    Args:
        model: the model that is trained.
        optimizer: any of `torch.optim`; for horizons above 1 one of a smooth rule, since a step by
            signs cannot be looked through. For the same reason Adam's first ten steps look one step
            ahead only, through the mean slope of the update.
        utility: the validation loss; of several targets their weighted sum. With `utility.split(n)`
            each step looks at the next of them.
        keep: how many of a block's rows to train on, as an int, or what share of them, as a float
            below 1. Blocks that are no larger are trained on whole.
        by: 'value', or as a control 'random' or 'loss' (the largest losses first).
        horizon: at how many steps' distance the validation loss is read; None is the run's end.
        rounds: in how many parts the places are filled. After each the step is looked at anew, with
            those that were chosen in it. None fills them one by one after a single look: what the
            chosen do to the others' values is told from the candidates' gradients.
        loop: what the loop does besides: needed if it clips, if its loss is a sum, for horizons
            above 1, and for by='loss'.

    Raises:
        MisuseError: arguments that do not fit each other.
        NotSupportedError: several processes, or an optimizer without a rule or derivative.
        ReplaceLayerError: a layer makes rows depend on each other.
        InvariantError: shares do not sum to the gradient.
    """
    return anticipating(model, optimizer, utility, keep, by, horizon, rounds, loop or Loop())


def anticipating(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    utility: Utility,
    keep: int | float,
    by: str,
    horizon: int | None,
    rounds: int | None,
    loop: Loop,
    *,
    every: int | None = None,
    upcoming: Upcoming | None = None,
    seed: int | None = None,
) -> OnlineSelection:
    """`online`, with what comparisons need: how far one roll-out serves, and on which batches.

    `upcoming(n)` gives the ids of the n batches that come after the present one; `every` is how
    many steps one roll-out serves, of which the last looks `every - 1` steps less far.
    """
    _check(keep, by, horizon, rounds, every, loop)
    ahead = by == "value" and horizon != 1
    if (ahead or by == "loss") and (loop.losses is None or loop.fetch is None):
        needed = "horizons above 1" if ahead else "by='loss'"
        raise MisuseError(
            f"{needed} needs loop=inrun.select.Loop(losses=..., fetch=...), as inrun.record does: "
            "rows are gone through again without your loop."
        )
    parameters = _trained(model, optimizer)
    capture = Hold(model, parameters)
    self_test(capture, model, utility)
    seed = torch.initial_seed() if seed is None else seed
    drawn, task = DrawnBatches(seed), None
    if loop.losses is not None and loop.fetch is not None:
        task = Task(loop.losses, loop.fetch, loop.clip_norm)
    rollout: Rollout | None = None
    chooser: Chooser = AtRandom(seed)
    if by == "loss":
        assert task is not None
        chooser = ByLoss(model, task)
    elif by == "value":
        near = NextState(utility, model, parameters)
        reading: NextState | Ahead = near
        if horizon != 1:
            assert task is not None
            derivative_of(rule_for(optimizer))  # refuses one that has none
            rollout = Rollout(model, optimizer, task, utility)
            every = every or max(1, min(4, (horizon or loop.steps or 1) // 4))
            reading = Ahead(
                near, rollout, upcoming or drawn, horizon, every, loop.steps,
                moves=rounds is not None and rounds > 1,
            )  # fmt: skip
        look = Look(optimizer, parameters, reading, loop.clip_norm)
        chooser = ByOneLook(look) if rounds is None else ByValue(look, rounds)
    return OnlineSelection(
        model, optimizer, parameters, capture, chooser, keep, loop, drawn, rollout
    )


def _check(
    keep: int | float,
    by: str,
    horizon: int | None,
    rounds: int | None,
    every: int | None,
    loop: Loop,
) -> None:
    require_one_of("by", by, BY)
    share = isinstance(keep, float)
    if not (0 < keep < 1 if share else keep >= 1):
        raise MisuseError(
            f"keep is {keep}: pass a number of rows of each block, at least 1, or a share of them "
            "between 0 and 1."
        )
    if (rounds is not None and rounds < 1) or (every is not None and every < 1):
        raise MisuseError(f"rounds is {rounds} and every is {every}; both count from 1.")
    require_one_of("reduction", loop.reduction, ("mean", "sum"))
    endless = horizon is None and loop.steps is None
    if by == "value" and (endless or (horizon is not None and horizon < 1)):
        raise MisuseError(
            f"horizon is {horizon} and steps is {loop.steps}. A horizon counts steps, at least 1; "
            "to look to the run's end (None), Loop(steps=...) must say how many steps it will have."
        )


def _trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The parameters that the optimizer trains, by name."""
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
