"""Adam with moments in 8 bits or fewer, as `torchao` and `bitsandbytes` do it.

Both take the moments out of their few bits, make Adam's step with the full numbers, and only then
round the moments again, block by block. So the displacement for a given state is Adam's own, for
every gradient; what cannot be had is the state after the step, nor what is told from it. Nothing is
imported: the packages' tensors and state are read as they lie there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from inrun.errors import NotSupportedError
from inrun.optim._adam import AdamRule, AdamSetting, AdamState
from inrun.optim._rule import Memory

BLOCK = 256  # elements of a bitsandbytes moment that share one scale


class RoundedAdamRule(AdamRule):
    """Adam's step from moments that are rounded after it."""

    rounds = True
    remembers = False

    def settles(self, s: AdamState, h: AdamSetting) -> bool:
        """See `Rule.settles`: never, the state after the step is rounded."""
        return False

    def memory(self, w: Tensor, s: AdamState, h: AdamSetting) -> Memory:
        """See `Rule.memory`.

        Raises:
            NotSupportedError: what is rounded does not remember gradients linearly.
        """
        raise NotSupportedError(
            "Moments in 8 bits are rounded after each step. Use momentum_window=0."
        )


class TorchAORule(RoundedAdamRule):
    """`torchao.optim`: Adam and AdamW with 8-bit, 4-bit or float8 moments."""

    def read(
        self, group: Mapping[str, Any], state: Mapping[str, Any], weight: Tensor
    ) -> tuple[AdamState, AdamSetting]:
        """See `Rule.read`."""
        full = {
            name: _unpacked(value) if isinstance(value, Tensor) else value
            for name, value in state.items()
        }
        return super().read({**group, "maximize": False}, full, weight)


class BitsAndBytesRule(RoundedAdamRule):
    """`bitsandbytes.optim`: Adam and AdamW, paged or not; decay is decoupled in all of them."""

    def __init__(self) -> None:
        super().__init__(decoupled=True)

    def read(
        self, group: Mapping[str, Any], state: Mapping[str, Any], weight: Tensor
    ) -> tuple[AdamState, AdamSetting]:
        """See `Rule.read`."""
        plain = {**group, "betas": group["betas"][:2], "maximize": False, "amsgrad": False}
        moments = {}
        if state:
            moments = {
                "exp_avg": _moment(state, 1), "exp_avg_sq": _moment(state, 2), "step": state["step"]
            }  # fmt: skip
        return super().read(plain, moments, weight)


def _unpacked(value: Tensor) -> Tensor:
    """A moment in full precision: torchao's classes say so by name."""
    if type(value).__name__.startswith("OptimState"):
        full: Tensor = value.dequantize()
        return full.float()
    return value.float()


def _moment(state: Mapping[str, Any], number: int) -> Tensor:
    """The first or second moment: codes, the numbers they stand for, and a scale a block."""
    codes: Tensor = state[f"state{number}"]
    if codes.dtype != torch.uint8:
        return codes.float()
    units: Tensor = state[f"qmap{number}"][codes.reshape(-1).long()]
    scales: Tensor = state[f"absmax{number}"].repeat_interleave(BLOCK)[: units.numel()]
    return (units * scales).reshape(codes.shape)


def quantized_rule(optimizer: torch.optim.Optimizer) -> RoundedAdamRule | None:
    """The rule of one of these packages' Adams; None for any other optimizer.

    Raises:
        NotSupportedError: options that change the step in a way that has no rule here.
    """
    package = type(optimizer).__module__.split(".")[0]
    if package == "torchao" and hasattr(optimizer, "is_adamw"):
        return TorchAORule(decoupled=bool(optimizer.is_adamw))
    if package != "bitsandbytes" or getattr(optimizer, "optimizer_name", "") != "adam":
        return None
    args, manager = optimizer.args, optimizer.mng  # type: ignore[attr-defined]
    if getattr(args, "max_unorm", 0.0) or getattr(args, "skip_zeros", False):
        raise NotSupportedError(
            f"{type(optimizer).__name__} with max_unorm or skip_zeros changes the update in a way "
            "that has no rule here. Turn it off, or write the rule: inrun.optim.register."
        )
    if manager.index2config or manager.pid2config:
        raise NotSupportedError(
            f"{type(optimizer).__name__} has settings for single parameters (GlobalOptimManager), "
            "which are not read here. Put such parameters into a group of their own."
        )
    return BitsAndBytesRule()
