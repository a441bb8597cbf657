"""Tinted gradients: at every use, is the gradient in a slot that of the slot's owner alone?

Before the loop's own backward pass two more run over the same graph, the second with the gradient
of sample i times a random number w_i, from where a sum over samples begins. At every slot of every
use's output the second gradient must then be w_owner times the first. A wrong owner, samples that
mix out of sight, a sample's gradient that another's slots receive: all break the ratio. Nothing of
it reaches `.grad`, random numbers or hooks of the loop's.

Where a batch is one sample, samples interact, or a node of the graph cannot be run again, there is
nothing to compare, and it is said why.

Letters: B samples, P rows of a use's output (samples, or slots that have an owner).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from inrun.capture._functions import Node, custom, nodes_behind, put_back
from inrun.capture._mode import CaptureMode
from inrun.capture._uses import Use
from inrun.operations import Slots
from inrun.owners import MIXED, SUM, UNKNOWN, Op
from inrun.owners import Map as OwnerMap
from inrun.utility import restored, swapped

Start = tuple[Tensor, Tensor | None]
"""What a backward pass begins with, and the gradient that it is given."""


class CannotTellError(Exception):
    """There is nothing to compare; the reason is the message."""


class Verdict(NamedTuple):
    """Parameters that agreed, the others with what is wrong, and what is to be told besides."""

    right: frozenset[str]
    wrong: Mapping[str, str]
    note: str = ""


class _Border(NamedTuple):
    """An operation at which sums over samples begin: its outputs' nodes, its samples' arguments.

    `stops` are the nodes of all its arguments: what lies between is its own.
    """

    outputs: tuple[Node, ...]
    stops: frozenset[Node]
    arguments: tuple[tuple[Node, int, OwnerMap], ...]


class Borders:
    """Takes note of where sums over samples begin, while the forward pass runs."""

    def __init__(self) -> None:
        self.found: list[_Border] = []
        self.partial = ""  # an operation that sums over samples in some slots and not in others

    def __call__(self, op: Op, maps: Sequence[OwnerMap | None]) -> None:
        if not any(m is not None and m.low <= SUM for m in maps):
            return
        arguments = tuple(
            (node, number, m)
            for (node, number), m in zip(op.nodes, op.maps, strict=True)
            if node is not None and m is not None and m.high >= 0
        )
        graded = [
            (out, m) for out, m in zip(op.outs, maps, strict=True)
            if m is not None and out.grad_fn is not None and m.has(SUM)
        ]  # fmt: skip
        if not arguments or not graded:
            return
        if any(m.high >= 0 for _, m in graded):
            self.partial = self.partial or op.name
        stops = frozenset(node for node, _ in op.nodes if node is not None)
        self.found.append(_Border(tuple(out.grad_fn for out, _ in graded), stops, arguments))


def tinted(
    mode: CaptureMode, borders: Borders, starts: Sequence[Start], model: nn.Module,
    parameters: Sequence[Tensor], *, alone: bool,
) -> Verdict:  # fmt: skip
    """Runs both passes and compares; CannotTellError where nothing can be compared.

    `alone`: whether this process is the only one.
    """
    _refuse(mode, borders, starts, model)
    behind = nodes_behind([t.grad_fn for t, _ in starts])
    names = {node.name() for node in behind}
    if any(name.startswith("CheckpointFunction") for name in names):
        raise CannotTellError("a checkpoint with use_reentrant=True takes one backward pass only")
    if any(name.startswith("CompiledFunction") for name in names):
        raise CannotTellError("a part of the step is compiled, and takes one backward pass only")
    own = custom(behind)
    if own and not alone:
        raise CannotTellError("a custom autograd function may wait for the other processes")
    w_B = _weights(mode.owners.samples)
    passes = _Passes(mode, w_B)
    colored = [(t, _start(t, g, mode.owners.of(t), w_B)) for t, g in starts]
    edges = _edges(borders, frozenset(behind))
    with restored(model):
        with put_back(own):
            passes.run(starts, parameters, [])
        with put_back(own):
            passes.run(colored, parameters, edges)
    return passes.verdict()


def _refuse(mode: CaptureMode, borders: Borders, starts: Sequence[Start], model: nn.Module) -> None:
    owners = mode.owners
    if owners.samples < 2:
        raise CannotTellError("a block of one sample has nothing to tell apart")
    for t, _ in starts:
        m = owners.of(t)
        for code, what in ((MIXED, "samples interact before the loss"),
                           (UNKNOWN, "whose the loss's terms are is not known")):  # fmt: skip
            if m is not None and m.has(code):
                raise CannotTellError(f"{what} ({m.why})")
    passing = [note for note, graded in owners.interactions.items() if graded]
    if passing:
        raise CannotTellError(f"samples interact before the loss ({passing[0]})")
    if borders.partial:
        raise CannotTellError(f"{borders.partial} sums over samples in some of its slots only")
    everywhere = torch.nn.modules.module._global_backward_hooks
    hooks = any(m._backward_hooks or m._backward_pre_hooks for m in model.modules())
    if mode.hooked or hooks or everywhere:
        raise CannotTellError("hooks that hang on activations would see further backward passes")


def _weights(samples: int) -> Tensor:
    """A random weight for each sample, between a half and one and a half."""
    return torch.rand(samples, generator=torch.Generator().manual_seed(samples)) + 0.5


def _start(t: Tensor, given: Tensor | None, m: OwnerMap | None, w_B: Tensor) -> Tensor | None:
    """The gradient at the pass's beginning; a loss that is one sample's is tinted there."""
    if m is None or m.high < 0:
        return given
    gradient = torch.ones_like(t) if given is None else given
    return gradient * _tint(m.codes, w_B).to(gradient.device, gradient.dtype)


def _tint(codes: Tensor, w_B: Tensor) -> Tensor:
    return torch.where(codes >= 0, w_B[codes.clamp(min=0).long()], 1.0)


_Edge = tuple[Node, dict[int, OwnerMap]]


def _edges(borders: Borders, behind: frozenset[Node]) -> list[_Edge]:
    """Nodes inside operations at a border, with the inputs that lead to samples' slots.

    An operation is one node or several (`cross_entropy`), and one argument may be consumed by
    other operations too: what is tinted is the edge between the two.
    """
    found: dict[Node, dict[int, OwnerMap]] = {}
    for border in borders.found:
        ends = {(node, number): m for node, number, m in border.arguments}
        outputs = [node for node in border.outputs if node in behind]
        for node in nodes_behind(outputs, until=border.stops):
            for place, edge in enumerate(node.next_functions):
                if edge in ends:
                    found.setdefault(node, {})[place] = ends[edge]
    return list(found.items())


class _Passes:
    """What uses receive in the first and in the second pass."""

    def __init__(self, mode: CaptureMode, w_B: Tensor):
        self._mode, self._w_B = mode, w_B
        self._first: dict[tuple[int, int], tuple[Use, Tensor, Tensor]] = {}
        self._second: dict[tuple[int, int], Tensor] = {}
        self._tinted = False

    def run(
        self, starts: Sequence[Start], parameters: Sequence[Tensor], edges: Sequence[_Edge]
    ) -> None:
        """One backward pass, tinted at these edges."""
        tensors, gradients = [t for t, _ in starts], [g for _, g in starts]
        with swapped(self._mode, "tinting", self._receive), ExitStack() as hooks:
            for node, places in edges:
                hooks.callback(node.register_hook(self._hook(places)).remove)
            torch.autograd.grad(
                tensors, [p for p in parameters if p.requires_grad], gradients,
                retain_graph=True, allow_unused=True,
            )  # fmt: skip
        self._tinted = True

    def _hook(self, places: Mapping[int, OwnerMap]) -> Any:
        def tint(inputs: tuple[Tensor | None, ...], _: Any) -> tuple[Tensor | None, ...]:
            changed = list(inputs)
            for place, m in places.items():
                g = inputs[place]
                if g is not None:
                    changed[place] = g * _tint(m.codes, self._w_B).to(g.device, g.dtype)
            return tuple(changed)

        return tint

    def _receive(self, use: Use, position: int, gradient: Tensor) -> None:
        """Keeps of each row one number: its product with a random row."""
        layout = use.layouts[position]
        if layout is None or gradient.is_complex() or not gradient.ndim:  # a sum has no slots
            return
        rows = layout.split(gradient.detach(), use.samples)
        flat = rows.reshape(len(rows), -1).double()
        generator = torch.Generator().manual_seed(flat.shape[1])
        probe = torch.randn(flat.shape[1], generator=generator, dtype=torch.float64)
        products = flat @ probe.to(flat.device)
        key = (id(use), position)
        if self._tinted:
            self._second[key] = products.cpu()
        else:
            self._first[key] = use, products.cpu(), torch.linalg.vector_norm(flat, dim=1).cpu()

    def verdict(self) -> Verdict:
        largest = max(
            (float(n.max()) for _, _, n in self._first.values() if n.numel()), default=0.0
        )
        coarsest = max((use.dtype for use, _, _ in self._first.values()),
                       key=lambda d: torch.finfo(d).eps, default=torch.float32)  # fmt: skip
        right: set[str] = set()
        wrong: dict[str, str] = {}
        for key, (use, products, norms) in self._first.items():
            if key not in self._second or not norms.numel():
                continue
            off = self._off(use, key, products, norms, largest, coarsest)
            if off is None:
                right |= use.roots
            else:
                wrong |= dict.fromkeys(
                    use.roots,
                    f"{use.name}: some slots' gradient is not that of the sample that they are "
                    f"taken for (off by {off:.1%} in tinted gradients): samples mix or change "
                    "places where it cannot be seen",
                )
        return Verdict(frozenset(right - set(wrong)), wrong)

    def _off(
        self, use: Use, key: tuple[int, int], products: Tensor, norms: Tensor, largest: float,
        dtype: torch.dtype,
    ) -> float | None:  # fmt: skip
        """How far the worst row is off, relative to its gradient; None where all agree."""
        layout = use.layouts[key[1]]
        if isinstance(layout, Slots):
            owners = layout.owners(torch.device("cpu"))
        else:
            owners = torch.arange(len(products))
        typical = norms.square().mean().sqrt()
        error = (self._second[key] - self._w_B.double()[owners] * products).abs()
        floor = 100 * torch.finfo(dtype).eps * largest
        if bool((error <= tolerance_of_ratio(dtype) * (norms + typical) + floor).all()):
            return None
        if not bool(torch.isfinite(products).all()):  # a step that will be skipped
            return None
        return float((error / (norms + typical + floor)).max())


def tolerance_of_ratio(dtype: torch.dtype) -> float:
    """How far rounding alone may take a ratio, relative to the gradient in its row."""
    return {torch.float64: 1e-5, torch.float32: 2e-3}.get(dtype, 1e-1)
