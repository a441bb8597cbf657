"""Uses of parameters in a block as a mode records them, and those whose shares cannot be told.

Where samples follow one another in equal parts along one axis, as they mostly do, a use's layout is
that axis; any other owner map is given slot by slot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from inrun.capture._block_setting import unseen
from inrun.capture._sources import Source, scored_roots
from inrun.capture._uses import Use
from inrun.errors import MisuseError
from inrun.operations import Layout, Slots
from inrun.owners import MIXED, NONE, SUM, UNKNOWN, Map, Owners, adopted


@dataclass
class Missed:
    """A use whose shares cannot be told: of which parameters, why, and whether it mattered.

    `term`: a term of parameters alone, added to the loss: its gradient is of no sample, and the
    invariant will say so.
    """

    names: tuple[str, ...]
    reason: str
    reached: bool
    term: bool = False


class _Arrival:
    """A hook on the node of a use's output: hands the gradient on when the backward pass comes by.

    One object, where a closure would be seven: there are as many as uses.
    """

    __slots__ = ("_mode", "_position", "_slot", "_use")

    def __init__(self, mode: Recorded, use: Use, position: int, slot: int):
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


class Recorded(TorchFunctionMode):
    """What a block's mode has come upon so far."""

    def __init__(self, owners: Owners):
        super().__init__()
        self.owners = owners
        self.uses: list[Use] = []
        self.missed: list[Missed] = []
        self.names: list[str] = []  # of operations, in their order
        self.muted = self.over = False
        self.tinting: Callable[[Use, int, Tensor], None] | None = None  # gets gradients instead
        self.when_complete: Callable[[Use], None] | None = None  # all its gradients have arrived
        self.started_from: set[str] = set()  # kinds of what backward passes began with

    @property
    def skipped(self) -> dict[str, str]:
        """Parameters with a use whose shares cannot be told, and why."""
        return {n: m.reason for m in self.missed if m.reached and not m.term for n in m.names}

    @property
    def terms(self) -> dict[str, str]:
        """Parameters of which a term of no sample was added to the loss, and how."""
        return {n: m.reason for m in self.missed if m.reached and m.term for n in m.names}

    def require_uses(self) -> None:
        """Raises where nothing can be scored, each cause in words of its own."""
        entries = self.owners.entries
        if not self.names:
            raise MisuseError(
                "No torch operation ran inside attribution.batch(ids). Run the forward and the "
                "backward pass inside the block."
            )
        if not entries.any and not self.uses:
            raise MisuseError(entries.missing())
        if not self.uses and self.missed:
            m = self.missed[0]
            raise MisuseError(
                f"No sample's share can be told in this block; {m.names[0]}: {m.reason}. Samples "
                "that lie in rows of their own, or slots= where rows hold several, can be told "
                "apart."
            )
        if not self.uses:
            raise MisuseError(
                "No operation inside attribution.batch(ids) used a parameter that the attached "
                "optimizer trains together with the samples' data. The forward pass ran outside "
                "the block or under no_grad (as in losses with backward passes of their own: the "
                "cached ones of sentence-transformers), another model ran, or a part is compiled "
                "in a way that PyTorch cannot switch off. Run this model's forward pass with its "
                "graph, and one backward pass, inside."
            )
        if not self.started_from and not any(use.reached for use in self.uses):
            raise MisuseError(
                "No gradient came back inside attribution.batch(ids). Call loss.backward() inside "
                "the block: shares are read while it runs."
            )
        if not any(use.reached for use in self.uses) and not self.skipped:
            raise MisuseError(
                "The backward pass inside attribution.batch(ids) reached no parameter's use that "
                "the block saw: the loss does not depend on this forward pass, or its gradient was "
                "detached."
            )

    def _record(self, use: Use, outputs: Sequence[Tensor]) -> None:
        """Files a use, which gets its outputs' gradients when the backward pass comes by.

        The hooks hang on the graph's nodes, not on the tensors: a tensor that is overwritten later
        (`x += p`, `relu_`) moves to a new node, and a hook on it could not be paired with the
        operation any more.
        """
        self.uses.append(use)
        for i, out in enumerate(outputs):
            if out.grad_fn is not None:
                out.grad_fn.register_prehook(_Arrival(self, use, i, out.output_nr))

    def _miss(
        self, consumed: Mapping[int, Source], reason: str, outputs: Sequence[Tensor] = (),
        *, term: bool = False,
    ) -> None:  # fmt: skip
        """A use whose shares cannot be told: its parameters are gaps, if gradient comes by."""
        names = tuple(sorted(root.name for root in scored_roots(consumed.values())))
        if not names or not torch.is_grad_enabled():
            return
        missed = Missed(names, reason, reached=not outputs, term=term)
        self.missed.append(missed)

        def reach(_: Any) -> None:
            missed.reached |= not self.muted and self.tinting is None

        for out in outputs:
            if out.grad_fn is not None:
                out.grad_fn.register_prehook(reach)


_REASONS = {
    MIXED: "its slots mix samples ({why})",
    SUM: "it is computed from a sum over samples ({why})",
    UNKNOWN: "whose slots are whose is not known after {why}",
}


def missing_reason(name: str, maps: Sequence[Map | None]) -> str | None:
    """Why a use's shares cannot be told; None where they can."""
    for m in maps:
        if m is not None and m.low < NONE:
            code = next(c for c in (UNKNOWN, MIXED, SUM) if m.has(c))
            return f"{name}: " + _REASONS[code].format(why=m.why or name)
    return None


def layouts_of(maps: Sequence[Map | None], samples: int) -> Sequence[Layout | Slots | None]:
    """Each output's layout; None where it is the same for all samples."""
    m = maps[0] if len(maps) == 1 else None
    if m is not None:  # one list for all operations of such outputs
        return m.remembered(("layouts", samples), lambda: [_layout(m, samples)])
    return [
        None if m is None else m.remembered(("layout", samples), lambda m=m: _layout(m, samples))  # type: ignore[misc]
        for m in maps
    ]


def _layout(m: Map, samples: int) -> Layout | Slots:
    codes = m.codes
    if m.low == NONE < m.high:
        codes = adopted(codes, samples, alone=False)
    if samples == 1 and bool((codes >= 0).all()):
        return Layout(None)
    axes = [i for i, size in enumerate(codes.shape) if size != 1]
    if len(axes) == 1 and codes.numel() and codes.numel() % samples == 0:
        flat, slots = codes.flatten(), codes.numel() // samples
        order = torch.arange(samples, dtype=codes.dtype)
        for layout, regular in (
            (Layout(axes[0]), order.repeat_interleave(slots)),
            (Layout(axes[0], False), order.repeat(slots)),
        ):
            if torch.equal(flat, regular):
                return layout
    return Slots(codes, samples)
