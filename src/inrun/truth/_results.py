"""What trainings came to, kept in a file: one line with the question, then one line per training.

    {"results": "pruning", ...}                        what was asked
    {"of": ["pruned", 0], "found": [0.9312, 12.4]}     what was trained, and its numbers

Lines are appended as results come, each with its digest, so that a check that was stopped goes on.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inrun.errors import StoreError
from inrun.ledger import Log


class TrainingResults:
    """Numbers by what was trained, in memory and in a file.

    `kind` is 'pruning', 'selection' or 'retraining', `question` whatever JSON holds. What the file
    holds already is known.
    """

    def __init__(self, path: str | os.PathLike[str] | None, kind: str, question: Mapping[str, Any]):
        self._log = Log(None if path is None else Path(path))
        self.question: dict[str, Any] = json.loads(json.dumps({"results": kind, **question}))
        if not self._log.lines:
            self._log.append(self.question)
        asked, self.known = _read(Path(path or ""), self._log)
        if not _alike(asked, self.question):
            raise StoreError(
                f"{path} holds the results of another {kind}, of another run, utility or "
                "choice of samples. Name a new file."
            )

    def add(self, of: Any, found: Sequence[float]) -> None:
        """Takes the result of a training."""
        self.known[of] = list(found)
        self._log.append({"of": of, "found": self.known[of]})


def read_results(path: Path) -> tuple[dict[str, Any], dict[Any, list[float]]]:
    """The question of a file, and its numbers by what was trained."""
    if not path.is_file():
        raise StoreError(f"{path} cannot be read: there is no such file.")
    return _read(path, Log(path))


def _read(path: Path, log: Log) -> tuple[dict[str, Any], dict[Any, list[float]]]:
    try:
        question, *lines = log.lines
        known = {_key(line["of"]): list(line["found"]) for line in lines}
        kind = question["results"]
    except (ValueError, LookupError, TypeError) as error:
        raise StoreError(f"{path} holds no results of trainings ({error}).") from error
    if not isinstance(kind, str):
        raise StoreError(f"{path} holds no results of trainings.")
    return question, known


def _key(of: Any) -> Any:
    return tuple(of) if isinstance(of, list) else of


def _alike(a: Any, b: Any) -> bool:
    """Whether two questions are the same; numbers with a fraction to six digits."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_alike(a[name], b[name]) for name in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-6)
    return bool(a == b)
