"""Torch functions as a block's mode meets them, and the graph that they make, left as it is.

An extra backward pass over the graph changes nothing as long as every node can be run again. Those
of PyTorch can (`retain_graph`); a custom `autograd.Function` may overwrite what it saved, as fused
losses do, so everything that such nodes keep is put back after the pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from inrun.capture._sources import Source
from inrun.operations import outputs_of

BACKWARD = (torch.Tensor.backward, torch.autograd.backward)
GRADIENT = torch.autograd.grad
ADDS = {"add", "sub", "__add__", "__radd__", "__sub__", "__rsub__", "__iadd__", "add_", "sub_"}
FORM_ONLY = {"expand_as", "reshape_as", "to", "type_as", "view_as"}  # of the second argument
GETTERS = {  # properties that are tensors
    getattr(torch.Tensor, name).__get__ for name in ("T", "mT", "H", "mH", "data", "real", "imag")
}
QUIET = frozenset(  # that give no tensor, or none of the samples'
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

HOOKS = ("register_hook", "retain_grad")
NO_NAMES: dict[str, Any] = {}  # of an operation that was called without any


def keeps_graph(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether `backward` was told to: its arguments begin alike, as a method and a function."""
    named = [kwargs.get("retain_graph"), kwargs.get("create_graph")]
    return any(named) or any(args[2:4])


def active_modes() -> list[Any]:
    modes: list[Any] = torch.overrides._get_current_function_mode_stack()
    return modes


def recomputing() -> bool:
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


def own_nodes(returned: Any, arguments: Sequence[Tensor]) -> Any:
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


def tensors_among(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Tensors among arguments, also one level down in lists (`torch.cat`)."""
    found: list[Tensor] = []
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += [item for item in value if isinstance(item, Tensor)]
    return found


def copied(
    args: Sequence[Any], consumed: Mapping[int, Source]
) -> tuple[Sequence[Any], dict[int, Source]]:
    """The arguments before the first is overwritten; what derives from parameters is renamed."""
    first = args[0].detach().clone().requires_grad_(args[0].requires_grad)
    renamed = {id(first) if key == id(args[0]) else key: s for key, s in consumed.items()}
    return [first, *args[1:]], renamed


Node = Any
_same_version: Any = torch.autograd._unsafe_preserve_version_counter  # type: ignore[attr-defined]


def nodes_behind(starts: Sequence[Node], *, until: frozenset[Node] = frozenset()) -> list[Node]:
    """All nodes that a backward pass from these may run, none of them behind `until`."""
    found: dict[Node, None] = {}
    waiting = [node for node in starts if node is not None]
    while waiting:
        node = waiting.pop()
        if node in found or node in until:
            continue
        found[node] = None
        waiting += [following for following, _ in node.next_functions if following is not None]
    return list(found)


def custom(nodes: Iterable[Node]) -> list[Node]:
    """Those of `torch.autograd.Function`s."""
    return [n for n in nodes if isinstance(n, torch.autograd.function.BackwardCFunction)]


@contextmanager
def put_back(nodes: Sequence[Node]) -> Iterator[None]:
    """Attributes and saved tensors of custom nodes are as before on leaving, counters included."""
    kept: list[tuple[Any, dict[str, Any]]] = [(vars(n), dict(vars(n))) for n in nodes]
    held = [t for node in nodes for t in node.saved_tensors if t is not None]
    held += [t for _, before in kept for t in outputs_of(list(before.values()))]
    tensors = list({id(t): t for t in held}.values())
    copies = [t.detach().clone() for t in tensors]
    with ExitStack() as stack:
        for t in tensors:
            stack.enter_context(_same_version(t))
        try:
            yield
        finally:
            _restore(tensors, copies)
            for attributes, before in kept:
                attributes.clear()
                attributes.update(before)


@torch.no_grad()
def _restore(tensors: Sequence[Tensor], copies: Sequence[Tensor]) -> None:
    for t, before in zip(tensors, copies, strict=True):
        if not torch.equal(t, before):
            t.data.copy_(before)
