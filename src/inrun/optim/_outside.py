"""Optimizers that torch does not have: of other packages, and of the user.

Those of other packages are recognised by their class's name and their groups' keys. Nothing is
imported: what looks like a known optimizer is taken for one, and its first scored steps are
compared with the rule before they count (see `inrun.attribution`). Those that cannot be scored
honestly are refused with the reason.

A user writes one pure function, the displacement, and nothing else:

    displacement(gradient, weight, state, group) -> w - w'

`state` is what the optimizer keeps for the parameter before the step (an empty mapping before the
first, if it fills it lazily), `group` its parameter group. The function writes to none of them.
Slope and tangent come from the function itself: by divided differences where it is elementwise, by
autograd where it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inrun.errors import NotSupportedError
from inrun.optim._adam_variants import ScheduleFreeAdamWRule, quantized_rule
from inrun.optim._divided import ElementwiseRule
from inrun.optim._elementwise import LionRule
from inrun.optim._jacobian import MatrixRule
from inrun.optim._muon import MuonWithAuxAdamRule, PublishedMuonRule
from inrun.optim._per_tensor import LambRule, TransformersAdafactorRule
from inrun.optim._rule import Live, Rule

Found = Rule[Any, Any]
Displacement = Callable[[Tensor, Tensor, Mapping[str, Any], Mapping[str, Any]], Tensor]


def _lion(optimizer: torch.optim.Optimizer) -> Found:
    _refuse_options(optimizer, "cautious", "caution", "use_gc", "adanorm")
    over = float(getattr(optimizer, "_init_lr", 1.0)) if _says(optimizer, "decoupled_wd") else 1.0
    return LionRule(decay_over=over, maximize=_says(optimizer, "maximize"))


def _lamb(optimizer: torch.optim.Optimizer) -> Found:
    _refuse_options(optimizer, "rectify", "adanorm")
    if _says(optimizer, "pre_norm"):
        raise NotSupportedError(
            "Lamb(pre_norm=True) scales every gradient by the norm of all parameters' gradients "
            "together, inside its step. Clip with torch.nn.utils.clip_grad_norm_ before the step, "
            "which is read, and use pre_norm=False."
        )
    return LambRule(maximize=_says(optimizer, "maximize"))


def _muon(optimizer: torch.optim.Optimizer) -> Found | None:
    """The rule of the classes that Muon's author publishes; others of these names have none."""
    name = type(optimizer).__name__
    aux = name.endswith("WithAuxAdam")
    for group in optimizer.param_groups:
        adam = aux and not group["use_muon"]
        if set(group) - (_AUX_ADAM if adam else _MUON):
            return None
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    if several and torch.distributed.get_world_size() > 1 and not name.startswith("SingleDevice"):
        raise NotSupportedError(
            f"{name} keeps each momentum buffer in one process alone, and its step is read in all "
            f"of them. Use SingleDevice{name}: under DDP all processes then take the same step."
        )
    return MuonWithAuxAdamRule() if aux else PublishedMuonRule()


_MUON = {"params", "lr", "initial_lr", "weight_decay", "momentum", "nesterov", "ns_steps",
         "use_muon"}  # fmt: skip
_AUX_ADAM = {"params", "lr", "initial_lr", "weight_decay", "betas", "eps", "use_muon"}


_KNOWN: dict[str, tuple[set[str], Callable[[torch.optim.Optimizer], Found | None]]] = {
    "Lion": ({"lr", "betas", "weight_decay"}, _lion),
    "Lamb": ({"betas", "eps", "weight_decouple", "grad_averaging", "adam", "fixed_decay"}, _lamb),
    "AdamWScheduleFree": (
        {"k", "weight_sum", "lr_max", "weight_lr_power"}, lambda _: ScheduleFreeAdamWRule()
    ),
    "Adafactor": (
        {"clip_threshold", "decay_rate", "relative_step", "scale_parameter", "warmup_init"},
        lambda _: TransformersAdafactorRule(),
    ),
    "Muon": ({"momentum"}, _muon),
    "SingleDeviceMuon": ({"momentum"}, _muon),
    "MuonWithAuxAdam": ({"use_muon"}, _muon),
    "SingleDeviceMuonWithAuxAdam": ({"use_muon"}, _muon),
}  # fmt: skip

_ROUNDED = (
    "it keeps its moments in 8 bits, and its state can be read here only for the Adam and AdamW of "
    "torchao and bitsandbytes. Use one of those, or the 32-bit optimizer of the same name"
)
_ROOTS = (
    "it multiplies by roots of matrices that it also updates from the gradient, at steps of its "
    "own choosing: a coalition's step is not one fixed function of its gradient. Use AdamW, or "
    "Adafactor, whose factored moments are read"
)
_REFUSED = {
    "LBFGS": (
        "it evaluates the loss several times within one step, on a line search, so that a sample "
        "has no one gradient in it. Use SGD or Adam"
    ),
    "SparseAdam": (
        "it leaves elements without a gradient alone, moments and all, and takes sparse gradients, "
        "of which no shares are read. Use Adam, and build embeddings with sparse=False"
    ),
    **dict.fromkeys(
        ("Adam8bit", "AdamW8bit", "PagedAdam8bit", "PagedAdamW8bit", "Lion8bit", "LAMB8bit",
         "SGD8bit", "RMSprop8bit", "Adagrad8bit", "AdEMAMix8bit"), _ROUNDED
    ),
    **dict.fromkeys(("Shampoo", "ScalableShampoo", "DistributedShampoo", "SOAP"), _ROOTS),
}  # fmt: skip


def outside_rule(optimizer: torch.optim.Optimizer) -> Found | None:
    """The rule of an optimizer that torch does not have; None where it is not known."""
    name = type(optimizer).__name__
    quantized = quantized_rule(optimizer)
    if quantized is not None:
        return quantized
    if name in _REFUSED:
        raise NotSupportedError(f"{name} cannot be scored: {_REFUSED[name]}.")
    keys, build = _KNOWN.get(name, (set(), None))
    if build is None or not all(keys <= set(group) for group in optimizer.param_groups):
        return None
    return build(optimizer)


def _says(optimizer: torch.optim.Optimizer, name: str) -> bool:
    return bool(getattr(optimizer, name, False))


def _refuse_options(optimizer: torch.optim.Optimizer, *options: str) -> None:
    for group in optimizer.param_groups:
        for option in options:
            if group.get(option):
                raise NotSupportedError(
                    f"{type(optimizer).__name__}({option}=True) changes the update in a way that "
                    "has no rule here. Turn it off, or write the rule: inrun.optim.register."
                )


class WrittenState(NamedTuple):
    """The optimizer's own state of one parameter."""

    values: Mapping[str, Any]


class WrittenSetting(NamedTuple):
    """The parameter group, without its parameters; `lr`, `decay` and `maximize` out of it."""

    group: Mapping[str, Any]
    lr: float
    decay: float
    maximize: bool


class _Written(Rule[WrittenState, WrittenSetting]):
    """What both kinds have in common."""

    advances = False

    def __init__(self, function: Displacement, *, sign_like: bool):
        self._function, self.jumps, self.affine = function, sign_like, not sign_like

    def read(self, group: Live, state: Live, weight: Tensor) -> tuple[WrittenState, WrittenSetting]:
        setting = WrittenSetting(
            group={key: value for key, value in group.items() if key != "params"},
            lr=float(group["lr"]),
            decay=float(group.get("weight_decay", 0.0)),
            maximize=bool(group.get("maximize", False)),
        )
        return WrittenState(dict(state)), setting

    def displacement(self, g: Tensor, w: Tensor, s: WrittenState, h: WrittenSetting) -> Tensor:
        return self._function(g, w, s.values, h.group)

    def without_decay(self, h: WrittenSetting) -> WrittenSetting:
        """See `Rule.without_decay`: the group's `weight_decay` at 0, if it has one."""
        if not h.decay:
            return h
        return h._replace(decay=0.0, group={**h.group, "weight_decay": 0.0})

    def advance(self, g: Tensor, w: Tensor, s: WrittenState, h: WrittenSetting) -> WrittenState:
        """Not known: the function says what moves, not what is remembered."""
        raise NotSupportedError(
            "A registered update rule says what its optimizer displaces, not what becomes of the "
            "optimizer's state, so that steps cannot be chained. Train with torch.optim's."
        )


class WrittenElementwise(_Written, ElementwiseRule[WrittenState, WrittenSetting]):
    """A user's rule that treats each element alone."""


class WrittenMatrix(_Written, MatrixRule[WrittenState, WrittenSetting]):
    """A user's rule whose elements depend on each other."""


def written(function: Displacement, *, elementwise: bool, sign_like: bool) -> Rule[Any, Any]:
    """The rule of a user's function."""
    kind = WrittenElementwise if elementwise else WrittenMatrix
    return kind(function, sign_like=sign_like)
