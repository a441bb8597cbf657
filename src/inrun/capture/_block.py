"""What a `batch` block leaves, and who looks on while it runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from inrun.capture._calls import ModelCall
from inrun.errors import MisuseError
from inrun.factors import Factor


class Sketch(NamedTuple):
    """What a scoring window keeps of one factor: in which basis, and the numbers there."""

    basis: Any
    numbers: Tensor


Contract = Callable[[str, Sequence[Factor]], list[Tensor]]
"""(parameter's name, factors) -> values (B, K) of each, called inside the backward pass."""


class Watch(NamedTuple):
    """Who looks on while a block runs.

    `contract`: what `stream` contracts with. `factor` sees each factor by its parameter's name.
    `calls`: whether the model's calls are kept. `step`: the number of the step under way. `sketch`:
    what a scoring window keeps in place of factors; None keeps factors. `factors`: whether they are
    kept beside sketches, too.
    """

    contract: Contract | None = None
    factor: Callable[[str, Factor], None] | None = None
    calls: bool = False
    step: int = 1
    sketch: Callable[[str, Factor], Sketch] | None = None
    factors: bool = False


NOBODY = Watch()


class Block:
    """One `batch` block: after its end, factors by parameter (`hold`) or values (`stream`).

    `owned`: whether its shares are samples'; if not, it is one share, which is nobody's.
    """

    def __init__(
        self,
        samples: int,
        copies: weakref.WeakValueDictionary[Any, Tensor],
        *,
        owned: bool = True,
    ):
        self.samples, self.owned = samples, owned
        self._copies, self.ended = copies, False
        self.factors: dict[str, list[Factor]] = {}
        self.sketches: dict[str, list[Sketch]] = {}
        self.values_BK: Tensor | None = None
        self.calls: list[ModelCall] = []  # of the model in it, where they are wanted
        self._versions: list[tuple[str, Tensor, int]] = []

    def keep(self, name: str, factor: Factor) -> None:
        """Keeps a factor until the step is over, when weights that it is made of are others."""
        if any(isinstance(t, nn.Parameter) for t in factor.held):
            factor = factor.mapped(self._as_it_is)
        self.factors.setdefault(name, []).append(factor)
        self._versions += [(name, t, t._version) for t in factor.held]

    def _as_it_is(self, t: Tensor) -> Tensor:
        """A copy of a parameter, one for all blocks of a step."""
        if not isinstance(t, nn.Parameter):
            return t
        key = id(t), t._version
        found = self._copies.get(key)
        if found is None:
            found = self._copies[key] = t.detach().clone()
        return found

    def forget_calls(self) -> None:
        """The model's calls are not needed any more."""
        self.calls = []

    def check_untouched(self) -> None:
        """Raises MisuseError if something that the factors refer to was overwritten."""
        for name, t, version in self._versions:
            if t._version != version:
                raise MisuseError(
                    f"A tensor of shape {tuple(t.shape)} that the shares of {name} are made of was "
                    "overwritten in place before the optimizer's step. Do not refill input buffers "
                    "between backward() and step(), or attach with capture='stream'."
                )
