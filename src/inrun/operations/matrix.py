"""Matrices that multiply rows of activations: linear, addmm (HF Conv1D), matmul, grouped_mm.

y_t = W x_t + c:  share of W = sum_t b_t x_t^T, share of c = sum_t b_t, with b the output gradient.
Convolutions in one, two and three dimensions have stride, padding, dilation and groups.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from inrun.factors import Convolution, Dense, Factor, Geometry, GroupedOuter, Outer
from inrun.operations._call import Call, over_rows
from inrun.operations._registry import operation


def _is_matrix(t: object) -> bool:
    return isinstance(t, Tensor) and t.ndim == 2


@operation("linear", signature="input weight bias")
def linear(call: Call, argument: str) -> Factor | None:
    """torch.nn.functional.linear: weight (O, I), bias (O,)."""
    if argument == "weight" and _is_matrix(call["weight"]):
        return Outer(call.rows(call.gradient), call.rows(call["input"]))
    if argument == "bias":
        return Dense(over_rows(call.rows(call.gradient)))
    return None


@operation("addmm", signature="input mat1 mat2")
def addmm(call: Call, argument: str) -> Factor | None:
    """torch.addmm(bias, x, weight): weight (I, O). Scaled forms go to the fallback."""
    if call["beta"] not in (None, 1) or call["alpha"] not in (None, 1):
        return None
    if argument == "mat2":
        return Outer(call.rows(call["mat1"]), call.rows(call.gradient))
    if argument == "input" and call["input"].ndim == 1:
        return Dense(over_rows(call.rows(call.gradient)))
    return None


@operation("matmul", "mm", "__matmul__", signature="input other")
def matmul(call: Call, argument: str) -> Factor | None:
    """X @ W with a matrix W (I, O) on the right; other shapes go to the fallback."""
    x = call["input"]
    if argument == "other" and _is_matrix(call["other"]) and x.ndim >= 2:
        return Outer(call.rows(x), call.rows(call.gradient))
    return None


@operation("grouped_mm", "_grouped_mm", "grouped_mm_fallback", signature="input weight offs")
def grouped(call: Call, argument: str) -> Factor | None:
    """Rows (S, I) by matrices (E, I, O), those up to offs[e] by matrix e; the experts of MoE."""
    weight, ends = call["weight"], call["offs"]
    if argument != "weight" or weight.ndim != 3 or call["input"].ndim != 2 or ends is None:
        return None
    places = torch.arange(len(call["input"]), device=ends.device)
    group = torch.bucketize(places, ends.to(places.dtype), right=True)
    group_BT = call.split(group).flatten(1)
    return GroupedOuter(call.rows(call["input"]), call.rows(call.gradient), group_BT, len(weight))


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
