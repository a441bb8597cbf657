"""Gradient that belongs to no sample: penalties on parameters, gradient penalties.

What a backward pass inside `attribution.unattributed()` adds to `.grad` is the difference before
and after. It goes through a step like one more sample's share (accumulation, clipping, the
contraction with the step's direction), and its value is the books' entry `unattributed`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from inrun.capture import Block, Capture, Offload, Stream
from inrun.factors import Dense, Factor


class Unowned(Block):
    """A block of one share, which is no sample's; an audit has the share itself too."""

    def __init__(self) -> None:
        super().__init__(1)
        self.gradients: dict[str, Tensor] = {}


class Before:
    """What `.grad` was when it was looked at.

    Args:
        parameters: by name.
    """

    def __init__(self, parameters: Mapping[str, Tensor]):
        self._parameters = dict(parameters)
        self._there = {n: p.grad for n, p in parameters.items()}
        self._versions = {n: g._version for n, g in self._there.items() if g is not None}
        self._before = {
            n: g.detach().clone() for n, g in self._there.items() if g is not None
        }  # a backward pass adds in place

    def added(self) -> dict[str, Tensor]:
        """What came in since, of the parameters that got anything."""
        found: dict[str, Tensor] = {}
        for name, p in self._parameters.items():
            now = p.grad
            if now is None or (
                now is self._there[name] and now._version == self._versions.get(name)
            ):
                continue
            before = self._before.get(name)
            difference = now.detach().clone() if before is None else now.detach() - before
            found[name] = difference
        return found


def unowned_block(capture: Capture, added: Mapping[str, Tensor]) -> Unowned:
    """The block of a gradient that is no sample's, known to the invariant but not yet compared.

    Under `stream` its value is left to the caller, by `streamed`.
    """
    block = Unowned()
    capture.check.discard_block()
    for name, gradient in added.items():
        factor: Factor = Dense(gradient.unsqueeze(0))
        capture.check.add(name, factor)
        if isinstance(capture, Offload):
            factor = factor.mapped(lambda t: t.to("cpu", copy=True))
        if not isinstance(capture, Stream):
            block.keep(name, factor)
    gradients = {name: p.grad for name, p in capture.trained.items()}
    capture.check.end_block(gradients, capture.low_precision, unowned=True)
    return block


@torch.no_grad()
def streamed(capture: Stream, block: Unowned, added: Mapping[str, Tensor]) -> None:
    """Contracts at once, as `stream` does with samples' shares."""
    for name, gradient in added.items():
        for values in capture.contract(name, [Dense(gradient.unsqueeze(0))]):
            block.values_BK = values if block.values_BK is None else block.values_BK + values


def samples_of(blocks: Iterable[Block]) -> list[Block]:
    """The blocks of samples among them."""
    return [block for block in blocks if not isinstance(block, Unowned)]
