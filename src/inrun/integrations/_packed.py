"""Which example is which in rows that a trainer packed.

Packing keeps of an example its tokens and how many they are, nothing else. So the examples as they
were before are prepared once more as the trainer does it, but not packed, and found in the rows by
their tokens and labels. Of examples that have the same ones, those that come first in the data are
taken for those that come first in the rows.
"""

from __future__ import annotations

import copy
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inrun.errors import MisuseError
from inrun.integrations._places import LENGTHS

_NUMBER = "inrun_number"


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
