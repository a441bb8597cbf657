"""One use of a parameter, seen after the backward pass: operation, arguments, output gradient.

A layer is the operations that it calls, so rules are written for operations (`linear`, `conv2d`,
`mul`): any module that calls them is covered, whatever its class. A rule needs to know which part
of the output belongs to which sample, its `Layout`.

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
        slots = t.shape[self.axis] // samples if samples else 1
        before, after = t.shape[: self.axis], t.shape[self.axis + 1 :]
        if self.sample_major:
            apart = t.reshape(*before, samples, slots, *after)
            return apart.movedim((self.axis, self.axis + 1), (0, 1))
        apart = t.reshape(*before, slots, samples, *after)
        return apart.movedim((self.axis + 1, self.axis), (0, 1))


@dataclass(frozen=True)
class Call:
    """An operation with its arguments bound by name and its output's gradient."""

    name: str
    arguments: Mapping[str, Any]
    gradient: Tensor
    layout: Layout
    samples: int

    def __getitem__(self, argument: str) -> Any:
        """The argument of that name, None where it was not given."""
        return self.arguments.get(argument)

    def split(self, t: Tensor) -> Tensor:
        """(B, S, *other axes) of a tensor that is laid out like the output."""
        return self.layout.split(t, self.samples)

    def rows(self, t: Tensor) -> Tensor:
        """(B, T, features) of a tensor that is laid out like the output up to its last axis."""
        split = self.split(t)
        return (
            split.flatten(1, -2)
            if split.ndim > 3
            else split.reshape(split.shape[0], split.shape[1:-1].numel(), split.shape[-1])
        )


def over_rows(rows_BTM: Tensor) -> Tensor:
    """Sum over positions, (B, M); on a CPU by a matrix product, which is faster there."""
    if rows_BTM.device.type != "cpu" or rows_BTM.dtype not in (torch.float32, torch.float64):
        return rows_BTM.sum(1)
    return torch.matmul(rows_BTM.new_ones(1, rows_BTM.shape[1]), rows_BTM).squeeze(1)
