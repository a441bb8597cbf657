"""Calls of the model, kept so that they can be made again: of all samples, and of one alone.

Whose the entries of a call's arguments are is worked out here a second time, from what
`attribution.batch(ids, rows=, slots=)` means and not from the maps that are being judged; only of
arguments that the loop computed inside the block the followed map is taken.

Letters: B samples.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from inrun.capture._functions import nodes_behind
from inrun.capture._mode import CaptureMode
from inrun.capture._replaying import WithinBounds, mapped
from inrun.operations import RandomState, repeated
from inrun.owners import Axes, Map, Ownership
from inrun.utility import tensors_in


class CannotReplayError(Exception):
    """A call cannot be made again, or not with one sample alone; the reason is the message."""


@dataclass
class ModelCall:
    """One call of the whole model in a block.

    `meant` and `followed` are owner maps of its arguments by `id`: what ids mean, and what is used.
    `outputs` are maps of outputs whose every slot has an owner, by where they lie; `reached` those
    that the loss was made of, `gradients` what the block's backward pass brought to them.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    samples: int
    meant: dict[int, Tensor]
    followed: dict[int, Map]
    flags: list[tuple[nn.Module, bool]]
    random: RandomState
    drew: bool = False
    outputs: dict[str, Map] = field(default_factory=dict)
    nodes: dict[str, Any] = field(default_factory=dict)
    reached: set[str] = field(default_factory=set)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    raw: bool = False  # whether there is data among them of which it is not known whose it is

    def check_untouched(self) -> None:
        """Raises CannotReplayError where an argument was overwritten since."""
        for path, t in tensors_in("", [self.args, self.kwargs]):
            if t._version != self.versions[path]:
                raise CannotReplayError("the model's inputs were overwritten within the block")

    def whole(
        self, model: nn.Module, give: Callable[[Tensor, Map | None], None] | None = None
    ) -> dict[str, Tensor]:
        """Makes the call again; floating-point outputs by where they lie.

        `give` is told of each argument's followed map.
        """

        def again(t: Tensor) -> Tensor:
            m = self.followed.get(id(t))
            free = t.detach() if t.requires_grad else t
            if give is not None and (m is not None or free is not t):
                give(free, m)
            return free

        with torch._C.DisableTorchFunction():
            args, kwargs = mapped(self.args, again), mapped(self.kwargs, again)
        return _outputs(model(*args, **kwargs))

    @contextmanager
    def as_it_was(self) -> Iterator[None]:
        """Modes of all modules and random numbers are those of the call."""
        for module, training in self.flags:
            module.training = training
        with repeated(self.random):
            yield

    @contextmanager
    def in_evaluation(self, model: nn.Module) -> Iterator[None]:
        """Evaluation mode; modes of the call are back with `as_it_was`."""
        model.eval()
        yield

    def sinks(self) -> list[str]:
        """Outputs with a gradient on whose way to the loss no other of them lies."""
        there = {path: self.nodes[path] for path in self.gradients}
        behind = {path: set(nodes_behind([f for f, _ in node.next_functions]))
                  for path, node in there.items()}  # fmt: skip
        return [
            path for path, node in there.items()
            if not any(node in behind[other] for other in there if other != path)
        ]  # fmt: skip

    def alone(self, model: nn.Module, sample: int) -> dict[str, Tensor]:
        """Makes the call with one sample's entries alone, or raises CannotReplayError."""
        args = [self._of(value, sample) for value in self.args]
        kwargs = {name: self._of(value, sample) for name, value in self.kwargs.items()}
        if any(value is _GONE for value in (*args, *kwargs.values())):
            raise CannotReplayError("the model is called without that sample")
        on_gpu = self.random.cuda
        try:
            with WithinBounds() if on_gpu else nullcontext():
                return _outputs(model(*args, **kwargs))
        except Exception as error:  # the model is the user's: it need not take one sample
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise CannotReplayError(
                f"the model does not take one sample alone ({line[:120]})"
            ) from error

    def present(self) -> list[int]:
        """Samples that have entries in everything that is some samples'."""
        sets = [set(codes[codes >= 0].tolist()) for codes in self.meant.values()]
        whole = [s for s in sets if len(s) > 1] or sets
        return sorted(set.intersection(*whole)) if whole else []

    def _of(self, value: Any, sample: int) -> Any:
        if isinstance(value, Tensor):
            codes = self.meant.get(id(value))
            return value.detach() if codes is None else taken(value.detach(), codes, sample)
        if isinstance(value, Mapping):
            items = {key: self._of(item, sample) for key, item in value.items()}
            if any(item is _GONE for item in items.values()):
                return _GONE
            return items if type(value) is dict else type(value)(items)  # type: ignore[call-arg]
        if isinstance(value, (list, tuple)):
            found = [self._of(item, sample) for item in value]
            kept = [item for item in found if item is not _GONE]
            if found and not kept:
                return _GONE
            return type(value)(*kept) if hasattr(value, "_fields") else type(value)(kept)
        if isinstance(value, int) and not isinstance(value, bool) and value == self.samples > 1:
            raise CannotReplayError(
                f"the model is called with the number {value}, which may be the batch's size"
            )
        return value


_GONE: Any = object()  # what belongs to other samples as a whole


def taken(t: Tensor, codes: Tensor, sample: int) -> Any:
    """One sample's entries; CannotReplayError unless they lie in rows and columns of their own."""
    mask = codes == sample
    axes = [i for i, size in enumerate(codes.shape) if size != 1]
    if not bool(mask.any()):
        return _GONE
    block = mask
    for axis in axes:
        rest = [i for i in range(mask.ndim) if i != axis]
        keep = (mask.any(dim=rest) if rest else mask).nonzero().flatten()
        block = block.index_select(axis, keep)
        t = t.index_select(axis, keep.to(t.device))
    if not bool(block.all()):
        raise CannotReplayError("a sample's entries are no block of their own")
    return t


class Calls:
    """Keeps the model's outermost calls of a block: with `first_only` one, without gradients."""

    def __init__(self, owned: Ownership, axes: Axes, mode: CaptureMode, *, first_only: bool):
        self._owned, self._axes, self._mode, self._owners = owned, axes, mode, mode.owners
        self._first_only = first_only
        self.found: list[ModelCall] = []
        self.open: ModelCall | None = None
        self._owners.by_entry = []

    def before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The model is about to be called, and its arguments have their maps."""
        if self._first_only and self.found:
            return
        entered = {id(t) for t in self._owners.by_entry or ()}
        meant: dict[int, Tensor] = {}
        followed: dict[int, Map] = {}
        versions: dict[str, int] = {}
        raw = False
        for path, t in tensors_in("", [args, kwargs]):
            versions[path] = t._version
            m = self._owners.of(t)
            raw = raw or (m is None and self._owners.is_data(t))
            own = meaning(t, self._owned, self._axes) if id(t) in entered else None
            if m is not None:
                followed[id(t)] = m
                meant[id(t)] = m.codes if own is None else own
        if self._first_only:
            self._owners.by_entry = None  # or all that enters later would be kept
        flags = [(module, module.training) for module in model.modules()]
        self.open = ModelCall(
            args, kwargs, self._owners.samples, meant, followed, flags,
            RandomState.now(model.parameters()), versions=versions, raw=raw,
        )  # fmt: skip

    def after(self, model: nn.Module, output: Any) -> None:
        call, self.open = self.open, None
        if call is None:
            return
        call.drew = not same_state(call.random, RandomState.now(model.parameters()))
        for path, t in tensors_in("", output):
            m = self._owners.of(t) if t.grad_fn is not None else None
            if m is not None and m.owned:
                call.outputs[path] = m
                if not self._first_only:
                    call.nodes[path] = t.grad_fn
                t.grad_fn.register_prehook(self._receiver(call, path, t.output_nr))  # type: ignore[union-attr]
        self.found.append(call)

    def _receiver(self, call: ModelCall, path: str, slot: int) -> Callable[[Any], None]:
        # call and node would never be released together; a loss that is kept keeps the node
        kept, of = weakref.ref(call), weakref.ref(self)

        def receive(gradients: tuple[Tensor | None, ...]) -> None:
            gradient, call, calls = gradients[slot], kept(), of()
            if gradient is None or call is None or calls is None:
                return
            if calls._mode.muted or calls._mode.tinting is not None:
                return
            call.reached.add(path)
            if not calls._first_only:
                before = call.gradients.get(path)
                call.gradients[path] = gradient if before is None else before + gradient

        return receive


def meaning(t: Tensor, owned: Ownership, axes: Axes) -> Tensor | None:
    """Whose the entries of a tensor that enters are, entry by entry from what ids mean."""
    if owned.slots is not None:
        axes_of_slots = tuple(owned.slots.shape)
        if tuple(t.shape[: len(axes_of_slots)]) != axes_of_slots:
            return None
        return owned.slots.reshape(*axes_of_slots, *[1] * (t.ndim - len(axes_of_slots)))
    axis, places = owned.along(t, axes)
    if places is None:
        return None
    shape = [1] * t.ndim
    shape[axis] = len(places)
    return places.to(torch.int32).reshape(shape)


def _outputs(output: Any) -> dict[str, Tensor]:
    return {path: t for path, t in tensors_in("", output) if t.is_floating_point()}


def same_state(a: RandomState, b: RandomState) -> bool:
    return torch.equal(a.cpu, b.cpu) and all(torch.equal(a.cuda[d], b.cuda[d]) for d in a.cuda)
