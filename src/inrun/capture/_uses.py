"""A use: one call of an operation that consumed a parameter, paired with its output's gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from inrun.capture._sources import Source, scored_roots
from inrun.errors import NotSupportedError
from inrun.factors import Factor, by_owner
from inrun.operations import (
    Call,
    Layout,
    Operation,
    RandomState,
    Slots,
    fallback,
    find,
    outputs_of,
    repeated,
    replace,
)

LONG = 16_384  # numbers that are held, from which on it is asked whether shares are fewer
_HALF = (torch.float16, torch.bfloat16)


@cache
def _captured_as(name: str, kind: type[Factor]) -> str:
    return f"{name}: {kind.__name__.lower()}"


class Use:
    """What a rule will need after the backward pass, and the gradients as they arrive.

    There may be thousands in a step, all alive at its end: it is made of few objects.
    """

    __slots__ = (
        "_args", "_awaited", "_complex", "_gradients", "_kinds", "_kwargs", "_pending", "_random",
        "function", "layouts", "low_precision", "name", "owners", "reached", "samples", "sources",
    )  # fmt: skip

    def __init__(
        self,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        sources: Mapping[int, Source],
        layouts: Sequence[Layout | Slots | None],
        samples: int,
        random: RandomState | None,
        owners: str = "followed",
    ):
        self.owners = owners  # how it is known whose slots are whose
        self.function, self.sources, self.samples = function, sources, samples
        self.name: str = getattr(function, "__name__", repr(function))
        kinds: set[torch.dtype] = set()

        def let_go(t: Tensor) -> Tensor:
            # detached, or every held input would keep the whole graph behind it alive
            kinds.add(t.dtype)
            return t if id(t) in sources else t.detach()

        self._args: Sequence[Any] = replace(args, let_go)
        self._kwargs: Mapping[str, Any] = replace(dict(kwargs), let_go) if kwargs else kwargs
        self.layouts, self._random = layouts, random  # whose the slots of each output are
        self._gradients: list[Tensor | None] = [None] * len(layouts)
        self.reached = False  # whether the backward pass came through
        # half precision took part, so that sums agree to two digits only
        self.low_precision = not kinds.isdisjoint(_HALF)
        # conjugates are in it, which rules do not know and the fallback does
        self._complex = any(kind.is_complex for kind in kinds)
        self._pending: set[str] | None = None
        self._kinds = kinds
        self._awaited: list[Tensor | torch.Size] | None = None

    @property
    def waits(self) -> bool:
        """Whether a checkpoint has to recompute its inputs first."""
        return self._awaited is not None

    def wait(self) -> None:
        """Lets go of inputs that will come again; of each, its shape is kept."""
        awaited: list[Tensor | torch.Size] = []
        replace(
            [self._args, dict(self._kwargs)],
            lambda t: awaited.append(t if id(t) in self.sources else t.shape),
        )
        self._awaited, self._args, self._kwargs = awaited, (), {}

    def fill(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Takes inputs as they came again; those of other shapes are not its own."""
        awaited, came = self._awaited or [], list[torch.Size]()
        replace([args, dict(kwargs)], lambda t: came.append(t.shape))
        if came != [t.shape if isinstance(t, Tensor) else t for t in awaited]:
            return
        own = iter(awaited)

        def taken(t: Tensor) -> Tensor:
            before = next(own)
            return before if isinstance(before, Tensor) else t.detach()

        (self._args, self._kwargs), self._awaited = replace([args, dict(kwargs)], taken), None

    @property
    def _given(self) -> list[Tensor]:
        return outputs_of([self._args, *self._kwargs.values()])

    @property
    def held(self) -> bool:
        """Whether its arguments and gradients are still there."""
        return bool(self._gradients)

    @property
    def pending(self) -> set[str]:
        """Names whose shares have not been taken yet; whoever takes some takes them off."""
        if self._pending is None:
            self._pending = self.roots
        return self._pending

    @property
    def roots(self) -> set[str]:
        """Names of the scored parameters behind this use."""
        return {root.name for root in scored_roots(self.sources.values())}

    def receive(self, output: int, gradient: Tensor) -> None:
        """Adds an output's gradient: a second backward pass through the same graph adds up."""
        if self._gradients:  # else released: the invariant will tell that a part is missing
            self.reached = True
            self.low_precision |= gradient.dtype in _HALF
            self._complex |= gradient.is_complex()
            before = self._gradients[output]
            self._gradients[output] = gradient if before is None else before + gradient

    @property
    def dtype(self) -> torch.dtype:
        """The coarsest kind of number among its arguments."""
        kinds = [kind for kind in self._kinds if kind.is_floating_point]
        return max(kinds, key=lambda d: torch.finfo(d).eps, default=torch.float32)

    @property
    def complete(self) -> bool:
        """Whether the gradient of every output is there, and the inputs are."""
        there = bool(self._gradients) and all(g is not None for g in self._gradients)
        return there and not self.waits

    @property
    def is_long(self) -> bool:
        """Whether shares of all samples are far smaller than the arguments and gradients held.

        Of an operation that saved an argument for its backward pass, so that no second pass can
        come to it unless the graph is retained.
        """
        held = [t for t in self._given if id(t) not in self.sources and t.is_floating_point()]
        held += [g for g in self._gradients if g is not None]
        numbers = sum(t.numel() for t in held)
        if len(held) < 2 or numbers < LONG:
            return False
        shares = sum(root.parameter.numel() for root in scored_roots(self.sources.values()))
        return 2 * self.samples * shares <= numbers

    def factors(self, only: str | None = None) -> Iterator[tuple[str, str, Factor]]:
        """(parameter's name, how it was captured, its shares) for every parameter behind it."""
        for tensor_id, source in self.sources.items():
            roots = [root.name for root in source.roots if root.scored]
            wanted = roots if only is None else [only] if only in roots else []
            if not wanted:
                continue
            for parameter, factor in source.pull_back(self._shares_of(tensor_id)):
                if parameter in wanted:
                    yield parameter, _captured_as(self.name, type(factor)), factor

    def release(self) -> None:
        self._args, self._kwargs = (), {}
        self._gradients = []

    @property
    def strays(self) -> bool:
        """Whether slots of no sample carry gradient."""
        for gradient, layout in zip(self._gradients, self.layouts, strict=True):
            if isinstance(layout, Slots) and gradient is not None:
                at_slots = gradient.ndim or not layout.axes  # a sum's gradient lies at none
                if at_slots and layout.strays(gradient):
                    return True
        return False

    def _shares_of(self, tensor_id: int) -> Factor:
        """Shares of one consumed tensor, by its operation's rule or else by the fallback."""
        operation = find(self.name)
        one = len(self._gradients) == 1 or (operation is not None and operation.per_row)
        if operation is not None and one and not self._complex:
            arguments = operation.bind(self._args, self._kwargs)
            layout = next((at for at in self.layouts if at is not None), None)
            named = [name for name, value in arguments.items() if id(value) == tensor_id]
            if len(named) == 1 and self.reached and layout is not None:
                factor = self._by_rule(operation, arguments, named[0], layout)
                if factor is not None:
                    return factor
        return self._fallback(tensor_id)

    def _by_rule(
        self, operation: Operation, arguments: Mapping[str, Any], name: str, layout: Layout | Slots
    ) -> Factor | None:
        gradient, *others = self._gradients
        if gradient is None:
            gradient = torch.zeros_like(next(g for g in others if g is not None))
        if not isinstance(layout, Slots):
            call = Call(self.name, arguments, gradient, layout, self.samples, tuple(others))
            return operation.rule(call, name)
        if not operation.per_row and gradient.ndim - 1 in layout.axes:
            return None  # features that belong to several samples
        owner_P = layout.owners(gradient.device)
        call = Call(self.name, arguments, gradient, layout, len(owner_P), tuple(others))
        slots = operation.rule(call, name)
        return None if slots is None else by_owner(slots, owner_P, self.samples)

    def _fallback(self, tensor_id: int) -> Factor:
        (tensor,) = {id(t): t for t in self._given if id(t) == tensor_id}.values()
        if tensor.numel() and not tensor.untyped_storage().size():
            raise NotSupportedError(
                f"{self.name} has several outputs, of which only some got a gradient, and the "
                "weights that its shares are computed from were put in parts again (fully_shard). "
                "Keep this module's weights whole: call fully_shard on other modules only."
            )
        gradients = list(zip(self._gradients, self.layouts, strict=True))
        with repeated(self._random):
            return fallback(
                self.function, self._args, self._kwargs, tensor, gradients, self.samples
            )
