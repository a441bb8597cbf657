"""`inrun.attach`: checks what it was given, then builds the attribution."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from inrun.attribution._attribution import Attribution
from inrun.attribution._distributed import demand_sharded, processes_of, unwrapped_model
from inrun.attribution._frequency import frequency_of
from inrun.attribution._payout import Payouts
from inrun.attribution._scorer import Scorer
from inrun.attribution._settings import CAPTURES, demand_settings
from inrun.attribution._shelf import shelf_of
from inrun.attribution._unequal import weighed
from inrun.capture import Offload, Stream
from inrun.directions import Direction
from inrun.errors import MisuseError, NotSupportedError
from inrun.factors import Contraction, DenseContraction, LowRankContraction
from inrun.ledger import Extra, RunFolder
from inrun.optim import Together
from inrun.utility import Utility, demand_divisible

_CONTRACTIONS: dict[str, type[DenseContraction] | type[LowRankContraction]] = {
    "auto": LowRankContraction,
    "dense": DenseContraction,
}


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    utility: Utility,
    *,
    estimator: str | Direction = "path",
    capture: str = "hold",
    store: str | os.PathLike[str] | None = None,
    resume: bool = False,
    contraction: str | Contraction = "auto",
    smoothed_steps: int = 10,
    every: int | float = 1,
    max_overhead: float | None = None,
    payout: int = 0,
    payout_to: str | os.PathLike[str] | None = None,
    progress: bool = True,
    self_test: bool = True,
    process_group: Any = "auto",
) -> Attribution:
    """Scores every sample at every step of an ordinary training loop, from now to `detach()`.

    Training is not changed: weights come out bit for bit as without it.

    Args:
        model: the model that is trained, in plain PyTorch.
        optimizer: the one that holds the model's parameters, or several that step together: any of
            `torch.optim` that takes plain gradients, Lion, LAMB, schedule-free AdamW, or your own
            (`inrun.optim.register`). With several, a step is over when all have stepped, or when
            the next block begins.
        utility: the validation loss that contributions are measured in; `Utility.next_batch()`
            takes the next training batch's instead.
        estimator: 'path' (default), 'path-given', 'path-smoothed', 'sgd', 'sgd-second',
            'linearized' or 'tangent'; see `inrun.directions`. Or a `Direction` of one's own.
        capture: 'hold' keeps every layer's input and output gradient until the step is over and is
            exact; 'offload' does the same and keeps them on the CPU; 'stream' contracts inside the
            backward pass and keeps nothing, see `inrun.capture`.
        store: a new folder for values, visits and books as Parquet; None keeps totals in memory.
        resume: the store may hold a run that is to go on, from the state that is given to
            `load_state_dict` before the first step, or from its start where none is. What the store
            holds beyond that is moved to its folder `discarded`.
        contraction: 'auto' meets large matrices' directions through a low rank, to a relative error
            of 1 % of the values, which it measures; 'dense' is exact; or a contraction of
            `inrun.factors`, as `LowRankContraction(rank=32)`. `coverage()` says what is used.
        smoothed_steps: for 'path' with 'hold', steps are scored by 'path-smoothed' where the size
            that divides them is made of fewer gradients than this, so that the optimizer acts like
            a sign, and as long as that is cheap: Adam's first ones, every step of Adam where
            1 / (1 - b2) is no more than this, of Lion, Rprop and Muon. 0 never smooths. The ledger
            says for each step which was used.
        every: score one random step of each `every`, or, below 1, each step with this probability.
            Scored steps stand for the others: values are multiplied so that totals stay unbiased,
            and `values()` has their `standard_error`. The other steps cost nothing.
        max_overhead: the share of the training's time that scoring may add, 0.05 for 5 %: `every`
            is then found by timing both kinds of step, and adapted; before steps are left out,
            each validation pass looks at half of the rows, as with `rotating=2`. `sampling` says
            what came of it.
        payout: for how many steps after its own a sample is also given what momentum does for it.
            Under Adam with b1 = 0.9 most of a gradient acts so; 20 steps pay out nearly all of it.
            The factors of as many steps are held, and for each a copy of the weights a target:
            `waiting` says how much that is and will be. `balance()` has what was paid, what is
            still in the momentum, and what came from before the window.
        payout_to: where they are held: 'cpu', or a folder on a disk with room, which is left empty
            again; else where `capture` keeps factors ('offload': on the CPU). Values are the same.
        progress: show a line with loss, residual and overhead where there is a terminal.
        self_test: check on a few validation rows that shares sum to the gradient.
        process_group: of the processes whose gradients are averaged: 'auto' is that of a
            DistributedDataParallel model, or else the default group where one is running (which a
            model under `fully_shard` must be spread over); None is this process alone.

    Raises:
        MisuseError: arguments that do not fit each other.
        NotSupportedError: an optimizer without a rule, complex parameters, tensor parallelism.
        ReplaceLayerError: a layer that changes its own weights in the forward pass.
        InvariantError: the self-test failed.
        StoreError: the store holds a run already or cannot be written.

    Example:
        >>> import torch, inrun
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Linear(3, 2)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> x, y = torch.randn(16, 3), torch.randint(2, (16,))
        >>> utility = inrun.Utility(
        ...     lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        ...     (x[8:], y[8:]),
        ... )
        >>> attribution = inrun.attach(model, optimizer, utility)
        >>> for ids in ([0, 1, 2, 3], [4, 5, 6, 7]):
        ...     with attribution.batch(ids):
        ...         nn.functional.cross_entropy(model(x[ids]), y[ids]).backward()
        ...     optimizer.step(); optimizer.zero_grad()
        >>> attribution.values()["sample_id"].to_pylist()
        [0, 1, 2, 3, 4, 5, 6, 7]
        >>> attribution.detach()
    """
    if not isinstance(utility, Utility):
        raise MisuseError("utility must be an inrun.Utility(loss_fn, validation_batch).")
    direction = demand_settings(
        estimator=estimator, capture=capture, every=every, max_overhead=max_overhead,
        payout=payout, payout_to=payout_to, next_batch=utility.follows,
    )  # fmt: skip
    optimizers = Together(optimizer)
    if direction.needs_linearization and any(rule.linearized is None for rule in optimizers.rules):
        raise NotSupportedError(
            f"estimator {direction.name!r} is defined for Adam's update (arXiv 2602.00329), and "
            f"this is {optimizers.name}. Use estimator='path'."
        )
    model, wrapping = unwrapped_model(model)
    processes = processes_of(wrapping, process_group)
    demand_sharded(model, processes, optimizers, direction, capture)
    halves = capture != "stream" and utility.deals(2)  # streaming sees the opening rows alone
    frequency = frequency_of(every, max_overhead, processes, halves)
    met = _contraction(contraction)
    if payout and any(rule.momentum is None for rule in optimizers.rules):
        raise NotSupportedError(
            f"{optimizers.name} does not remember gradients linearly (payout is for Adam, AdamW, "
            "Adamax, NAdam, RAdam and SGD). Use payout=0; look-ahead pays out by replay."
        )
    extra: Extra = "paid_out" if payout else "standard_error" if frequency.sampled else None
    _refuse_model(model)
    demand_divisible(utility, model)
    utility = weighed(utility, model, processes)
    folder = None
    if store is not None and processes.rank == 0:
        folder = RunFolder(
            store,
            estimator=direction.name,
            targets=utility.targets,
            weights=utility.weights,
            resume=resume,
            extra=extra,
        )
    kind = CAPTURES[capture]
    smoothed = 0 if kind is Stream else smoothed_steps  # streaming keeps no shares to smooth
    payouts = None
    place = "cpu" if payout_to is None and kind is Offload else payout_to
    shelf = shelf_of(place)
    if payout:
        payouts = Payouts(payout, copy.deepcopy(met), len(utility.targets), shelf, processes)
    scorer = Scorer(model, optimizers, utility, direction, smoothed, met, processes, payouts)
    attribution = Attribution(
        model, optimizers, utility, scorer, kind, folder, frequency, extra, progress, self_test
    )
    shelf.adopt(None if folder is None else folder.run)  # once the store is locked
    return attribution


def _contraction(given: str | Contraction) -> Contraction:
    if isinstance(given, Contraction):
        return copy.deepcopy(given)  # it learns as it goes, and the given one may serve again
    if given not in _CONTRACTIONS:
        raise MisuseError(
            f"contraction {given!r} is not one of {', '.join(_CONTRACTIONS)}, nor an "
            "inrun.factors.Contraction such as LowRankContraction(rank=32)."
        )
    return _CONTRACTIONS[given]()


def _refuse_model(model: nn.Module) -> None:
    for name, p in model.named_parameters():
        if p.is_complex():
            raise NotSupportedError(
                f"{name} is complex; shares are real here. Keep it as two real parameters."
            )
