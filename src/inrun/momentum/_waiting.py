"""Steps whose samples wait: what their shares are made of, what is remembered, what is paid.

Letters: B samples of a block, N of a step, K targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from inrun.capture import Block, Moves
from inrun.errors import MisuseError
from inrun.factors import Factor
from inrun.momentum._tensor_store import Kept, TensorStore
from inrun.optim import Memory
from inrun.scoring import Edited


class Paid(NamedTuple):
    """A step's number, and what its samples were paid, (N, K) float64."""

    step: int
    values: np.ndarray


class Memories(NamedTuple):
    """What is known before a step of what optimizers remember, by parameter's name.

    `of`: how gradients enter and are kept. `parameters`: themselves. `edited`: whose memory is
    another than the last step left.
    """

    of: Mapping[str, Memory]
    parameters: Mapping[str, Tensor]
    edited: Edited


class WaitingStep:
    """Factors of a step's blocks and what they are multiplied by, with their tensors in a store.

    The factors refer to stand-ins. A tensor that several of them share is kept once.
    """

    def __init__(
        self,
        step: int,
        blocks: Sequence[Block],
        scales: Mapping[str, Tensor | float],
        tensor_store: TensorStore,
    ):
        self.step, self.samples = step, [block.samples for block in blocks]
        self._kept: dict[int, Kept] = {}
        self._stand_ins: dict[int, tuple[Tensor, str]] = {}  # kept, so that identities stay theirs
        self._name = ""
        moves = Moves(lambda t: self._put(t, torch.empty_like(t, device="meta"), tensor_store))

        def move(t: Tensor) -> Tensor:
            return self._put(t, t, tensor_store) if tensor_store.leaves(t) else moves(t)

        self._factors: list[dict[str, list[Factor]]] = [{} for _ in blocks]
        for part, block in zip(self._factors, blocks, strict=True):
            for self._name, found in block.factors.items():
                part[self._name] = [factor.mapped(move) for factor in found]
        self.scales = {
            name: tensor_store.keep(scale) if isinstance(scale, Tensor) else scale
            for name, scale in scales.items()
        }

    def _put(self, t: Tensor, stand_in: Tensor, tensor_store: TensorStore) -> Tensor:
        if id(stand_in) not in self._kept:
            self._kept[id(stand_in)] = tensor_store.keep(t)
            self._stand_ins[id(stand_in)] = stand_in, self._name
        return stand_in

    @property
    def kept(self) -> list[Kept]:
        """Whatever is in the store."""
        scales = [scale for scale in self.scales.values() if isinstance(scale, Kept)]
        return [*self._kept.values(), *scales]

    @property
    def touched(self) -> tuple[str, Tensor] | None:
        """A parameter and a tensor of its shares that was written into since, if there is one."""
        for key, kept in self._kept.items():
            if kept.touched and kept.held is not None:
                return self._stand_ins[key][1], kept.held
        return None

    def factors(self, name: str) -> list[list[Factor]]:
        """A parameter's factors, of each block."""

        def back(stand_in: Tensor) -> Tensor:
            return self._kept[id(stand_in)].look()

        return [[f.mapped(back) for f in part.get(name, [])] for part in self._factors]

    def scale(self, name: str) -> Tensor | float:
        scale = self.scales[name]
        return scale.look() if isinstance(scale, Kept) else scale

    def nothing(self, targets: int) -> np.ndarray:
        return np.zeros((sum(self.samples), targets))

    def let_go(self) -> None:
        for kept in self.kept:
            kept.let_go()


def overwritten(step: int, touched: tuple[str, Tensor]) -> MisuseError:
    """What a step's shares are made of was written to."""
    name, t = touched
    return MisuseError(
        f"A tensor of shape {tuple(t.shape)} that the shares of {name} are made of was overwritten "
        f"in place while the samples of step {step} waited for what momentum does for them. They "
        "keep their in-step values. Do not refill input buffers: make a new tensor for each batch, "
        "or attach with capture='offload' or held_in='FOLDER', which keep copies."
    )
