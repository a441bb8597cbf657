"""Sees every torch operation of a block: follows owners, and picks out uses of parameters.

A torch function mode rather than module hooks: rules are then about operations, and whatever a
module's class is called, the operations in it are the same. The mode only looks. It calls each
operation as it was called, and hangs one hook on the output of those that it wants the gradient
of; the numbers of the training step are those without it, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from inrun.capture._block_setting import unseen
from inrun.capture._functions import (
    ADDS,
    BACKWARD,
    FORM_ONLY,
    GETTERS,
    GRADIENT,
    HOOKS,
    NO_NAMES,
    QUIET,
    active_modes,
    copied,
    custom,
    keeps_graph,
    own_nodes,
    recomputing,
    set_item,
    tensors_among,
)
from inrun.capture._recomputed import Recomputed, saves_input
from inrun.capture._recorded import Recorded, layouts_of, missing_reason
from inrun.capture._sources import DerivedTensor, GatheredParameters, Root, Source
from inrun.capture._uses import Use
from inrun.operations import RandomState, find, inside, is_in_place, outputs_of
from inrun.owners import SUM, Map, Owners, root_kind
from inrun.utility import swapped


class CaptureMode(Recorded):
    """Records the uses of `roots` in a block.

    `constants` are ids of tensors that are the same for all samples (buffers, other parameters);
    `gathered` finds the parameters of a sharded model.
    """

    def __init__(
        self,
        roots: Sequence[Root],
        constants: frozenset[int],
        owners: Owners,
        gathered: GatheredParameters | None = None,
    ):
        super().__init__(owners)
        self.hooked = False  # whether a hook was hung on a tensor of the graph
        self._sources: dict[int, Source] = {id(root.parameter): root for root in roots}
        self._constants, self._samples = set(constants), owners.samples
        self._gathered = gathered
        self._alive: list[Tensor] = []  # derived tensors: an id is theirs while they live
        self.after_backward: Callable[[], None] | None = None
        self.before_backward: Callable[[Sequence[Tensor], Any], None] | None = None
        self.recomputed: Recomputed | None = None  # where checkpoints bring inputs again
        self.passes_again = False  # whether the graph is kept for a further backward pass
        self.root_why = ""
        self._in_custom = False  # within a custom function's backward pass
        self._depth = 0  # of backward passes within each other
        self._handed: set[int] = set()  # ids of what the vmap under way was called with

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or NO_NAMES
        if function in BACKWARD:
            return self._backward(function, args, kwargs)
        again = recomputing()
        if self.over or self._in_custom or (again and not self._fills):
            return function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        if name in QUIET or (name == "__get__" and function not in GETTERS):
            self.hooked |= name in HOOKS and args[0].grad_fn is not None
            return function(*args, **kwargs)
        if function is GRADIENT:
            return function(*args, **kwargs) if again else self._inner_gradient(args, kwargs)
        stepped = inside(function)
        if stepped is not None:
            with self:
                return stepped(*args, **kwargs)
        if again:
            self._fill(name, args, kwargs)
            return function(*args, **kwargs)
        return self._operation(function, name, args, kwargs, tensors_among(args, kwargs))

    @property
    def _fills(self) -> bool:
        """Whether a recomputation may bring inputs that uses wait for."""
        return self.recomputed is not None and self.tinting is None and not self.muted

    def _fill(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """An operation comes again, with its arguments."""
        assert self.recomputed is not None
        use = self.recomputed.again(name)
        if use is not None and use.held:
            use.fill(args, kwargs)
            if self.when_complete is not None and use.complete:
                with unseen():
                    self.when_complete(use)

    def opaque(
        self, function: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A call whose inside is hidden, as one operation; see `opaque_calls`."""
        again = recomputing()
        if self.over or (again and not self._fills) or self not in active_modes():
            return function(*args, **kwargs)
        if again:
            self._fill(name, args, kwargs)
            with unseen():
                return function(*args, **kwargs)
        function.__name__ = name
        tensors = outputs_of([list(args), list(kwargs.values())])
        if name != "vmap":  # a custom function may do anything inside, and is asked by exchange
            with unseen():
                returned = self._operation(function, name, args, kwargs, tensors)
                if find(name) is not None:
                    self._hide_backward(returned)
                return returned
        before, self._handed = self._handed, {id(t) for t in tensors}
        try:
            return self._operation(function, name, args, kwargs, tensors)
        finally:
            self._handed = before

    def _hide_backward(self, returned: Any) -> None:
        """What a custom function with a rule computes in its backward pass is not followed.

        Others may be checkpoints, which run layers there.
        """
        nodes = {t.grad_fn for t in outputs_of(returned) if t.grad_fn is not None}

        def enter(_: Any) -> None:
            self._in_custom = True

        def leave(*_: Any) -> None:
            self._in_custom = False

        for node in custom(nodes):
            node.register_prehook(enter)
            node.register_hook(leave)

    def _operation(
        self, function: Callable[..., Any], name: str, args: Sequence[Any],
        kwargs: Mapping[str, Any], tensors: list[Tensor],
    ) -> Any:  # fmt: skip
        """Runs an operation and files it as a derived tensor, a use, or neither."""
        self.names.append(name)
        place = self.recomputed.place(name) if self.recomputed is not None else None
        operation = find(name)
        if operation is not None and operation.check is not None:
            operation.check(operation.bind(args, kwargs))
        if self._gathered is not None:
            self._gathered.learn(tensors, self._sources, self._constants)
        sources = self._sources
        consumed = {id(t): sources[id(t)] for t in tensors if id(t) in sources}
        if torch._C._functorch.peek_interpreter_stack() is not None:
            consumed = {key: s for key, s in consumed.items() if key not in self._handed}
            self._miss(consumed, "it is used inside torch.vmap or torch.func, whose tensors have "
                       "no batch axis")  # fmt: skip
            return function(*args, **kwargs)
        call = function, name, args, kwargs, tensors
        used = bool(consumed) and torch.is_grad_enabled()
        if not used or (name in FORM_ONLY and id(args[0]) not in consumed):
            return self.owners.run(*call)[0]
        random = RandomState.now(tensors) if operation is None else None
        seen_args, seen = args, function
        if name == "__setitem__":
            seen_args, consumed = copied(args, consumed)
            seen = set_item
        elif is_in_place(name):  # it is about to overwrite what its rule will need
            seen_args, consumed = copied(args, consumed)
        returned, outs = self.owners.run(*call, lambda given: own_nodes(given, tensors))
        use = self._note(seen, name, seen_args, kwargs, consumed, outs, random)
        if place is not None and use is not None and saves_input(name, consumed, tensors):
            place.wait(use)
        return returned

    def _backward(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Any) -> None:
        """The backward pass with the mode on, so that what is computed only there is seen too.

        A checkpoint with use_reentrant=True runs its layers without gradients first, and for the
        gradients here.
        """
        given = kwargs.get("tensors", args[0] if args else ())
        starts = [given] if isinstance(given, Tensor) else list(given)
        if not self.over and not self._depth:
            for t in starts:
                m = self.owners.of(t)
                self.started_from.add(root_kind(m))
                self.root_why = self.root_why or (m.why if m is not None else "")
            if self.before_backward is not None:
                named = kwargs.get("gradient", kwargs.get("grad_tensors"))
                self.before_backward(starts, args[1] if len(args) > 1 else named)
        self.passes_again |= keeps_graph(args, kwargs)
        self._depth += 1
        try:
            with self:
                stepped = inside(function)
                assert stepped is not None
                stepped(*args, **kwargs)
        finally:
            self._depth -= 1
            self._in_custom = False
        if self.after_backward is not None and not self._depth and not self.over:
            self.over = True
            self.after_backward()

    def _inner_gradient(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """`torch.autograd.grad`: an attack or a penalty, not the training gradient.

        A gradient with respect to a tensor is slot by slot that tensor's samples'.
        """
        with swapped(self, "muted", True):
            returned = torch.autograd.grad(*args, **kwargs)
        inputs = args[1] if len(args) > 1 else kwargs["inputs"]
        inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
        for t, gradient in zip(inputs, returned, strict=True):
            if gradient is not None:
                self.owners.give(gradient, self.owners.of(t))
        return returned

    def _note(
        self, function: Callable[..., Any], name: str, args: Sequence[Any],
        kwargs: Mapping[str, Any], consumed: dict[int, Source], outputs: list[Tensor],
        random: RandomState | None,
    ) -> Use | None:  # fmt: skip
        """Files the operation as a derived tensor or as a use, which it returns."""
        if not any(out.requires_grad for out in outputs):
            return None
        maps = [self.owners.of(out) if out.requires_grad else None for out in outputs]
        if all(m is None or m.nobodys for m in maps):
            for i, out in enumerate(outputs):
                self._sources[id(out)] = DerivedTensor(function, args, kwargs, consumed, i, random)
                self._alive.append(out)
            return None
        for out in outputs:
            self._sources.pop(id(out), None)  # overwritten in place, it is no longer derived
        operation = find(name)
        if operation is not None and operation.per_row:
            maps = [None if m is None else self._per_row(args[0], m) for m in maps]
        reason = missing_reason(name, maps)
        if reason is not None:
            added = name in ADDS and all(m is None or m.low == SUM == m.high for m in maps)
            self._miss(consumed, reason, outputs, term=added)
            return None
        layouts = layouts_of(maps, self._samples)
        how = next((m.how for m in maps if m is not None and m.how != "followed"), "followed")
        use = Use(function, args, kwargs, consumed, layouts, self._samples, random, how)
        self._record(use, outputs)
        return use

    def _per_row(self, rows: Tensor, m: Map) -> Map:
        """Whose the terms are that an operation has one of per row, also where it sums them."""
        own = self.owners.of(rows)
        if m.ndim or own is None:
            return m
        return own.remembered("terms", lambda: own.derived(own.codes.amin(-1)))
