"""The attribution's hooks on the optimizers' steps, and taking them off again."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch

from inrun.attribution._closures import Arguments
from inrun.attribution._live import LiveLine
from inrun.attribution._record import Record
from inrun.errors import MisuseError
from inrun.ledger import RunFolder


class Stepped(Protocol):
    """Whoever is told of steps."""

    def _before_step(self, k: int, args: Any, kwargs: Any) -> Arguments | None: ...

    def _after_step(self, k: int) -> None: ...


class StepHooks:
    """Hooks that hold the attribution weakly: dropping it detaches it."""

    def __init__(self, told: Stepped, optimizers: Sequence[torch.optim.Optimizer]):
        this = weakref.ref(told)

        def before(k: int, _: object, args: Any, kwargs: Any) -> Arguments | None:
            attribution = this()
            return None if attribution is None else attribution._before_step(k, args, kwargs)

        def after(k: int, _: object, args: Any, kwargs: Any) -> None:
            attribution = this()
            if attribution is not None:
                attribution._after_step(k)

        self._handles = [
            handle
            for k, optimizer in enumerate(optimizers)
            for handle in (
                optimizer.register_step_pre_hook(partial(before, k)),
                optimizer.register_step_post_hook(partial(after, k)),
            )
        ]

    def demand_in_place(self) -> None:
        """Raises where hooks are gone.

        Raises:
            MisuseError: somebody else took them off.
        """
        if any(handle.id not in (handle.hooks_dict_ref() or ()) for handle in self._handles):
            raise MisuseError(
                "The attribution's hooks were taken off the optimizer by somebody else, so its "
                "steps are not seen any more. What was scored stays; detach() and attach again."
            )

    def remove(self) -> None:
        """Takes them off."""
        for handle in self._handles:
            handle.remove()


def release(
    hooks: StepHooks,
    line: LiveLine,
    book: Callable[[], None],
    record: Record,
    folder: RunFolder | None,
) -> None:
    """Takes hooks off the optimizers and the line off the screen, and stores what still waits.

    Steps that momentum still pays are stored with what they have.

    It is called by `detach`, and where that was never called when the attribution goes out of use
    or the program ends.
    """
    hooks.remove()
    try:
        book()
    finally:
        line.close()
    if folder is None:
        return
    try:
        if folder.path.exists() and not folder.superseded:
            record.let_go()
            folder.flush()
    finally:
        folder.close()
