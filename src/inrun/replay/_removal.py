"""What taking a sample out means for those that stay, and what it does to the gradient.

With c_i a row's gradient share, c the sum over its block, and f_i the part of the block's mean that
the row is (1/B where all rows weigh the same), the block's gradient changes by

    drop          -c_i                         the others keep their weight
    renormalise   -(c_i - f_i c) / (1 - f_i)   the loss is the mean over those that remain

Letters: B rows of a block, K targets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from inrun.errors import MisuseError


class Removal(ABC):
    """One meaning of taking out. Stateless."""

    name: ClassVar[str]

    @abstractmethod
    def effects(self, rows: Tensor, shares_of_mean: Tensor) -> Tensor:
        """What happens to a linear quantity when each row is taken out.

        Args:
            rows: (B, ...) the quantity of each row, which add up to the block's.
            shares_of_mean: (B,), f.

        Returns:
            (B, ...) its change.
        """


class Drop(Removal):
    """The others keep their weight."""

    name = "drop"

    def effects(self, rows: Tensor, shares_of_mean: Tensor) -> Tensor:
        """See `Removal.effects`."""
        return -rows


class Renormalise(Removal):
    """The loss is the mean over those that remain; alone in its block, a row just goes."""

    name = "renormalise"

    def effects(self, rows: Tensor, shares_of_mean: Tensor) -> Tensor:
        """See `Removal.effects`."""
        f = shares_of_mean.to(rows).view(-1, *[1] * (rows.ndim - 1))
        rest = torch.where(f < 1, 1 - f, torch.ones_like(f))
        whole = rows.sum(0)
        return torch.where(f < 1, (f * whole - rows) / rest, -rows)


_KINDS: dict[str, Removal] = {kind.name: kind for kind in (Renormalise(), Drop())}


def removal_named(name: str) -> Removal:
    """The meaning of that name.

    Raises:
        MisuseError: there is none.
    """
    if name not in _KINDS:
        raise MisuseError(f"removal {name!r} is not one of {', '.join(_KINDS)}.")
    return _KINDS[name]
