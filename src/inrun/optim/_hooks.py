"""Hooks on optimizers' steps, for whoever reads a step before it is taken and goes on after it.

A step with a closure has it run before the step, so that its gradients can be read before it:
optimizers that take one gradient a step call their closure first of all; run a moment earlier it
does the same, and the step is then given its result. Lightning trains like this.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from inrun.errors import MisuseError

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Stepped(Protocol):
    """Whoever is told of steps."""

    def _before_step(self, k: int, args: Any, kwargs: Any) -> Arguments | None:
        """The k-th optimizer is about to step; what its step is to be called with, if changed."""

    def _after_step(self, k: int) -> None:
        """The k-th optimizer has stepped."""


class StepHooks:
    """Hooks that hold whoever is told weakly: dropping it takes nothing but a call for nothing.

    `stranger` is how the one told is told of steps of any other optimizer there is: nothing else
    sees a fused one move weights.
    """

    def __init__(
        self,
        told: Stepped,
        optimizers: Sequence[torch.optim.Optimizer],
        stranger: Callable[[Any, torch.optim.Optimizer], None] | None = None,
    ):
        this, running = weakref.ref(told), [False]
        self._running = running  # whether hooks are being called, whose order is fixed then

        def before(k: int, _: object, args: Any, kwargs: Any) -> Arguments | None:
            one = this()
            if one is None:
                return None
            asked, running[0] = running[0], True
            try:
                return one._before_step(k, args, kwargs)
            finally:
                running[0] = asked

        def after(k: int, _: object, args: Any, kwargs: Any) -> None:
            one = this()
            if one is not None:
                one._after_step(k)

        self._handles = [
            handle
            for k, optimizer in enumerate(optimizers)
            for handle in (
                optimizer.register_step_pre_hook(partial(before, k)),
                optimizer.register_step_post_hook(partial(after, k)),
            )
        ]
        self._this, self._stranger = this, stranger
        self._attached = weakref.WeakSet(optimizers)
        if stranger is not None:
            if not _everywhere:
                _everywhere.append(register_optimizer_step_post_hook(_tell))
            _listening.add(self)

    def elsewhere(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer has stepped, one of these or another."""
        one, stranger = self._this(), self._stranger
        if one is None or stranger is None or optimizer in self._attached:
            return
        groups = {id(group) for member in self._attached for group in member.param_groups}
        if not groups & {id(group) for group in optimizer.param_groups}:  # else a wrapper
            stranger(one, optimizer)

    def require_in_place(self) -> None:
        """Raises where hooks are gone."""
        if any(handle.id not in (handle.hooks_dict_ref() or ()) for handle in self._handles):
            raise MisuseError(
                "The attribution's hooks were taken off the optimizer by somebody else, so its "
                "steps are not seen any more. What was scored stays; detach() and attach again."
            )
        for handle in self._handles if not self._running[0] else ():
            hooks = handle.hooks_dict_ref()  # the last to look: the user's may change gradients
            if hooks is not None and next(reversed(hooks)) != handle.id:
                hooks.move_to_end(handle.id)

    def remove(self) -> None:
        """Takes them off."""
        self._stranger = None
        for handle in self._handles:
            handle.remove()


_listening: weakref.WeakSet[StepHooks] = weakref.WeakSet()
_everywhere: list[Any] = []
"""One hook on all optimizers, for good: it cannot be taken off while PyTorch goes through them, and
the garbage collector may let an attribution go just then."""


def _tell(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for hooks in list(_listening):
        hooks.elsewhere(optimizer)


def with_closure_run(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Arguments | None:
    """The arguments of `step` with the closure's result in its place; None where there is none."""
    if not any(callable(a) for a in [*args, *kwargs.values()]):
        return None
    return (
        tuple(_run(a) if callable(a) else a for a in args),
        {name: _run(a) if callable(a) else a for name, a in kwargs.items()},
    )


def gave_nothing(arguments: Arguments | None) -> bool:
    """Whether a closure was run and returned no loss: Lightning's does so for a skipped batch."""
    args, kwargs = arguments or ((), {})
    return any(isinstance(a, _Result) and a.nothing for a in [*args, *kwargs.values()])


def _run(closure: Callable[[], Any]) -> _Result:
    with torch.enable_grad():
        return _Result(closure())


class _Result:
    """Stands in for a closure that was run; gives its result once."""

    def __init__(self, result: Any):
        self._results, self.nothing = [result], result is None

    def __call__(self) -> Any:
        if not self._results:
            raise MisuseError(
                "The optimizer called its closure a second time in one step. A step that is scored "
                "has one gradient. Call the closure's passes yourself, or attach to an optimizer "
                "that takes one gradient a step."
            )
        return self._results.pop()
