"""One use of a parameter, seen after the backward pass: operation, arguments, output gradient.

A layer is the operations that it calls, so rules are written for operations (`linear`, `conv2d`,
`mul`): any module that calls them is covered, whatever its class. A rule needs to know which part
of the output belongs to which sample: its `Layout` where samples follow one another along an axis,
as they mostly do, or else its `Slots`.

Letters: B samples; S slots of a sample along the batch axis (1, or more where batch and positions
were flattened into one axis); T positions; the last axis of rows is the features'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Layout(NamedTuple):
    """Which axis of an operation's output runs over samples.

    `axis` None: the whole output belongs to the one sample. `sample_major`: where the axis is
    longer than the batch, a sample's slots lie next to each other (the usual flattening); if not,
    samples alternate.
    """

    axis: int | None
    sample_major: bool = True

    def split(self, t: Tensor, samples: int) -> Tensor:
        """(B, S, *the other axes in their order)."""
        if self.axis is None:
            return t.unsqueeze(0).unsqueeze(0)
        if self.axis == 0 and t.shape[0] == samples:
            return t.unsqueeze(1)
        slots = t.shape[self.axis] // samples if samples else 1
        before, after = t.shape[: self.axis], t.shape[self.axis + 1 :]
        if self.sample_major:
            apart = t.reshape(*before, samples, slots, *after)
            return apart.movedim((self.axis, self.axis + 1), (0, 1))
        apart = t.reshape(*before, slots, samples, *after)
        return apart.movedim((self.axis + 1, self.axis), (0, 1))

    def only(self, gradient: Tensor, sample: int, samples: int) -> Tensor:
        """The gradient with every other sample's part set to zero."""
        masked = torch.zeros_like(gradient)
        self.split(masked, samples)[sample] = self.split(gradient, samples)[sample]
        return masked


class Slots:
    """An output whose slots belong to samples as an owner map says, in no order.

    Each slot is split off as a row of its own: (P, 1, *the other axes), and sums by owner come
    later (`inrun.factors.by_owner`). Slots of no sample are left out.

    Args:
        codes: the owner map; axes as long as the output's, or 1.
        samples: B.
    """

    def __init__(self, codes: Tensor, samples: int):
        self._codes, self.samples = codes, samples
        self.axes = tuple(i for i, size in enumerate(codes.shape) if size != 1)
        flat = codes.flatten().long()
        self._kept = None if bool((flat >= 0).all()) else (flat >= 0).nonzero().flatten()
        self._owner_P = flat if self._kept is None else flat[self._kept]
        self._there: dict[torch.device, tuple[Tensor, Tensor | None]] = {}

    @property
    def axis(self) -> int | None:
        """The one axis along which owners vary, None where there is none, -1 for several."""
        return None if not self.axes else self.axes[0] if len(self.axes) == 1 else -1

    def owners(self, device: torch.device) -> Tensor:
        """(P,): the owner of each slot that has one."""
        return self._on(device)[0]

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor | None]:
        if device not in self._there:
            kept = None if self._kept is None else self._kept.to(device)
            self._there[device] = self._owner_P.to(device), kept
        return self._there[device]

    def split(self, t: Tensor, samples: int) -> Tensor:
        """(P, 1, *the other axes in their order)."""
        rest = [i for i in range(t.ndim) if i not in self.axes]
        flat = t.permute(*self.axes, *rest).reshape(-1, 1, *[t.shape[i] for i in rest])
        kept = self._on(t.device)[1]
        return flat if kept is None else flat[kept]

    def only(self, gradient: Tensor, sample: int, samples: int) -> Tensor:
        """The gradient with every other sample's part set to zero."""
        return gradient * (self._codes == sample).to(gradient.device)

    def strays(self, gradient: Tensor) -> bool:
        """Whether slots of no sample carry gradient."""
        if self._kept is None:
            return False
        nobodys = (self._codes < 0).to(gradient.device)
        return bool(((gradient != 0) & nobodys).any())


@dataclass(slots=True)
class Call:
    """An operation with its arguments bound by name and its output's gradient.

    `others`: gradients of its further outputs, where its rule wants them.
    """

    name: str
    arguments: Mapping[str, Any]
    gradient: Tensor
    layout: Layout | Slots
    samples: int
    others: tuple[Tensor | None, ...] = ()

    def __getitem__(self, argument: str) -> Any:
        """The argument of that name, None where it was not given."""
        return self.arguments.get(argument)

    def split(self, t: Tensor) -> Tensor:
        """(B, S, *other axes) of a tensor that is laid out like the output."""
        return self.layout.split(t, self.samples)

    def summed(self, t: Tensor) -> Tensor:
        """(B, *other axes): a sample's slots added up."""
        if self._is_apart(t):
            return t
        split = self.split(t)
        return split.squeeze(1) if split.shape[1] == 1 else split.sum(1)

    def _is_apart(self, t: Tensor) -> bool:
        """Whether each row is a sample's, as of most tensors."""
        layout = self.layout
        return isinstance(layout, Layout) and layout.axis == 0 and t.shape[0] == self.samples

    def images(self, t: Tensor, *, batched: bool) -> Tensor:
        """(B, S, *other axes) of a tensor whose axis 0 holds images, if it has such an axis."""
        one = self.layout.axis is None
        return t.unsqueeze(0) if one and batched else self.split(t)

    def rows(self, t: Tensor) -> Tensor:
        """(B, T, features) of a tensor that is laid out like the output up to its last axis."""
        if t.ndim == 2 and self._is_apart(t):
            return t.unsqueeze(1)
        split = self.split(t)
        return (
            split.flatten(1, -2)
            if split.ndim > 3
            else split.reshape(split.shape[0], split.shape[1:-1].numel(), split.shape[-1])
        )


def over_rows(rows_BTM: Tensor) -> Tensor:
    """Sum over positions, (B, M); on a CPU by a matrix product, which is faster there."""
    if rows_BTM.shape[1] == 1:
        return rows_BTM.squeeze(1)
    if rows_BTM.device.type != "cpu" or rows_BTM.dtype not in (torch.float32, torch.float64):
        return rows_BTM.sum(1)
    B, T, _ = rows_BTM.shape
    return torch.bmm(rows_BTM.new_ones(1, 1, T).expand(B, 1, T), rows_BTM).squeeze(1)
