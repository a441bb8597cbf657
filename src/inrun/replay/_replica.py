"""A copy of model and optimizer that steps are played on; the user's own are left alone.

Letters: B rows of a block.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inrun.errors import MisuseError
from inrun.optim import Move, Rule, moves, rule_for
from inrun.replay import _snapshot
from inrun.replay._folder import Block, Ids, Keeper, Step
from inrun.replay._snapshot import set_random_state, undisturbed_random
from inrun.utility import EachCall

Losses = Callable[[nn.Module, Any], Tensor]
Fetch = Callable[[Ids], Any]


class Task:
    """What a step computes: rows by id, one loss term per row, how the gradient is clipped.

    `losses(model, batch)` gives (B,) terms that add up to the training loss as it was written:
    for a mean over the block, each row's loss divided by B. `weights(batch)` gives the (B,) weights
    of a weighted mean (token counts, say); None where all rows weigh the same.
    """

    def __init__(
        self,
        losses: Losses,
        fetch: Fetch,
        clip_norm: float | None = None,
        weights: Callable[[Any], Tensor] | None = None,
    ):
        self.losses, self.fetch, self.clip_norm, self.weights = losses, fetch, clip_norm, weights

    def terms(self, model: nn.Module, ids: Ids) -> tuple[Tensor, Any]:
        """(B,) loss terms with a graph, and the batch."""
        batch = self.fetch(ids)
        terms = self.losses(model, batch)
        if not isinstance(terms, Tensor) or terms.shape != (len(ids),):
            found = tuple(terms.shape) if isinstance(terms, Tensor) else type(terms).__name__
            raise MisuseError(
                f"losses returned {found} for {len(ids)} rows. It must return one loss term per "
                f"row, shape ({len(ids)},), and they must add up to the training loss: "
                "cross_entropy(..., reduction='none') / len(batch) for a mean over the batch."
            )
        return terms, batch

    def shares_of_mean(self, batch: Any, rows: int) -> Tensor:
        """(B,) what part of the mean each row is; adds up to 1."""
        if self.weights is None:
            return torch.full((rows,), 1.0 / rows, dtype=torch.float64)
        weights = torch.as_tensor(self.weights(batch)).double().cpu()
        return weights / weights.sum()


class Replica:
    """Model and optimizer of its own, in whatever state it was put."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        task: Task,
        keeper: Keeper,
        modes: Sequence[tuple[str, ...]] = (),
    ):
        self.rule = rule_for(optimizer)
        _snapshot.names_of(model, optimizer)
        self.model, self.optimizer = copy.deepcopy((model, optimizer))
        self.task, self._keeper = task, keeper
        self.modes = list(modes)  # by number, which modules are in evaluation mode
        self.parameters = _snapshot.names_of(self.model, self.optimizer)
        self._modules = list(self.model.named_modules())
        self.double = all(p.dtype == torch.float64 for p in self.parameters.values())
        for p in self.parameters.values():
            p.grad = None

    def put(self, snapshot: Mapping[str, Tensor], *, lend: bool = False) -> None:
        """Into a recorded state; with `lend` only to look at it, not to step on."""
        _snapshot.place(snapshot, self.parameters, self.model, self.optimizer, lend=lend)

    def mode_of(self, model: nn.Module) -> int:
        """The number of the mode that a model is in now."""
        resting = tuple(name for name, module in model.named_modules() if not module.training)
        if resting not in self.modes:
            self.modes.append(resting)
        return self.modes.index(resting)

    def take(self) -> _snapshot.Snapshot:
        return _snapshot.take(self.parameters, self.model, self.optimizer)

    def set_groups(self, step: Step) -> None:
        """Gives the parameter groups the step's settings."""
        for group, settings in zip(self.optimizer.param_groups, step.groups, strict=True):
            group.update({k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})

    def begin_block(self, step: Step, block: Block, number: int) -> None:
        """Puts the modules in the block's mode, and random state where it drew numbers."""
        resting = set(self.modes[block.mode])
        for name, module in self._modules:
            module.training = name not in resting
        if block.random:
            states = self._keeper.random(step.number)
            prefix = f"{number}/"
            set_random_state(
                {key.removeprefix(prefix): s for key, s in states.items() if key.startswith(prefix)}
            )

    def backward(
        self, step: Step, without: Collection[object] = (), renormalise: bool = False
    ) -> float:
        """The step's gradient into `.grad`, as the loop's backward passes left it; its length.

        Samples in `without` are left out of every block they are in; with `renormalise` the loss is
        the mean over those that remain.
        """
        self.optimizer.zero_grad()
        with undisturbed_random(self.model), torch.enable_grad():
            for number, block in enumerate(step.blocks):
                self.begin_block(step, block, number)
                terms, batch = self.terms(block.ids)
                if any(i in without for i in block.ids):
                    terms = self._left(terms, batch, block, without, renormalise)
                if terms.requires_grad:
                    terms.sum().backward()
        return gradient_norm(self.parameters)

    def terms(self, ids: Ids) -> tuple[Tensor, Any]:
        """(B,) terms of this model, and the batch; sees whether it computes in less than double."""

        def call(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
            found = func(*args, **kwargs)
            if isinstance(found, Tensor) and found.is_floating_point() and found.requires_grad:
                self.double &= found.dtype == torch.float64
            return found

        with EachCall(call):
            return self.task.terms(self.model, ids)

    def _left(
        self,
        terms: Tensor,
        batch: Any,
        block: Block,
        without: Collection[object],
        renormalise: bool,
    ) -> Tensor:
        """Terms of those that stay; all rows are computed, so that random numbers stay in step."""
        stays = torch.tensor([i not in without for i in block.ids], device=terms.device)
        if not stays.any():
            return terms.detach()
        terms = terms[stays]
        if renormalise:
            shares = self.task.shares_of_mean(batch, len(block.ids))
            terms = terms / float(shares[stays.cpu()].sum())
        return terms

    def play(
        self, step: Step, without: Collection[object] = (), renormalise: bool = False
    ) -> float:
        """One recorded step, see `backward`; returns its gradient's length before clipping."""
        self.set_groups(step)
        norm = self.backward(step, without, renormalise)
        if self.task.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.task.clip_norm)
        self.optimizer.step()
        return norm


def gradient_norm(parameters: Mapping[str, Tensor]) -> float:
    """Length of the gradient over all parameters that have one."""
    return length(p.grad for p in parameters.values() if p.grad is not None)


def length(tensors: Iterable[Tensor]) -> float:
    """Of all tensors as one vector."""
    norms = [torch.linalg.vector_norm(t) for t in tensors]
    return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0


def moves_of(
    optimizer: torch.optim.Optimizer,
    rule: Rule[Any, Any],
    parameters: Mapping[str, Tensor],
    raw: Mapping[str, Tensor],
    clip: float,
) -> list[tuple[str, Move[Any, Any]]]:
    """What an optimizer is about to do by parameter; it leaves the clipped gradient in `.grad`."""
    for name, p in parameters.items():
        part = raw.get(name)
        p.grad = part if part is None or clip == 1.0 else clip * part
    names = {id(p): name for name, p in parameters.items()}
    return [(names[id(p)], move) for p, move in moves(optimizer, rule)]


def clipping(norm: float, limit: float | None) -> float:
    """What `clip_grad_norm_` multiplies a gradient of this length with."""
    return 1.0 if limit is None else min(1.0, limit / (norm + 1e-6))


def settings_of(group: dict[str, Any]) -> dict[str, Any]:
    """A group's numbers and switches, as JSON holds them."""
    settings = {}
    for key, value in group.items():
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if isinstance(value, (tuple, list)) and key != "params":
            value = [v.item() if isinstance(v, Tensor) else v for v in value]
        if key != "params" and isinstance(value, (bool, int, float, str, list, type(None))):
            settings[key] = value
    return settings


def states_for_blocks(states: Sequence[Mapping[str, Tensor] | None]) -> dict[str, Tensor]:
    """Random states of a step's blocks under names that one file can hold."""
    return {
        f"{number}/{device}": state
        for number, block in enumerate(states)
        for device, state in (block or {}).items()
    }
