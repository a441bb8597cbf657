"""Values a token on disk: `tokens/000000.parquet` and so on in a run's folder.

A row a visit: `step`, `sample_id`, `tokens` (the sample's tokens as text), `values` (each one's;
they add up to the visit's value).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

TOKENS = "tokens"
FLUSH_ROWS = 4096


class TokenFolder:
    """Writes parts; a part is there whole or not at all."""

    def __init__(self, run: Path, parts: int = 0):
        self.path, self.parts = run / TOKENS, parts
        self._rows: list[dict[str, Any]] = []

    def add(self, step: int, rows: Sequence[dict[str, Any]]) -> None:
        """Adds a step's visits: `sample_id`, `tokens`, `values`."""
        self._rows += [{"step": step} | row for row in rows]
        if len(self._rows) >= FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Writes what is waiting."""
        if not self._rows:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        place = self.path / f"{self.parts:06d}.parquet"
        beside = place.with_suffix(".part")
        pq.write_table(pa.Table.from_pylist(self._rows), beside, compression="zstd")
        beside.replace(place)
        self._rows, self.parts = [], self.parts + 1

    def state(self) -> dict[str, int]:
        """What is stored, for a checkpoint."""
        return {"parts": self.parts}

    def restore(self, state: Mapping[str, int]) -> None:
        """Removes parts that came after a checkpoint: those steps will be trained again."""
        self.parts, self._rows = state["parts"], []
        for part in self.path.glob("*.parquet"):
            if int(part.stem) >= self.parts:
                part.unlink()


def read_tokens(run: Path) -> pa.Table | None:
    """All visits' tokens, or None where the run kept none."""
    parts = sorted((run / TOKENS).glob("*.parquet"))
    return pa.concat_tables([pq.read_table(part) for part in parts]) if parts else None
