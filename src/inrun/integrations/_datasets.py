"""What a trainer's data set says of samples: texts, labels, sources; which example is which.

Packing keeps of an example its tokens and how many they are, nothing else. So the examples as they
were before are prepared once more as the trainer does it, but not packed, and found in the rows by
their tokens and labels. Of examples that have the same ones, those that come first in the data are
taken for those that come first in the rows.
"""

from __future__ import annotations

import copy
from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from inrun.errors import MisuseError
from inrun.integrations._places import LENGTHS
from inrun.ledger import Run

_NUMBER = "inrun_number"
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


def examples_of(
    rows: Any, trainer: Any, examples: Any, column: str | None
) -> list[list[int | str]]:
    """The ids of the examples in each row of data that the trainer packed, or got packed.

    `examples` is the data set as it was before packing; `column` holds its ids, None for positions.

    Raises:
        MisuseError: rows that do not say where examples begin, or hold others.
    """
    if LENGTHS not in rows[0]:
        raise MisuseError(
            "InRun(..., examples=...) was given, and the training data's rows do not say which "
            f"examples they hold: they have no {LENGTHS!r}. packing_strategy='wrapped' cuts rows "
            "anywhere, and tokens attend to those of other examples, so that a row is the sample: "
            "leave examples out. Or pack with packing_strategy='bfd' or 'bfd_split'."
        )
    names = list(range(len(examples))) if column is None else list(examples[column])
    split = getattr(trainer.args, "packing_strategy", "bfd") == "bfd_split"
    longest: int = getattr(trainer.args, "max_length", None) or 1 << 40
    labelled = "labels" in rows[0]
    waiting: dict[bytes, deque[int | str]] = defaultdict(deque)
    for example in _prepared(trainer, examples):
        tokens = _tokens(example, labelled)
        for begin in range(0, len(tokens), longest) if split else (0,):
            name = names[example[_NUMBER]]
            waiting[tokens[begin : begin + longest].tobytes()].append(name)
    return [[_next(waiting, piece) for piece in _pieces(row, labelled)] for row in rows]


def _prepared(trainer: Any, examples: Any) -> Any:
    """The examples, numbered, with the tokens and labels that the trainer gives them."""
    numbered = examples.add_column(_NUMBER, range(len(examples)))
    if not hasattr(trainer, "_prepare_dataset"):
        return numbered
    whole = copy.copy(trainer.args)
    whole.max_length, whole.shuffle_dataset = None, False
    return trainer._prepare_dataset(
        numbered, trainer.processing_class, whole, False, trainer._formatting_func, "examples"
    )


def _tokens(item: Any, labelled: bool) -> NDArray[np.int64]:
    """(T, 2): tokens and labels."""
    tokens = np.asarray(item["input_ids"], dtype=np.int64)
    labels = np.asarray(item["labels"], dtype=np.int64) if labelled else tokens
    return np.stack([tokens, labels], 1)


def _pieces(row: Any, labelled: bool) -> Sequence[NDArray[np.int64]]:
    return np.split(_tokens(row, labelled), np.cumsum(row[LENGTHS])[:-1])


def _next(waiting: dict[bytes, deque[int | str]], piece: NDArray[np.int64]) -> int | str:
    found = waiting.get(piece.tobytes())
    if not found:
        raise MisuseError(
            f"A row of the training data holds an example of {len(piece)} tokens that is none of "
            "InRun(..., examples=...). Give the data set that the trainer was given, whole and as "
            "it was before packing."
        )
    return found.popleft()
