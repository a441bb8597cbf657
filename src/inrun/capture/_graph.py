"""The autograd graph of a training step, walked and left as it is.

An extra backward pass over it changes nothing as long as every node can be run again. Those of
PyTorch can (`retain_graph`); a custom `autograd.Function` may overwrite what it saved, as fused
losses do, so everything that such nodes keep is put back after the pass.

Calls that hide what they do: custom autograd functions and `torch.vmap`.

`torch.autograd.Function.apply` is no operation that a function mode sees, and inside `torch.vmap`
tensors have no batch axis. Within a block both are handed to the mode as one operation each, whose
owners an exchange tells and whose shares the fallback computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from inrun.operations import outputs_of

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


Intercept = Callable[[Callable[..., Any], str, tuple[Any, ...], dict[str, Any]], Any]
"""(function, name, args, kwargs) -> what the function returns."""


@contextmanager
def opaque_calls(intercept: Intercept) -> Iterator[None]:
    """Hands custom functions and vmaps to `intercept` while the block runs."""
    function = torch.autograd.Function
    apply = function.__dict__.get("apply")
    original: Any = function.apply.__func__  # type: ignore[attr-defined]

    def watched(cls: type, *args: Any, **kwargs: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            return original(cls, *args, **kwargs)

        if cls.__module__ == "torch.utils.checkpoint":  # its layers are seen when they run
            return call(*args, **kwargs)
        return intercept(call, f"{cls.__name__}.apply", args, kwargs)

    function.apply = classmethod(watched)  # type: ignore[assignment,method-assign]
    try:
        with _vmaps(intercept):
            yield
    finally:
        if apply is None:
            del function.apply
        else:
            function.apply = apply  # type: ignore[method-assign]


@contextmanager
def _vmaps(intercept: Intercept) -> Iterator[None]:
    """`torch.vmap` calls this function of a private module; without it, vmaps are told as gaps."""
    module = getattr(torch._functorch, "apis", None)
    original = getattr(module, "vmap_impl", None)
    if module is None or original is None:
        yield
        return

    own = 5  # func, in_dims, out_dims, randomness, chunk_size

    def watched(*given: Any, **kwargs: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            return original(*given[:own], *args, **kwargs)

        return intercept(call, "vmap", given[own:], kwargs)

    module.vmap_impl = watched
    try:
        yield
    finally:
        module.vmap_impl = original
