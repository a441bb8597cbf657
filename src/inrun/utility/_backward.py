"""Gradients by `backward()` where `torch.autograd.grad` cannot be had, without a trace in `.grad`.

Sharded parameters get their gradients from hooks on a whole backward pass, which fills `.grad`.
What is there now is set aside and put back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def gradients(loss: Tensor, wanted: Sequence[Tensor], touched: Iterable[Tensor]) -> list[Tensor]:
    """The loss's derivative by each of `wanted`, zero where the loss does not use one.

    Args:
        loss: a scalar.
        wanted: leaves.
        touched: every leaf that the backward pass may reach, `wanted` among them.
    """
    with _grads_aside([*touched, *wanted]):
        torch.autograd.backward(loss)
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in wanted]


@contextmanager
def _grads_aside(leaves: Iterable[Tensor]) -> Iterator[None]:
    before = {id(p): (p, p.grad) for p in leaves if p.requires_grad}
    tables = [p._post_accumulate_grad_hooks for p, _ in before.values()]
    tables = [table for table in tables if table]
    kept = [dict(table) for table in tables]
    try:
        for p, _ in before.values():
            p.grad = None
        for table in tables:
            table.clear()
        yield
    finally:
        for p, gradient in before.values():
            p.grad = gradient
        for table, hooks in zip(tables, kept, strict=True):
            table.update(hooks)
