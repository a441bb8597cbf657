"""Convolutions in one, two and three dimensions, with stride, padding, dilation and groups."""

from __future__ import annotations

from typing import Any

from inrun.factors import Convolution, Dense, Factor, Geometry
from inrun.operations._call import Call
from inrun.operations._registry import operation


def _each(value: Any, default: int, dimensions: int) -> tuple[int, ...]:
    """One number an axis, from the forms in which torch takes it."""
    if value is None:
        return (default,) * dimensions
    if isinstance(value, int):
        return (value,) * dimensions
    values = tuple(value)
    return values * dimensions if len(values) == 1 else values


@operation(
    "conv1d", "conv2d", "conv3d", signature="input weight bias stride padding dilation groups"
)
def convolution(call: Call, argument: str) -> Factor | None:
    """Weight (O, I/groups, *window), bias (O,)."""
    if call.layout.axis not in (None, 0):
        return None
    batched = call.gradient.ndim == call["weight"].ndim
    gradient = call.images(call.gradient, batched=batched)  # (B, S, O, *space)
    if argument == "bias":
        return Dense(gradient.flatten(3).sum((1, 3)))
    if argument != "weight":
        return None
    weight, padding = call["weight"], call["padding"]
    n = weight.ndim - 2
    geometry = Geometry(
        weight=weight.shape,
        stride=_each(call["stride"], 1, n),
        padding=padding if isinstance(padding, str) else _each(padding, 0, n),
        dilation=_each(call["dilation"], 1, n),
        groups=call["groups"] or 1,
    )
    return Convolution(call.images(call["input"], batched=batched), gradient, geometry)
