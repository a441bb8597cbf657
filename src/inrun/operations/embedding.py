"""Tables read by row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inrun.errors import NotSupportedError, ReplaceLayerError
from inrun.factors import Factor, Indexed
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
