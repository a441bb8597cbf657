"""The one place that looks into a live optimizer: its class, its groups, its state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from inrun.distributed import is_sharded, own_part, own_state
from inrun.errors import MisuseError, NotSupportedError
from inrun.optim._adafactor import AdafactorRule
from inrun.optim._adam import AdamRule
from inrun.optim._adam_variants import AdamaxRule, NAdamRule, RAdamRule
from inrun.optim._device_numbers import DeviceNumbers, Numbers, told
from inrun.optim._live import consumed_gradient
from inrun.optim._move import Move
from inrun.optim._muon import MuonRule
from inrun.optim._outside import Displacement, outside_rule, written
from inrun.optim._rule import Rule
from inrun.optim._second_moments import AdadeltaRule, AdagradRule, RMSpropRule
from inrun.optim._sgd import ASGDRule, SGDRule
from inrun.optim._signs import RpropRule

_RULES: dict[type[torch.optim.Optimizer], Rule[Any, Any]] = {
    torch.optim.SGD: SGDRule(),
    torch.optim.Adam: AdamRule(decoupled=False),
    torch.optim.AdamW: AdamRule(decoupled=True),
    torch.optim.Adadelta: AdadeltaRule(),
    torch.optim.Adafactor: AdafactorRule(),
    torch.optim.Adagrad: AdagradRule(),
    torch.optim.Adamax: AdamaxRule(),
    torch.optim.ASGD: ASGDRule(),
    torch.optim.NAdam: NAdamRule(),
    torch.optim.RAdam: RAdamRule(),
    torch.optim.RMSprop: RMSpropRule(),
    torch.optim.Rprop: RpropRule(),
}
if hasattr(torch.optim, "Muon"):  # from PyTorch 2.9 on
    _RULES[torch.optim.Muon] = MuonRule()
_REGISTERED: dict[type[torch.optim.Optimizer], Rule[Any, Any]] = {}


def register(
    kind: type[torch.optim.Optimizer],
    rule: Displacement | Rule[Any, Any],
    *,
    elementwise: bool = True,
    sign_like: bool = False,
) -> None:
    """Teaches the library an optimizer of your own.

    The first scored steps are compared with what the rule says, before they are booked.

    Args:
        kind: the optimizer's class. Subclasses that inherit its `step` go by the same rule.
        rule: `rule(gradient, weight, state, group)`, a pure function that gives what the step takes
            off the weight, w - w', for any gradient: `state` and `group` are the optimizer's own
            before the step, and not to be written to. Or a `Rule`.
        elementwise: whether each element's displacement depends on that element's gradient alone.
        sign_like: whether the step is a sign of the gradient or an orthogonalization: its values
            are then smoothed in every step, where that is cheap (see `path-smoothed`).

    Raises:
        MisuseError: not an optimizer's class, not a rule, or one of torch's that has a rule.

    Example:
        >>> import torch, inrun
        >>> class Plain(torch.optim.Optimizer):
        ...     def __init__(self, params, lr):
        ...         super().__init__(params, {"lr": lr})
        ...     @torch.no_grad()
        ...     def step(self):
        ...         for group in self.param_groups:
        ...             for p in group["params"]:
        ...                 p.sub_(group["lr"] * p.grad / (1 + p.grad.abs()))
        >>> def plain(gradient, weight, state, group):
        ...     return group["lr"] * gradient / (1 + gradient.abs())
        >>> inrun.optim.register(Plain, plain)
    """
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        raise MisuseError(f"{kind!r} is not a class of torch.optim.Optimizer.")
    if kind in _RULES:
        raise MisuseError(
            f"{kind.__name__} has a rule that is tested against it. Register a subclass with a "
            "step of its own instead."
        )
    if isinstance(rule, Rule):
        _REGISTERED[kind] = rule
        return
    if not callable(rule):
        raise MisuseError(
            "rule must be a function (gradient, weight, state, group) -> displacement, or an "
            f"inrun.optim.Rule, not a {type(rule).__name__}."
        )
    _REGISTERED[kind] = written(rule, elementwise=elementwise, sign_like=sign_like)


def rule_for(optimizer: torch.optim.Optimizer) -> Rule[Any, Any]:
    """The update rule of a live optimizer.

    A subclass counts as its parent only where it inherits the parent's `step`: a class that
    steps differently moves differently.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise MisuseError(
            f"optimizer is a {type(optimizer).__name__}, not a torch.optim.Optimizer. Its state "
            "cannot be read. Pass the optimizer whose step() moves the parameters."
        )
    for known in type(optimizer).__mro__:  # the nearest class first
        rule = _REGISTERED.get(known) or _RULES.get(known)
        if rule is not None and _own_step(type(optimizer)) is _own_step(known):
            _refuse_differentiable(optimizer)
            return rule
    outside = outside_rule(optimizer)
    if outside is not None:
        return outside
    kind = type(optimizer)
    names = ", ".join(known.__name__ for known in [*_RULES, *_REGISTERED])
    raise NotSupportedError(
        f"{kind.__module__}.{kind.__qualname__} has no update rule here, and values computed for "
        f"another rule would not be this run's. Known are torch.optim's {names}, and a few of "
        "other packages. Train with one of those, or write down what a step takes off a weight:\n"
        f"inrun.optim.register({kind.__name__}, lambda gradient, weight, state, group: ...)"
    )


def _own_step(kind: type[torch.optim.Optimizer]) -> Any:
    """The class's `step` below the profiling wrapper that torch puts round it."""
    step: Any = kind.step
    while hasattr(step, "__wrapped__"):
        step = step.__wrapped__
    return step


def _refuse_differentiable(optimizer: torch.optim.Optimizer) -> None:
    if any(group.get("differentiable") for group in optimizer.param_groups):
        raise NotSupportedError(
            f"{type(optimizer).__name__}(differentiable=True) keeps a graph through its own step, "
            "which scoring after the step would break. Use differentiable=False."
        )


def tested(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the rule was tested against this very class: those of torch itself."""
    return type(optimizer).__module__.split(".")[0] == "torch"


def trained_parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Every parameter of every group, in the optimizer's order.

    Those without elements are left out: no step moves them.
    """
    return [p for group in optimizer.param_groups for p in group["params"] if p.numel()]


def device_numbers(optimizer: torch.optim.Optimizer, rule: Rule[Any, Any]) -> DeviceNumbers | None:
    """What the optimizer keeps on devices and the rule reads as numbers, one of torch's own.

    None for others: what they keep under the same names nobody knows here, and a rule of the user's
    is given its state as it is.
    """
    return DeviceNumbers(optimizer) if rule in _RULES.values() else None


def moves(
    optimizer: torch.optim.Optimizer, rule: Rule[Any, Any], numbers: Numbers | None = None
) -> Iterator[tuple[Tensor, Move[Any, Any]]]:
    """(parameter, its move) for each parameter that the coming step will change.

    A parameter without a gradient is skipped, as the optimizer skips it. Of a sharded parameter
    the move is that of this process's part. `numbers` that are known already are not asked for.
    """
    for group in optimizer.param_groups:
        ruled = _of_group(rule, group, numbers)
        for p in group["params"]:
            if p.grad is not None and p.numel():
                gradient = consumed_gradient(optimizer, p)
                yield p, _move(optimizer, ruled, p, gradient, numbers)


def moved(
    optimizer: torch.optim.Optimizer,
    rule: Rule[Any, Any],
    before: Mapping[int, Move[Any, Any]],
    numbers: Numbers | None = None,
) -> Iterator[tuple[Tensor, Move[Any, Any]]]:
    """(parameter, its move read again after the step), of the gradient that was consumed.

    A fused step under a gradient scaler unscales `.grad` itself, and loops clear it. A fused step
    under a gradient scaler unscales `.grad` itself, and loops clear it, so `before` has the
    moves by the parameter's id as they were read before the step.
    """
    for group in optimizer.param_groups:
        ruled = _of_group(rule, group, numbers)
        for p in group["params"]:
            was = before.get(id(p))
            if was is not None:
                after = _move(optimizer, ruled, p, was.gradient, numbers)
                after.setting = was.setting
                yield p, after


def standing(
    optimizer: torch.optim.Optimizer, rule: Rule[Any, Any], numbers: Numbers | None = None
) -> Iterator[tuple[Tensor, Move[Any, Any]]]:
    """(parameter, the move that its state is ready for), whether there is a gradient or not.

    The weight stands in the gradient's place: what is asked of it must not need one.
    """
    for group in optimizer.param_groups:
        ruled = _of_group(rule, group, numbers)
        for p in group["params"]:
            if p.requires_grad and p.numel():
                weight = own_part(p.detach())
                yield p, _move(optimizer, ruled, p, weight, numbers)


def _of_group(
    rule: Rule[Any, Any], group: Mapping[str, Any], numbers: Numbers | None
) -> tuple[Rule[Any, Any], Callable[[Mapping[str, Any], Tensor], Any]]:
    """A group's rule, and its `Rule.reader`."""
    known = told(group, numbers)
    ruled = rule.of(known)
    return ruled, ruled.reader(known)


def _move(
    optimizer: torch.optim.Optimizer,
    ruled: tuple[Rule[Any, Any], Callable[[Mapping[str, Any], Tensor], Any]],
    p: Tensor,
    gradient: Tensor,
    numbers: Numbers | None,
) -> Move[Any, Any]:
    rule, read = ruled
    live, weight = told(optimizer.state.get(p, {}), numbers), own_part(p.detach())
    if rule.rounds:  # these keep little and compute in full
        weight, gradient = weight.float(), gradient.float()
    live = own_state(live) if is_sharded(p) else live
    return Move(rule, weight, gradient, *read(live, weight))


def move_of(
    optimizer: torch.optim.Optimizer,
    rule: Rule[Any, Any],
    p: Tensor,
    times: float,
    mean: Callable[[Tensor], Tensor] | None = None,
    numbers: Numbers | None = None,
) -> Move[Any, Any]:
    """One parameter's move if its present gradient, times a number, were consumed.

    `mean` is what becomes of the gradient first, as the mean over processes, of which this one may
    have none.
    """
    for group in optimizer.param_groups:
        if any(q is p for q in group["params"]) and (p.grad is not None or mean is not None):
            given = p.grad is not None
            gradient = consumed_gradient(optimizer, p) if given else torch.zeros_like(p)
            gradient = gradient if mean is None else mean(gradient)
            gradient = gradient if times == 1.0 else gradient * times
            ruled = _of_group(rule, group, numbers)
            return _move(optimizer, ruled, p, gradient, numbers)
    raise MisuseError("A parameter left the optimizer while its gradient was computed.")
