"""Sees every torch operation of a forward pass and picks out those that consume parameters.

A torch function mode rather than module hooks: rules are then about operations, and whatever a
module's class is called, the operations in it are the same. The mode only looks. It calls each
operation as it was called, and hangs one hook on the output of those that it wants the gradient
of; the numbers of the training step are those without it, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from inrun.capture._gathered import GatheredParameters
from inrun.capture._layouts import Key, LayoutBook, Seen
from inrun.capture._sources import DerivedTensor, Root, Source
from inrun.capture._uses import Use
from inrun.operations import RandomState, find, inside, is_in_place, outputs_of

_RESHAPES = {"flatten", "reshape", "view"}
_BACKWARD = (torch.Tensor.backward, torch.autograd.backward)
_FORM_ONLY = {"expand_as", "reshape_as", "to", "type_as", "view_as"}  # of the second argument


class CaptureMode(TorchFunctionMode):
    """Records the uses of `roots` in a batch of `samples` samples.

    Args:
        roots: the trained parameters.
        constants: ids of tensors that are the same for all samples (buffers, other parameters).
        samples: B.
        layouts: tells where samples lie in an output.
        gathered: finds the parameters of a sharded model.
    """

    def __init__(
        self,
        roots: Sequence[Root],
        constants: frozenset[int],
        samples: int,
        layouts: LayoutBook,
        gathered: GatheredParameters | None = None,
    ):
        super().__init__()
        self.uses: list[Use] = []
        self.skipped: dict[str, str] = {}
        self._sources: dict[int, Source] = {id(root.parameter): root for root in roots}
        self._constants, self._samples, self._layouts = set(constants), samples, layouts
        self._gathered = gathered
        self._flattened: frozenset[int] = frozenset()
        self._alive: list[Tensor] = []  # derived tensors: an id is theirs while they live
        self.muted = self.over = False
        self.after_backward: Callable[[], None] | None = None
        self.before_backward: Callable[[], None] | None = None
        self.when_complete: Callable[[Use], None] | None = None  # all its gradients have arrived
        self._depth = 0  # of backward passes within each other

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function in _BACKWARD:
            return self._backward(function, args, kwargs)
        if self.over or not torch.is_grad_enabled() or _recomputing():
            return function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        operation = find(name)
        if operation is not None and operation.check is not None:
            operation.check(operation.bind(args, kwargs))
        given = [*_tensors(args), *_tensors(kwargs.values())]
        if self._gathered is not None:
            self._learn_gathered(self._gathered, given)
        consumed = {id(t): self._sources[id(t)] for t in given if id(t) in self._sources}
        if not consumed or (name in _FORM_ONLY and id(args[0]) not in consumed):
            return self._pass(function, name, args, kwargs)
        stepped = inside(function)
        if stepped is not None:
            with self:
                return stepped(*args, **kwargs)
        if operation is not None and operation.skip is not None:
            reason = operation.skip(operation.bind(args, kwargs))
            if reason is not None:
                self.skipped.update(dict.fromkeys(_names(consumed), reason))
                return function(*args, **kwargs)
        ruled = operation is not None and operation.rule is not None
        random = None if ruled else RandomState.now(_tensors(args))
        if name == "__setitem__":
            before = args[0].detach().clone().requires_grad_(args[0].requires_grad)
            function(*args, **kwargs)
            self._note(set_item, (before, *args[1:]), {}, consumed, args[0], random)
            return None
        seen_args, seen_kwargs = args, kwargs
        if is_in_place(name):  # the operation is about to overwrite what its rule will need
            seen_args, consumed = _copied(args, consumed)
        returned = _own_node(function(*args, **kwargs), [*args, *kwargs.values()])
        self._note(function, seen_args, seen_kwargs, consumed, returned, random)
        return returned

    def _learn_gathered(self, gathered: GatheredParameters, given: Sequence[Tensor]) -> None:
        """Takes note of parameters that were put in sharded ones' places."""
        for t in given:
            if (
                isinstance(t, torch.nn.Parameter)
                and id(t) not in self._sources
                and id(t) not in self._constants
            ):
                root = gathered.root_of(t)
                if root is not None and (root.scored or t.requires_grad):
                    self._sources[id(t)] = root
                elif root is not None:
                    self._constants.add(id(t))

    def _backward(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Any) -> None:
        """The backward pass with the mode on, so that what is computed only there is seen too.

        A checkpoint with use_reentrant=True runs its layers without gradients first, and for the
        gradients here.
        """
        if self.before_backward is not None:
            self.before_backward()
        self._depth += 1
        try:
            with self:
                stepped = inside(function)
                assert stepped is not None
                stepped(*args, **kwargs)
        finally:
            self._depth -= 1
        if self.after_backward is not None and not self._depth and not self.over:
            self.over = True
            self.after_backward()

    def _pass(
        self, function: Callable[..., Any], name: str, args: Sequence[Any], kwargs: Any
    ) -> Any:
        """Calls an operation that consumes no parameter."""
        if function is torch.autograd.grad:  # an attack or a penalty, not the training gradient
            self.muted = True
            try:
                return function(*args, **kwargs)
            finally:
                self.muted = False
        returned = function(*args, **kwargs)
        if name in _RESHAPES and self._samples:
            self._flattened |= _slots(args[0].shape, returned.shape, self._samples)
        return returned

    def _note(
        self,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        consumed: dict[int, Source],
        returned: Any,
        random: RandomState | None,
    ) -> None:
        """Files the operation as a derived tensor or as a use."""
        outputs = outputs_of(returned)
        if not any(out.requires_grad for out in outputs):
            return
        others = [
            t
            for t in [*_tensors(args), *_tensors(kwargs.values())]
            if id(t) not in consumed and id(t) not in self._constants
        ]
        roots = _names(consumed)
        name = getattr(function, "__name__", repr(function))
        batched = any(t.requires_grad for t in others)
        seen = Seen(self._samples, batched, self._flattened)
        layouts = [
            self._layouts.layout(Key(name, roots, i), out, seen)
            if others and out.requires_grad
            else None
            for i, out in enumerate(outputs)
        ]
        if all(layout is None for layout in layouts):
            if batched:
                self._no_samples_in(name, roots, outputs[0])
                return
            for i, out in enumerate(outputs):
                self._sources[id(out)] = DerivedTensor(function, args, kwargs, consumed, i)
                self._alive.append(out)
            return
        use = Use(function, args, kwargs, consumed, layouts, self._samples, random)
        self.uses.append(use)
        for i, out in enumerate(outputs):
            self._sources.pop(id(out), None)  # overwritten in place, it is no longer derived
            if out.grad_fn is not None:
                self._when_reached(out, i, use)

    def _no_samples_in(self, name: str, roots: tuple[str, ...], output: Tensor) -> None:
        """An output that depends on the batch and yet has no axis for its samples."""
        if output.ndim == 0:
            reason = f"{name} combines it with a value that is already summed over the batch"
        else:
            reason = (
                f"{name} gives shape {tuple(output.shape)}, in which no axis was found to run over "
                f"{self._samples} samples in equal parts"
            )
        self.skipped.update(dict.fromkeys(roots, reason))

    def _when_reached(self, out: Tensor, position: int, use: Use) -> None:
        """Hands the output's gradient to the use when the backward pass comes by.

        The hook hangs on the graph's node, not on the tensor: a tensor that is overwritten later
        (`x += p`, `relu_`) moves to a new node, and a hook on it could not be paired with the
        operation any more.
        """
        node, slot = out.grad_fn, out.output_nr
        assert node is not None

        def receive(gradients: tuple[Tensor | None, ...]) -> None:
            gradient = gradients[slot]
            if gradient is not None and not self.muted:
                use.receive(position, gradient)
                if self.when_complete is not None and use.complete:
                    self.when_complete(use)

        node.register_prehook(receive)


def _recomputing() -> bool:
    """Whether a checkpoint without re-entry fills in what its forward pass did not save.

    Those operations have been seen already; no gradient comes to them a second time.
    """
    within_backward: bool = torch._C._current_graph_task_id() != -1
    return within_backward and torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def set_item(target: Tensor, index: Any, value: Any) -> Tensor:
    """`target[index] = value` as a function of its arguments, for the fallback to run again."""
    changed = target.clone()
    changed[index] = value
    return changed


def _slots(before: torch.Size, after: torch.Size, samples: int) -> frozenset[int]:
    """Slots of a sample, where a reshape put them into the axis of the batch.

    They were an axis of their own before, or several next to the batch's; attention also has its
    heads in the batch's axis for a while.
    """
    if len(before) < 3 or not after or after[0] % samples:
        return frozenset()
    axes = {*before, *(prod(before[1 : i + 1]) for i in range(1, len(before)))}
    return frozenset({after[0] // samples} & axes)


def _own_node(returned: Any, arguments: Sequence[Any]) -> Any:
    """The same tensor, made no view where the operation itself made it one of its own result.

    `linear` gives a view for inputs of three axes and more. If the model then overwrites it
    (`ReLU(inplace=True)`), autograd writes the history of views anew and the node that was hooked
    is not in it. The numbers and the memory are the same.
    """
    if not isinstance(returned, Tensor) or not returned._is_view() or not returned.requires_grad:
        return returned
    storage = returned.untyped_storage().data_ptr()
    if any(t.untyped_storage().data_ptr() == storage for t in _tensors(arguments)):
        return returned  # a view of something that the model holds
    return torch.ops.aten._unsafe_view(returned, list(returned.shape))


def _tensors(values: Any) -> Iterator[Tensor]:
    """Tensors among arguments, also one level down in lists (`torch.cat`)."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            for item in value:
                if isinstance(item, Tensor):
                    yield item


def _names(consumed: Mapping[int, Source]) -> tuple[str, ...]:
    """Names of the parameters behind what an operation consumed."""
    return tuple(sorted({root.name for source in consumed.values() for root in source.roots}))


def _copied(
    args: Sequence[Any], consumed: Mapping[int, Source]
) -> tuple[Sequence[Any], dict[int, Source]]:
    """The arguments before the first is overwritten; what derives from parameters is renamed."""
    first = args[0].detach().clone().requires_grad_(args[0].requires_grad)
    renamed = {id(first) if key == id(args[0]) else key: s for key, s in consumed.items()}
    return [first, *args[1:]], renamed
