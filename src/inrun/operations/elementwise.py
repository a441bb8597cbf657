"""Bare parameters that meet activations by broadcasting: scales, shifts, position tables.

For y = x * p the output gradient times x, summed over every axis along which p was broadcast, is
p's share; for y = x + p it is the summed output gradient.
"""

from __future__ import annotations

from torch import Tensor

from inrun.factors import Dense, Factor
from inrun.operations._call import Call, Slots
from inrun.operations._registry import operation


def _unbroadcast(call: Call, products: Tensor, parameter: Tensor) -> Factor | None:
    """Sums products (of the output's shape) to (B, *shape of the parameter), sample by sample."""
    shape = list(parameter.shape)
    if products.shape != call.gradient.shape:
        products = products.expand(call.gradient.shape)
    axes = call.layout.axes if isinstance(call.layout, Slots) else (call.layout.axis,)
    for axis in sorted((a for a in axes if a is not None), reverse=True):
        own = axis - (products.ndim - parameter.ndim)
        if own >= 0 and shape.pop(own) != 1:
            return None  # the parameter itself was spread over samples before
    one = call.layout.axis is None
    split = products.unsqueeze(0) if one else call.summed(products)
    while split.ndim - 1 > len(shape):
        split = split.sum(1)
    for position, size in enumerate(shape, start=1):
        if size == 1 and split.shape[position] != 1:
            split = split.sum(position, keepdim=True)
    return Dense(
        split if split.shape[1:] == parameter.shape else split.reshape(-1, *parameter.shape)
    )


@operation("mul", "multiply", "__mul__", "__rmul__", signature="input other")
def mul(call: Call, argument: str) -> Factor | None:
    """Input * other."""
    other = call["other" if argument == "input" else "input"]
    return _unbroadcast(call, call.gradient * other, call[argument])


@operation("add", "__add__", "__radd__", signature="input other")
def add(call: Call, argument: str) -> Factor | None:
    """Input + alpha * other."""
    alpha = call["alpha"] if argument == "other" and call["alpha"] is not None else 1
    return _unbroadcast(
        call, call.gradient * alpha if alpha != 1 else call.gradient, call[argument]
    )


@operation("sub", "subtract", "__sub__", signature="input other")
def sub(call: Call, argument: str) -> Factor | None:
    """Input - other; the scaled form goes to the fallback."""
    if call["alpha"] not in (None, 1):
        return None
    return _unbroadcast(
        call, -call.gradient if argument == "other" else call.gradient, call[argument]
    )


@operation("div", "divide", "true_divide", "__truediv__", signature="input other")
def div(call: Call, argument: str) -> Factor | None:
    """Input / other, for the numerator's share; the denominator's goes to the fallback."""
    if argument != "input" or call["rounding_mode"] is not None:
        return None
    return _unbroadcast(call, call.gradient / call["other"], call["input"])
