"""The table of owner rules, by the name of the torch function: one line adds an operation.

A rule is a function from an `Op` to the maps of its outputs. It gives None where it cannot tell:
then the operation is settled by exchange (see `_exchange`), or else is UNKNOWN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from inrun.owners._operation import Found, Op

Rule = Callable[[Op], Found | None]
R = TypeVar("R", bound=Rule)


class Registered(NamedTuple):
    """A rule.

    `refined`: where it says MIXED, an exchange may know better (masks, zeros). `pointwise`: entries
    that meet numbers alone keep their owners. `rows`: so do rows of the first argument, whose last
    axis is summed away.
    """

    family: str
    rule: Rule
    refined: bool
    pointwise: bool
    rows: bool


_BY_NAME: dict[str, Registered] = {}
_BY_FUNCTION: dict[Any, Registered] = {}


def rule(
    names: str, *functions: Any, refined: bool = False, pointwise: bool = False,
    rows: bool = False,
) -> Callable[[R], R]:  # fmt: skip
    """Registers a rule.

    Args:
        names: of torch functions as `func.__name__` says them, separated by blanks; the in-place
            form (`add_`, `__iadd__`) has the same rule.
        functions: those that share their name with others, such as getters of properties.
        refined: whether an exchange is tried where the rule says MIXED.
        pointwise: whether entries that meet numbers alone keep their owners.
        rows: whether rows that do so keep theirs.
    """

    def register(function: R) -> R:
        entry = Registered(function.__name__, function, refined, pointwise, rows)
        _BY_NAME.update(dict.fromkeys(names.split(), entry))
        _BY_FUNCTION.update(dict.fromkeys(functions, entry))
        return function

    return register


def names(text: str) -> frozenset[str]:
    """Names separated by blanks."""
    return frozenset(text.split())


def find(function: Callable[..., Any], name: str) -> Registered | None:
    """The rule of an operation, if it has one."""
    found = _BY_FUNCTION.get(function) if name in ("__get__", "unfold") else None
    return found or _BY_NAME.get(name) or _BY_NAME.get(stem(name))


def stem(name: str) -> str:
    """A name without the sign of its in-place form."""
    if name.startswith("__i") and name.endswith("__"):
        return f"__{name[3:]}"
    return name.removesuffix("_") if not name.endswith("__") else name


def families() -> dict[str, list[str]]:
    """Every family of operations with the names that it holds, for the documentation."""
    found: dict[str, list[str]] = {}
    for name, entry in _BY_NAME.items():
        found.setdefault(entry.family, []).append(name)
    return found
