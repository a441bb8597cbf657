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


def _run(closure: Callable[[], Any]) -> Callable[[], Any]:
    with torch.enable_grad():
        results = [closure()]

    def result() -> Any:
        if not results:
            raise MisuseError(
                "The optimizer called its closure a second time in one step. A step that is scored "
                "has one gradient. Call the closure's passes yourself, or attach to an optimizer "
                "that takes one gradient a step."
            )
        return results.pop()

    return result
