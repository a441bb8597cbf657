"""Steps with a closure: it is run before the step, so that its gradients can be read before it.

Optimizers that take one gradient a step call their closure first of all; run a moment earlier it
does the same, and the step is then given its result. Lightning trains like this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from inrun.errors import MisuseError

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


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
