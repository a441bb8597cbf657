"""The autograd graph of a training step, walked and left as it is.

An extra backward pass over it changes nothing as long as every node can be run again. Those of
PyTorch can (`retain_graph`); a custom `autograd.Function` may overwrite what it saved, as fused
losses do, so everything that such nodes keep is put back after the pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
