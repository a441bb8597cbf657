"""Tables read by row: embeddings, and stacks of matrices read by an index per slot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from inrun.errors import NotSupportedError, ReplaceLayerError
from inrun.factors import Derived, Factor, Indexed
from inrun.operations._call import Call
from inrun.operations._registry import operation


def _check(arguments: Mapping[str, Any]) -> None:
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
    check=_check,
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
