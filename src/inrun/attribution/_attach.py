"""`inrun.attach`: checks what it was given, then builds the attribution."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from inrun.attribution._attribution import Attribution
from inrun.attribution._frequency import Ways
from inrun.attribution._options import CAPTURES, CONTRACTIONS, Options, require_settings
from inrun.attribution._scoring import EveryStep, Scoring
from inrun.capture import Offload
from inrun.directions import Direction
from inrun.distributed import (
    Processes,
    agreed,
    processes_of,
    require_sharded,
    unwrapped_model,
)
from inrun.errors import MisuseError, NotSupportedError
from inrun.factors import Contraction
from inrun.ledger import Extra, RunFolder
from inrun.momentum import Payouts, tensor_store_of
from inrun.optim import Together
from inrun.scoring import Scorer
from inrun.utility import Utility, require_divisible, weighed


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    utility: Utility,
    *,
    estimator: str | Direction = "path",
    store: str | os.PathLike[str] | None = None,
    resume: bool = False,
    scoring: Scoring | None = None,
    momentum_window: int = 0,
    options: Options | None = None,
) -> Attribution:
    """Scores every sample at every step of an ordinary training loop, from now to `detach()`.

    Training is not changed: weights come out bit for bit as without it.

    Args:
        model: the model that is trained, in plain PyTorch.
        optimizer: the one that holds the model's parameters, or several that step together: any of
            `torch.optim` that takes plain gradients, Lion, LAMB, schedule-free AdamW, or your own
            (`inrun.optim.register`). With several, a step is over when all have stepped, or when
            the next block begins.
        utility: the validation loss that contributions are measured in.
        estimator: 'path' (default), 'path-given', 'path-smoothed', 'sgd', 'sgd-second',
            'linearized' or 'tangent'; see `inrun.directions`. Or a `Direction` of one's own.
        store: a new folder for values, visits and books as Parquet; None keeps totals in memory.
        resume: the store may hold a run that is to go on, from the state that is given to
            `load_state_dict` before the first step, or from its start where none is. What the store
            holds beyond that is moved to its folder `discarded`.
        scoring: how much is looked at: `inrun.EveryStep()` (default), `inrun.Window(10)`, one
            direction per ten steps, the cheapest; `inrun.Sampled(4)`, one step in four; or
            `inrun.Budget(0.05)`, as many as 5 % of the training's time allow.
        momentum_window: for how many steps after its own a sample is also given what momentum does
            for it. Under Adam with b1 = 0.9 most of a gradient acts so; 20 steps pay out nearly all
            of it. The factors of as many steps are held, and for each a copy of the weights per
            target: `waiting` says how much that is and will be. `balance()` has what was paid, what
            is still in the momentum, and what came from before the window.
        options: `inrun.Options(...)`: what is kept where, exact or low rank, progress, processes.

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
    direction = require_settings(
        estimator=estimator, scoring=scoring, momentum_window=momentum_window, options=options,
    )  # fmt: skip
    scoring, options = scoring or EveryStep(), options or Options()
    if options.gradient_sizes and store is None:
        raise MisuseError(
            "gradient_sizes are kept beside each visit, and visits are in a store only: attach "
            "with store='some/folder'."
        )
    if scoring.validation_parts > 1 or scoring.validation_every > 1:
        utility = utility.split(scoring.validation_parts, scoring.validation_every)
    model, wrapping = unwrapped_model(model)
    optimizers = Together(optimizer)
    processes = processes_of(wrapping, options.process_group)
    _require_known(model, optimizers, direction, momentum_window, options, processes)
    kind = CAPTURES[options.capture]
    # streaming sees the opening rows alone, and keeps no shares to smooth
    halves = not kind.contracts_early and utility.can_split(2)
    smoothed = 0 if kind.contracts_early else options.smoothed_steps
    agreed(processes, partial(require_divisible, utility, model))
    utility = weighed(utility, model, processes)
    extra: Extra = "paid_out" if momentum_window else "standard_error" if scoring.sampled else None
    folder = _folder(store, direction, utility, processes, extra, options, resume=resume)
    contraction = _contraction(options.contraction)
    window = _payouts(momentum_window, contraction, utility, processes, options)
    scorer = Scorer(
        model, optimizers, utility, direction, smoothed, contraction, processes,
        sized=options.gradient_sizes,
    )  # fmt: skip
    fit = direction.name == "path" and options.capture == "hold"
    fit &= not momentum_window and not options.gradient_sizes
    windows = scoring.windows(scorer) if fit else None
    frequency = scoring.frequency(Ways(processes, halves, windows))
    attribution = Attribution(
        model, utility, scorer, window, folder, frequency, extra, options, windows,
        sampled=scoring.sampled,
    )  # fmt: skip
    if window is not None:
        window.adopt(None if folder is None else folder.run)  # once the store is locked
    return attribution


def _folder(
    store: str | os.PathLike[str] | None, direction: Direction, utility: Utility,
    processes: Processes, extra: Extra, options: Options, *, resume: bool,
) -> RunFolder | None:  # fmt: skip
    """Where the run is stored: the first process has it; where that fails all say so."""
    if store is None:
        return None
    return agreed(
        processes,
        lambda: None if processes.rank else RunFolder(
            store, estimator=direction.name, targets=utility.targets, weights=utility.weights,
            resume=resume, extra=extra, sized=options.gradient_sizes,
        ),
    )  # fmt: skip


def _payouts(
    steps: int, contraction: Contraction, utility: Utility, processes: Processes, options: Options
) -> Payouts | None:
    """What pays momentum out over a window of so many steps, by a contraction of its own."""
    if not steps:
        return None
    offloads = CAPTURES[options.capture] is Offload
    place = "cpu" if options.held_in is None and offloads else options.held_in
    paying, store = copy.deepcopy(contraction), tensor_store_of(place)
    return Payouts(steps, paying, len(utility.targets), store, processes)


def _require_known(
    model: nn.Module,
    optimizers: Together,
    direction: Direction,
    momentum_window: int,
    options: Options,
    processes: Processes,
) -> None:
    """Raises where the method or the options are not defined for this optimizer or this model."""
    if direction.needs_linearization and any(rule.linearized is None for rule in optimizers.rules):
        raise NotSupportedError(
            f"estimator {direction.name!r} is defined for Adam's update (arXiv 2602.00329), and "
            f"this is {optimizers.name}. Use estimator='path'."
        )
    if momentum_window and any(rule.momentum is None for rule in optimizers.rules):
        raise NotSupportedError(
            f"{optimizers.name} does not remember gradients linearly (momentum_window is for "
            "Adam, AdamW, Adamax, NAdam, RAdam and SGD). Use momentum_window=0; look-ahead pays "
            "out by replay."
        )
    rules = zip(optimizers.members, optimizers.rules, strict=True)
    mixing = (type(member).__name__ for member, rule in rules if not rule.elementwise)
    require_sharded(
        model, processes.size, optimizers.parameters(), mixing=next(mixing, None),
        differentiating=direction.name if direction.needs_curvature else None,
        streaming=options.capture == "stream",
    )  # fmt: skip
    for name, p in model.named_parameters():
        if p.is_complex():
            raise NotSupportedError(
                f"{name} is complex; shares are real here. Keep it as two real parameters."
            )


def _contraction(given: str | Contraction) -> Contraction:
    if isinstance(given, Contraction):
        return copy.deepcopy(given)  # it learns as it goes, and the given one may serve again
    return CONTRACTIONS[given]()
