"""Matrices that multiply rows of activations, and tables that are read by row.

y_t = W x_t + c:  share of W = sum_t b_t x_t^T, share of c = sum_t b_t, with b the output gradient.
Linear, addmm (HF Conv1D), matmul, grouped_mm; convolutions in one, two and three dimensions, with
stride, padding, dilation and groups; embeddings, and stacks of matrices read by an index per slot.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from inrun.errors import NotSupportedError, ReplaceLayerError
from inrun.factors import (
    Convolution,
    Dense,
    Derived,
    Factor,
    Geometry,
    GroupedOuter,
    Indexed,
    Outer,
)
from inrun.operations._call import Call, operation, over_rows


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


def _check_table(arguments: Mapping[str, Any]) -> None:
    if arguments.get("scale_grad_by_freq"):
        raise ReplaceLayerError(
            "An embedding with scale_grad_by_freq=True divides a row's gradient by how often the "
            "whole batch uses it, so one sample's share depends on the others. Build the embedding "
            "with scale_grad_by_freq=False."
        )
    if arguments.get("max_norm") is not None:
        raise ReplaceLayerError(
            "An embedding with max_norm overwrites its own rows in every forward pass, validation "
            "passes included, so that looking changes the training. Build it without max_norm."
        )
    if arguments.get("sparse"):
        raise NotSupportedError(
            "An embedding with sparse=True gives a sparse gradient, which SGD and Adam here do not "
            "read. Build the embedding with sparse=False."
        )


@operation(
    "embedding",
    signature="input weight padding_idx max_norm norm_type scale_grad_by_freq sparse",
    check=_check_table,
)
def embedding(call: Call, argument: str) -> Factor | None:
    """torch.nn.functional.embedding: weight (V, N); the padding row gets no gradient."""
    if argument != "weight":
        return None
    index_BT = call.split(call["input"]).flatten(1)
    rows_BTN = call.rows(call.gradient)
    table_rows = call["weight"].shape[0]
    padding = call["padding_idx"]
    if padding is not None and padding != -1:
        padding = padding % table_rows
        rows_BTN = rows_BTN.masked_fill((index_BT == padding).unsqueeze(2), 0)
    return Indexed(index_BT, rows_BTN, table_rows)


@operation("__getitem__", signature="input index")
def chosen(call: Call, argument: str) -> Factor | None:
    """`table[index]` by a tensor of places (V, ...): the weights of each token's expert."""
    table, index = call["input"], call["index"]
    if not isinstance(index, Tensor) or index.dtype not in (torch.int64, torch.int32):
        return None
    if argument != "input" or table.ndim < 2 or call.layout.axis not in (None, *range(index.ndim)):
        return None
    rows_BTN = call.split(call.gradient.flatten(index.ndim)).flatten(1, -2)
    index_BT = call.split(index % len(table)).flatten(1)
    inner = Indexed(index_BT, rows_BTN, len(table))
    return Derived(table.shape, lambda t: t.reshape(len(t), -1), inner)
