"""Sees every torch operation of a forward pass and picks out those that consume parameters.

A torch function mode rather than module hooks: rules are then about operations, and whatever a
module's class is called, the operations in it are the same. The mode only looks. It calls each
operation as it was called, and hangs one hook on the output of those that it wants the gradient
of; the numbers of the training step are those without it, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from inrun.capture._layouts import Key, LayoutBook
from inrun.capture._sources import DerivedTensor, Root, Source
from inrun.capture._uses import Use
from inrun.errors import MisuseError
from inrun.operations import find, inside, is_in_place, outputs_of, replace

_FORM_ONLY = {"expand_as", "reshape_as", "to", "type_as", "view_as"}  # of the second argument


class CaptureMode(TorchFunctionMode):
    """Records the uses of `roots` in a batch of `samples` samples.

    Args:
        roots: the trained parameters.
        constants: ids of tensors that are the same for all samples (buffers, other parameters).
        samples: B.
        layouts: tells where samples lie in an output.
    """

    def __init__(
        self,
        roots: Sequence[Root],
        constants: frozenset[int],
        samples: int,
        layouts: LayoutBook,
    ):
        super().__init__()
        self.uses: list[Use] = []
        self.skipped: dict[str, str] = {}
        self._sources: dict[int, Source] = {id(root.parameter): root for root in roots}
        self._constants, self._samples, self._layouts = constants, samples, layouts
        self._alive: list[Tensor] = []  # derived tensors: an id is theirs while they live

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not torch.is_grad_enabled():
            return function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        operation = find(name)
        if operation is not None and operation.check is not None:
            operation.check(operation.bind(args, kwargs))
        consumed = {id(t): self._sources[id(t)] for t in _tensors(args) if id(t) in self._sources}
        for t in _tensors(kwargs.values()):
            if id(t) in self._sources:
                consumed[id(t)] = self._sources[id(t)]
        if not consumed or (name in _FORM_ONLY and id(args[0]) not in consumed):
            return function(*args, **kwargs)
        stepped = inside(function)
        if stepped is not None:
            with self:
                return stepped(*args, **kwargs)
        seen_args, seen_kwargs = args, kwargs
        if is_in_place(name):  # the operation is about to overwrite what its rule will need
            seen_args, seen_kwargs = _copied(args, kwargs, consumed)
        returned = _own_node(function(*args, **kwargs), [*args, *kwargs.values()])
        self._note(function, seen_args, seen_kwargs, consumed, returned)
        return returned

    def _note(
        self,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        consumed: dict[int, Source],
        returned: Any,
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
        roots = tuple(sorted({root.name for source in consumed.values() for root in source.roots}))
        name = getattr(function, "__name__", repr(function))
        batched = any(t.requires_grad for t in others)
        layouts = [
            self._layouts.layout(Key(name, roots, i), out, self._samples, strict=not batched)
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
        use = Use(function, args, kwargs, consumed, layouts, self._samples)
        self.uses.append(use)
        for i, out in enumerate(outputs):
            if out.grad_fn is not None:
                _when_reached(out, i, use)

    def _no_samples_in(self, name: str, roots: tuple[str, ...], output: Tensor) -> None:
        """An output that depends on the batch and yet has no axis for its samples."""
        if output.ndim == 0:
            reason = f"{name} combines it with a value that is already summed over the batch"
            self.skipped.update(dict.fromkeys(roots, reason))
            return
        raise MisuseError(
            f"{self._samples} sample ids were given, but {name}({', '.join(roots)}) has an output "
            f"of shape {tuple(output.shape)}, in which no axis runs over {self._samples} samples. "
            "Pass one id a row of the batch to attribution.batch(ids)."
        )


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


def _when_reached(out: Tensor, position: int, use: Use) -> None:
    """Hands the output's gradient to the use when the backward pass comes by.

    The hook hangs on the graph's node, not on the tensor: a tensor that is overwritten later
    (`x += p`, `relu_`) moves to a new node, and a hook on it could not be paired with the
    operation any more.
    """
    node, slot = out.grad_fn, out.output_nr
    assert node is not None

    def receive(gradients: tuple[Tensor | None, ...]) -> None:
        gradient = gradients[slot]
        if gradient is not None:
            use.receive(position, gradient)

    node.register_prehook(receive)


def _tensors(values: Any) -> Iterator[Tensor]:
    """Tensors among arguments, also one level down in lists (`torch.cat`)."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            for item in value:
                if isinstance(item, Tensor):
                    yield item


def _copied(
    args: Sequence[Any], kwargs: Mapping[str, Any], consumed: Mapping[int, Source]
) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """The arguments with activations copied; parameters and what derives from them stay."""

    def copy(t: Tensor) -> Tensor:
        return t if id(t) in consumed else t.detach().clone().requires_grad_(t.requires_grad)

    return replace(list(args), copy), replace(dict(kwargs), copy)
