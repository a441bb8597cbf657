"""Divided differences: the slope of an elementwise rule, from its displacement alone.

A `Divided` stands for a quantity f of the gradient at two points, `end` (with the gradient y) and
`base` (without), together with its slope

    f[y] = (f(y) - f(0)) / y

Slopes obey a calculus of their own, exact and without subtracting what is nearly equal:

    (f + g)[y] = f[y] + g[y]                     (f g)[y] = f(y) g[y] + f[y] g(0)
    (f / g)[y] = (f[y] - (f/g)(0) g[y]) / g(y)   sqrt(f)[y] = f[y] / (sqrt f(y) + sqrt f(0))

and where the two points are one it is the calculus of derivatives, so that tangents come out of the
same code. A rule's `displacement`, written in operators and the functions below, is run once on a
`Divided` gradient. Where a slope is 0 / 0 (nothing has touched the element, and the root of a
second moment has a corner there) it is not a number, which `ElementwiseRule` takes as 0. Where a
quotient without the gradient, (f / g)(0), is no number (eps = 0, and only the gradient makes a
denominator), it counts 0: without it nothing is displaced there, and all that is displaced is the
gradient's, whose slope is the plain quotient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from inrun.errors import NotSupportedError
from inrun.optim._rule import Diagonal, Rule, Setting, State

Number = Tensor | float


class Divided:
    """A quantity with and without the gradient, and its slope between the two."""

    __slots__ = ("base", "end", "slope")

    def __init__(self, end: Number, base: Number, slope: Number):
        self.end, self.base, self.slope = end, base, slope

    def __neg__(self) -> Divided:
        return Divided(-self.end, -self.base, -self.slope)

    def __add__(self, other: object) -> Divided:
        g = _divided(other)
        return Divided(self.end + g.end, self.base + g.base, self.slope + g.slope)

    __radd__ = __add__

    def __sub__(self, other: object) -> Divided:
        return self + -_divided(other)

    def __rsub__(self, other: object) -> Divided:
        return -self + other

    def __mul__(self, other: object) -> Divided:
        if not isinstance(other, Divided):
            c = cast(Number, other)
            return Divided(self.end * c, self.base * c, self.slope * c)
        slope = self.end * other.slope + self.slope * other.base
        return Divided(self.end * other.end, self.base * other.base, slope)

    __rmul__ = __mul__

    def __truediv__(self, other: object) -> Divided:
        if not isinstance(other, Divided):
            return self * (1 / cast(Number, other))
        base = _tensor(self.base) / _tensor(other.base)
        slope = (self.slope - base * other.slope) / other.end  # no number where the base is none
        return Divided(self.end / other.end, torch.where(torch.isfinite(base), base, 0.0), slope)

    def __rtruediv__(self, other: object) -> Divided:
        return _divided(other) / self

    def __pow__(self, power: float) -> Divided:
        if power == 0.5:
            return self.sqrt()
        if power == int(power) and power >= 1:
            result: Divided = self
            for _ in range(int(power) - 1):
                result = result * self
            return result
        raise _unknown(f"the power {power}")

    def square(self) -> Divided:
        """f^2."""
        return self * self

    def sqrt(self) -> Divided:
        """The square root of f."""
        end, base = _tensor(self.end).sqrt(), _tensor(self.base).sqrt()
        return Divided(end, base, self.slope / (end + base))

    def abs(self) -> Divided:
        """|f|: the slope between two numbers is their sum over the sum of their sizes."""
        end, base = _tensor(self.end).abs(), _tensor(self.base).abs()
        slope, ratio = _tensor(self.slope), (self.end + self.base) / (end + base)
        return Divided(end, base, torch.where(slope == 0, slope, slope * ratio))

    __abs__ = abs

    def sign(self) -> Divided:
        """The sign of f: all of its slope lies in the jump."""
        end, base = _tensor(self.end).sign(), _tensor(self.base).sign()
        jump = torch.where(end == base, 0.0, (end - base) / (self.end - self.base))
        return Divided(end, base, self.slope * jump)

    def maximum(self, other: object) -> Divided:
        """The larger of f and g: g plus the positive part of f - g."""
        g = _divided(other)
        over, over0 = _tensor(self.end - g.end), _tensor(self.base - g.base)
        size = over.abs() + over0.abs()
        ratio = torch.where(
            (over > 0) & (over0 > 0), 1.0, torch.maximum(over, over0).clamp(min=0) / size
        )
        slope = g.slope + (self.slope - g.slope) * torch.where(size == 0, 0.5, ratio)
        end = torch.maximum(_tensor(self.end), _tensor(g.end))
        return Divided(end, torch.maximum(_tensor(self.base), _tensor(g.base)), slope)

    def clamp(self, min: Number | None = None, max: Number | None = None) -> Divided:
        """F held between two bounds."""
        low = self if min is None else self.maximum(min)
        return low if max is None else -((-low).maximum(-max))

    def lerp(self, other: object, weight: float) -> Divided:
        """(1 - weight) f + weight g."""
        return self * (1 - weight) + _divided(other) * weight

    def __getattr__(self, name: str) -> Any:
        """What a tensor knows about itself; other methods are not known."""
        if name in ("shape", "dtype", "device", "ndim"):
            return getattr(self.end, name)
        if name.startswith("__"):
            raise AttributeError(name)
        raise _unknown(f"the method {name}")

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """What torch's own functions, and operators whose left side is a tensor, come to."""
        name = function.__name__.strip("_")
        if name in _REFLECTED:  # tensor (-) quantity, called as the tensor's own operator
            return _FUNCTIONS[name](*args)
        if name not in _FUNCTIONS:
            raise _unknown(f"torch's {name}")
        return _FUNCTIONS[name](_divided(args[0]), *args[1:], **(kwargs or {}))


def _divided(value: object) -> Divided:
    """A quantity that does not depend on the gradient has slope 0."""
    if isinstance(value, Divided):
        return value
    number = cast(Number, value)
    return Divided(number, number, 0.0)


def _tensor(value: Number) -> Tensor:
    """Plain numbers keep their digits; without axes they do not widen what they meet."""
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)


def _refused(name: str) -> Callable[..., Any]:
    def refuse(self: Divided, *_: object) -> Any:
        raise _unknown(name)

    return refuse


def _unknown(what: str) -> NotSupportedError:
    known = ", ".join(sorted(set(_FUNCTIONS) - _REFLECTED))
    return NotSupportedError(
        f"This update rule uses {what} on the gradient, for which no divided difference is known "
        f"here (known beside operators: {known}). Write the rule with those, or register it with "
        "elementwise=False, which integrates its Jacobian instead."
    )


_REFLECTED = {"rsub", "rtruediv", "rdiv"}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": lambda f, g, alpha=1: f + _divided(g) * alpha,
    "sub": lambda f, g, alpha=1: f - _divided(g) * alpha,
    "mul": lambda f, g: f * g,
    "div": lambda f, g: f / g,
    "truediv": lambda f, g: f / g,
    "rsub": lambda f, g: _divided(g) - f,
    "rtruediv": lambda f, g: _divided(g) / f,
    "rdiv": lambda f, g: _divided(g) / f,
    "neg": lambda f: -f,
    "pow": lambda f, power: f**power,
    "square": Divided.square,
    "sqrt": Divided.sqrt,
    "abs": Divided.abs,
    "sign": Divided.sign,
    "sgn": Divided.sign,
    "maximum": Divided.maximum,
    "clamp": Divided.clamp,
    "lerp": Divided.lerp,
    "addcmul": lambda f, g, k, value=1: f + _divided(g) * k * value,
    "addcdiv": lambda f, g, k, value=1: f + _divided(g) / k * value,
    "zeros_like": lambda f: torch.zeros_like(_tensor(f.end)),
    "ones_like": lambda f: torch.ones_like(_tensor(f.end)),
}


# operators that ask for the value of single elements, or mix them
for _operator in ("lt", "le", "gt", "ge", "bool", "float", "int", "getitem", "matmul", "rmatmul"):
    setattr(Divided, f"__{_operator}__", _refused(f"the operator {_operator}"))


@contextmanager
def _operators_seen() -> Iterator[None]:
    """Torch's functions reach `Divided` inside, and no mode sees them.

    Where a rule runs within a backward pass, as under `stream`, they are switched off.
    """
    modes = []
    with torch._C._EnableTorchFunction():
        while torch._C._len_torch_function_stack():
            modes.append(torch._C._pop_torch_function_stack())
        try:
            yield
        finally:
            for mode in reversed(modes):
                torch._C._push_on_torch_function_stack(mode)


class ElementwiseRule(Rule[State, Setting]):
    """A rule that treats each element alone: slope and tangent are read off its displacement.

    It is written in operators and functions that `Divided` knows.
    """

    def without_gradient(self, w: Tensor, s: State, h: Setting) -> Tensor:
        """See `Rule.without_gradient`; where a part of it is 0 / 0, the part is 0."""
        nothing = torch.zeros_like(w)
        gradient: Any = Divided(nothing, nothing, 0.0)
        with _operators_seen():
            return nothing + _divided(self.displacement(gradient, w, s, h)).base

    def slope(self, g: Tensor, w: Tensor, s: State, h: Setting) -> Diagonal:
        return self._between(g.new_zeros(()), g, w, s, h)

    def tangent(self, g: Tensor, w: Tensor, s: State, h: Setting) -> Diagonal:
        return self._between(g, g, w, s, h)

    def _between(self, base: Tensor, g: Tensor, w: Tensor, s: State, h: Setting) -> Diagonal:
        gradient: Any = Divided(g, base, 1.0)
        with _operators_seen():
            moved = _divided(self.displacement(gradient, w, s, h))
        slope = torch.zeros_like(g) + moved.slope
        # where a part of the slope is no number the whole may still be: the plain quotient
        plain = (moved.end - moved.base) / (g - base)
        slope = torch.where(torch.isfinite(slope), slope, plain)
        return Diagonal(slope.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0))
