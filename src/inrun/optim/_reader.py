"""Which update rule a live optimizer goes by: torch's, known ones of others, registered ones."""

from __future__ import annotations

from typing import Any

import torch

from inrun.errors import MisuseError, NotSupportedError
from inrun.optim._adam import AdamRule
from inrun.optim._adam_variants import AdamaxRule, NAdamRule, RAdamRule
from inrun.optim._elementwise import AdadeltaRule, AdagradRule, RMSpropRule, RpropRule
from inrun.optim._muon import MuonRule
from inrun.optim._outside import Displacement, outside_rule, written
from inrun.optim._per_tensor import AdafactorRule
from inrun.optim._rule import Rule
from inrun.optim._sgd import ASGDRule, SGDRule

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


def from_torch(rule: Rule[Any, Any]) -> bool:
    """Whether it is the rule of one of torch's own optimizers."""
    return rule in _RULES.values()
