"""Sees every torch operation of a block: follows owners, and picks out uses of parameters.

A torch function mode rather than module hooks: rules are then about operations, and whatever a
module's class is called, the operations in it are the same. The mode only looks. It calls each
operation as it was called, and hangs one hook on the output of those that it wants the gradient
of; the numbers of the training step are those without it, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from inrun.capture._graph import custom
from inrun.capture._layouts import layouts_of, missing_reason
from inrun.capture._recomputed import Recomputed, saves_input
from inrun.capture._sources import DerivedTensor, GatheredParameters, Root, Source
from inrun.capture._uses import Missed, Use
from inrun.operations import RandomState, find, inside, is_in_place, outputs_of
from inrun.owners import SUM, Map, Owners, root_kind

_BACKWARD = (torch.Tensor.backward, torch.autograd.backward)
_GRAD = torch.autograd.grad
_ADDS = {"add", "sub", "__add__", "__radd__", "__sub__", "__rsub__", "__iadd__", "add_", "sub_"}
_FORM_ONLY = {"expand_as", "reshape_as", "to", "type_as", "view_as"}  # of the second argument
_GETTERS = {  # properties that are tensors
    getattr(torch.Tensor, name).__get__ for name in ("T", "mT", "H", "mH", "data", "real", "imag")
}
_QUIET = frozenset(  # that give no tensor, or none of the samples'
    (
        "size dim stride numel is_contiguous item tolist __len__ __bool__ __int__ __float__ "
        "__index__ __hash__ is_floating_point untyped_storage storage_offset data_ptr "
        "element_size get_device __repr__ __format__ register_hook nelement ndimension is_complex "
        "__contains__ _is_view __array__ numpy is_same_size storage __reduce_ex__ retain_grad "
        "is_nonzero __dlpack__ __dlpack_device__ register_post_accumulate_grad_hook is_pinned "
        "is_shared apply_ _set_grad_enabled set_grad_enabled is_signed is_inference is_tensor "
        "dense_dim sparse_dim result_type can_cast promote_types get_default_dtype manual_seed "
        "set_rng_state"
    ).split()
)

_HOOKS = ("register_hook", "retain_grad")
_NO_NAMES: dict[str, Any] = {}  # of an operation that was called without any


class _Arrival:
    """A hook on the node of a use's output: hands the gradient on when the backward pass comes by.

    One object, where a closure would be seven: there are as many as uses.
    """

    __slots__ = ("_mode", "_position", "_slot", "_use")

    def __init__(self, mode: CaptureMode, use: Use, position: int, slot: int):
        self._mode, self._use, self._position, self._slot = mode, use, position, slot

    def __call__(self, gradients: tuple[Tensor | None, ...]) -> None:
        mode, use, gradient = self._mode, self._use, gradients[self._slot]
        if gradient is None:
            return
        if mode.tinting is not None:
            mode.tinting(use, self._position, gradient)
        elif not mode.muted:
            with unseen():
                use.receive(self._position, gradient)
                if mode.when_complete is not None and use.complete:
                    mode.when_complete(use)


class CaptureMode(TorchFunctionMode):
    """Records the uses of `roots` in a block.

    Args:
        roots: the trained parameters.
        constants: ids of tensors that are the same for all samples (buffers, other parameters).
        owners: says whose every tensor's slots are.
        gathered: finds the parameters of a sharded model.
    """

    def __init__(
        self,
        roots: Sequence[Root],
        constants: frozenset[int],
        owners: Owners,
        gathered: GatheredParameters | None = None,
    ):
        super().__init__()
        self.owners = owners
        self.uses: list[Use] = []
        self.missed: list[Missed] = []
        self.names: list[str] = []  # of operations, in their order
        self.hooked = False  # whether a hook was hung on a tensor of the graph
        self._sources: dict[int, Source] = {id(root.parameter): root for root in roots}
        self._constants, self._samples = set(constants), owners.samples
        self._gathered = gathered
        self._alive: list[Tensor] = []  # derived tensors: an id is theirs while they live
        self.muted = self.over = False
        self.after_backward: Callable[[], None] | None = None
        self.before_backward: Callable[[Sequence[Tensor], Any], None] | None = None
        self.tinting: Callable[[Use, int, Tensor], None] | None = None  # gets gradients instead
        self.when_complete: Callable[[Use], None] | None = None  # all its gradients have arrived
        self.recomputed: Recomputed | None = None  # where checkpoints bring inputs again
        self.passes_again = False  # whether the graph is kept for a further backward pass
        self.started_from: set[str] = set()  # kinds of what backward passes began with
        self.root_why = ""
        self._in_custom = False  # within a custom function's backward pass
        self._depth = 0  # of backward passes within each other
        self._handed: set[int] = set()  # ids of what the vmap under way was called with

    @property
    def operations(self) -> int:
        """How many operations were seen."""
        return len(self.names)

    @property
    def skipped(self) -> dict[str, str]:
        """Parameters with a use whose shares cannot be told, and why."""
        return {n: m.reason for m in self.missed if m.reached and not m.term for n in m.names}

    @property
    def terms(self) -> dict[str, str]:
        """Parameters of which a term of no sample was added to the loss, and how."""
        return {n: m.reason for m in self.missed if m.reached and m.term for n in m.names}

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or _NO_NAMES
        if function in _BACKWARD:
            return self._backward(function, args, kwargs)
        again = _recomputing()
        if self.over or self._in_custom or (again and not self._fills):
            return function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        if name in _QUIET or (name == "__get__" and function not in _GETTERS):
            self.hooked |= name in _HOOKS and args[0].grad_fn is not None
            return function(*args, **kwargs)
        if function is _GRAD:
            return function(*args, **kwargs) if again else self._inner_gradient(args, kwargs)
        stepped = inside(function)
        if stepped is not None:
            with self:
                return stepped(*args, **kwargs)
        if again:
            self._fill(name, args, kwargs)
            return function(*args, **kwargs)
        return self._operation(function, name, args, kwargs, _tensors(args, kwargs))

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
        """A call whose inside is hidden, as one operation; see `_opaque`."""
        again = _recomputing()
        if self.over or (again and not self._fills) or self not in _active_modes():
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
            self._learn_gathered(self._gathered, tensors)
        sources = self._sources
        consumed = {id(t): sources[id(t)] for t in tensors if id(t) in sources}
        if torch._C._functorch.peek_interpreter_stack() is not None:
            consumed = {key: s for key, s in consumed.items() if key not in self._handed}
            self._miss(consumed, "it is used inside torch.vmap or torch.func, whose tensors have "
                       "no batch axis")  # fmt: skip
            return function(*args, **kwargs)
        call = function, name, args, kwargs, tensors
        used = bool(consumed) and torch.is_grad_enabled()
        if not used or (name in _FORM_ONLY and id(args[0]) not in consumed):
            return self.owners.run(*call)[0]
        random = RandomState.now(tensors) if operation is None else None
        seen_args, seen = args, function
        if name == "__setitem__":
            seen_args, consumed = _copied(args, consumed)
            seen = set_item
        elif is_in_place(name):  # it is about to overwrite what its rule will need
            seen_args, consumed = _copied(args, consumed)
        returned, outs = self.owners.run(*call, lambda given: _own_nodes(given, tensors))
        use = self._note(seen, name, seen_args, kwargs, consumed, outs, random)
        if place is not None and use is not None and saves_input(name, consumed, tensors):
            place.wait(use)
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
        self.passes_again |= _keeps_graph(args, kwargs)
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
        self.muted = True
        try:
            returned = torch.autograd.grad(*args, **kwargs)
        finally:
            self.muted = False
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
            added = name in _ADDS and all(m is None or m.low == SUM == m.high for m in maps)
            self._miss(consumed, reason, outputs, term=added)
            return None
        layouts = layouts_of(maps, self._samples)
        how = next((m.how for m in maps if m is not None and m.how != "followed"), "followed")
        use = Use(function, args, kwargs, consumed, layouts, self._samples, random, how)
        self.uses.append(use)
        for i, out in enumerate(outputs):
            if out.grad_fn is not None:
                self._when_reached(out, i, use)
        return use

    def _per_row(self, rows: Tensor, m: Map) -> Map:
        """Whose the terms are that an operation has one of per row, also where it sums them."""
        own = self.owners.of(rows)
        if m.ndim or own is None:
            return m
        return own.remembered("terms", lambda: own.derived(own.codes.amin(-1)))

    def _miss(
        self, consumed: Mapping[int, Source], reason: str, outputs: Sequence[Tensor] = (),
        *, term: bool = False,
    ) -> None:  # fmt: skip
        """A use whose shares cannot be told: its parameters are gaps, if gradient comes by."""
        names = _names(consumed)
        if not names or not torch.is_grad_enabled():
            return
        missed = Missed(names, reason, reached=not outputs, term=term)
        self.missed.append(missed)
        for out in outputs:
            if out.grad_fn is not None:
                out.grad_fn.register_prehook(self._reaches(missed))

    def _reaches(self, missed: Missed) -> Callable[[Any], None]:
        def reach(_: Any) -> None:
            missed.reached |= not self.muted and self.tinting is None

        return reach

    def _when_reached(self, out: Tensor, position: int, use: Use) -> None:
        """Hands the output's gradient to the use when the backward pass comes by.

        The hook hangs on the graph's node, not on the tensor: a tensor that is overwritten later
        (`x += p`, `relu_`) moves to a new node, and a hook on it could not be paired with the
        operation any more.
        """
        assert out.grad_fn is not None
        out.grad_fn.register_prehook(_Arrival(self, use, position, out.output_nr))


def _keeps_graph(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether `backward` was told to: its arguments begin alike, as a method and a function."""
    named = [kwargs.get("retain_graph"), kwargs.get("create_graph")]
    return any(named) or any(args[2:4])


def unseen() -> AbstractContextManager[object]:
    """For the library's own work inside a backward pass: no mode sees it."""
    found: AbstractContextManager[object] = torch._C.DisableTorchFunction()
    return found


def _active_modes() -> list[Any]:
    modes: list[Any] = torch.overrides._get_current_function_mode_stack()
    return modes


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


def _own_nodes(returned: Any, arguments: Sequence[Tensor]) -> Any:
    """The same tensors, on nodes of the graph that are theirs alone.

    `linear` gives a view for inputs of three axes and more. If the model then overwrites it
    (`ReLU(inplace=True)`), autograd writes the history of views anew and the node that was hooked
    is not in it. And of an operation with several outputs one may lie on the way to another (an
    LSTM cell's state): a hook on its node would see both gradients. The numbers and the memory are
    the same.
    """
    if isinstance(returned, tuple) and type(returned) is tuple:
        graded = [t for t in returned if isinstance(t, Tensor) and t.grad_fn is not None]
        if len({t.grad_fn for t in graded}) > 1:
            return tuple(torch.ops.aten.alias(t) if isinstance(t, Tensor) else t for t in returned)
        return returned
    if not isinstance(returned, Tensor) or not returned._is_view() or not returned.requires_grad:
        return returned
    storage = returned.untyped_storage()._cdata
    if any(t.untyped_storage()._cdata == storage for t in arguments):
        return returned  # a view of something that the model holds
    return torch.ops.aten._unsafe_view(returned, list(returned.shape))


def _tensors(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Tensors among arguments, also one level down in lists (`torch.cat`)."""
    found: list[Tensor] = []
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += [item for item in value if isinstance(item, Tensor)]
    return found


def _names(consumed: Mapping[int, Source]) -> tuple[str, ...]:
    """Names of the scored parameters behind what an operation consumed."""
    roots = {root for source in consumed.values() for root in source.roots if root.scored}
    return tuple(sorted(root.name for root in roots))


def _copied(
    args: Sequence[Any], consumed: Mapping[int, Source]
) -> tuple[Sequence[Any], dict[int, Source]]:
    """The arguments before the first is overwritten; what derives from parameters is renamed."""
    first = args[0].detach().clone().requires_grad_(args[0].requires_grad)
    renamed = {id(first) if key == id(args[0]) else key: s for key, s in consumed.items()}
    return [first, *args[1:]], renamed
