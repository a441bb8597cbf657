"""What a trainer's samples are, written beside their values: texts, labels, sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from inrun.ledger import Run

_SPOKEN = ("messages", "conversations", "prompt", "completion", "chosen", "rejected")


def describe(store: str | Path, dataset: Any, column: str | None) -> None:
    """Tells a stored run what its samples are, as far as the data set's columns say so.

    Columns of text, numbers and pictures are kept, those of tokens are not. Chats become one text.
    A data set without columns, ids that are not its rows', and a run that was told before are left
    alone. `column` holds ids; None where they are positions in the data set.
    """
    run = Run(Path(store))
    if not hasattr(dataset, "with_format") or run.samples() is not None:
        return
    visited = run.values()["sample_id"]
    if column is None and not pa.types.is_integer(visited.type):
        return  # parts of rows that the trainer packed
    rows = dataset if column is None else dataset.select_columns([column])
    ids = pa.array(range(len(rows))) if column is None else _arrow(rows)[column]
    at = pc.index_in(visited, value_set=pa.array(ids.to_pylist(), type=visited.type))
    if at.null_count:
        return
    table = _arrow(dataset.select(at.to_pylist()))
    kept = {name: table[name] for name in table.column_names if _is_plain(table[name].type)}
    spoken = [name for name in _SPOKEN if name in table.column_names and name not in kept]
    kept |= {name: _as_text(table[name]) for name in spoken}
    if "text" not in kept and spoken:
        joined = zip(*(kept[name].to_pylist() for name in spoken), strict=True)
        kept["text"] = pa.array(["\n".join(part for part in row if part) for row in joined])
    kept.pop("sample_id", None)
    if kept:
        run.describe(pa.table({"sample_id": visited, **kept}))


def _arrow(dataset: Any) -> pa.Table:
    return dataset.with_format("arrow")[:]


def _is_plain(kind: pa.DataType) -> bool:
    picture = pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}
    return picture or not pa.types.is_nested(kind)


def _as_text(column: pa.ChunkedArray) -> pa.Array:
    """Messages one below the other, each after its role."""
    return pa.array([None if v is None else _said(v) for v in column.to_pylist()], pa.string())


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value.get('role', value.get('from', ''))}: {_said(value.get('content', value))}"
    return "\n".join(map(_said, value)) if isinstance(value, list) else str(value)
