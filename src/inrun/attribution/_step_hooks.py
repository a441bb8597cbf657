"""The attribution's hooks on the optimizers' steps, and taking them off again."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from inrun.attribution._closures import Arguments
from inrun.attribution._live import LiveLine, Stopwatch
from inrun.attribution._record import Record
from inrun.capture import Resting
from inrun.errors import InRunWarning, MisuseError
from inrun.ledger import RunFolder


class Stepped(Protocol):
    """Whoever is told of steps."""

    def _before_step(self, k: int, args: Any, kwargs: Any) -> Arguments | None: ...

    def _after_step(self, k: int) -> None: ...

    def _stranger_stepped(self, optimizer: torch.optim.Optimizer) -> None: ...


class StepHooks:
    """Hooks that hold the attribution weakly: dropping it detaches it.

    One more, on every optimizer there is, tells of steps of those that are not attached: nothing
    else sees a fused one move weights.
    """

    def __init__(self, told: Stepped, optimizers: Sequence[torch.optim.Optimizer]):
        this, running = weakref.ref(told), [False]
        self._running = running  # whether hooks are being called, whose order is fixed then

        def before(k: int, _: object, args: Any, kwargs: Any) -> Arguments | None:
            attribution = this()
            if attribution is None:
                return None
            asked, running[0] = running[0], True
            try:
                with Resting():
                    return attribution._before_step(k, args, kwargs)
            finally:
                running[0] = asked

        def after(k: int, _: object, args: Any, kwargs: Any) -> None:
            attribution = this()
            if attribution is not None:
                with Resting():
                    attribution._after_step(k)

        attached = weakref.WeakSet(optimizers)

        def stranger(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            attribution = this()
            if attribution is None or optimizer in attached:
                return
            groups = {id(group) for one in attached for group in one.param_groups}
            if not groups & {id(group) for group in optimizer.param_groups}:  # else a wrapper
                attribution._stranger_stepped(optimizer)

        self._everywhere = register_optimizer_step_post_hook(stranger)
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
        for handle in self._handles if not self._running[0] else ():
            hooks = handle.hooks_dict_ref()  # the last to look: the user's may change gradients
            if hooks is not None and next(reversed(hooks)) != handle.id:
                hooks.move_to_end(handle.id)

    def remove(self) -> None:
        """Takes them off."""
        for handle in (self._everywhere, *self._handles):
            handle.remove()


def warn_unheld(this: weakref.ref[Any], watch: Stopwatch) -> None:
    """Says that an attribution went out of use before it had anything to score.

    It is called when it is collected; at the end of the program, when it may still be held, it says
    nothing.
    """
    if this() is None and not watch.started:
        warnings.warn(
            "An attribution was collected without having scored a step: nobody holds it, and "
            "dropping it detaches it. Keep what inrun.attach returns for as long as training goes "
            "(attribution = inrun.attach(...)), and wrap each step in attribution.batch(ids).",
            InRunWarning,
            stacklevel=2,
        )


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
