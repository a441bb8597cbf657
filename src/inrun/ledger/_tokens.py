"""Values per token on disk: `tokens/000000.parquet` and so on in a run's folder.

One row per visit: `step`, `sample_id`, `tokens` (the sample's tokens as text), `values` (each
one's; they add up to the visit's value).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from inrun.errors import StoreError
from inrun.ledger._documents import OLDER
from inrun.ledger._files import PartId, is_there, read_table, write_table
from inrun.ledger._manifest import MANIFEST, TOKENS, has_digest, read_manifest
from inrun.ledger._parts import part_name

FLUSH_ROWS = 4096


class TokenFolder:
    """Writes parts; a part is there whole or not at all.

    Args:
        run: the run's folder.
        count: is told how many parts there are, so that the run knows when the last is lost.
    """

    def __init__(self, run: Path, count: Callable[[int], None] = lambda parts: None):
        self.run, self.path, self.parts, self._count = run, run / TOKENS, 0, count
        self._rows: list[dict[str, Any]] = []

    def add(self, step: int, rows: Sequence[dict[str, Any]]) -> None:
        """Adds a step's visits: `sample_id`, `tokens`, `values`."""
        self._rows += [{"step": step} | row for row in rows]
        if len(self._rows) >= FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Writes what is waiting.

        Raises:
            StoreError: the disk refused; it still waits.
        """
        if not self._rows:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{self.path} could not be made ({error}).") from error
        run = read_manifest(self.run)["run"] if is_there(self.run / MANIFEST) else ""
        table = pa.Table.from_pylist(self._rows)
        write_table(self.path / part_name(self.parts), table, PartId(TOKENS, run, self.parts))
        self._rows, self.parts = [], self.parts + 1
        self._count(self.parts)

    def state(self) -> dict[str, int]:
        """What is stored, for a checkpoint."""
        return {"parts": self.parts}

    def restore(self, state: Mapping[str, int]) -> None:
        """Removes parts that came after a checkpoint: those steps will be trained again.

        Raises:
            StoreError: the state is malformed, or the disk refused.
        """
        parts = state.get("parts")
        if not isinstance(parts, int):
            raise StoreError(
                "The state of values per token is malformed: it has no number of parts."
            )
        self.parts, self._rows = parts, []
        self._count(parts)  # first: the run never says that it has more than it has
        try:
            for part in self.path.glob("*.parquet"):
                if part.name >= part_name(self.parts):
                    part.unlink()
        except OSError as error:
            raise StoreError(f"Parts of {self.path} could not be removed ({error}).") from error


def token_parts(run: Path) -> Iterator[pa.Table]:
    """All visits' tokens, one part at a time; nothing where the run kept none.

    Raises:
        StoreError: a part is missing, torn, changed or of another run.
    """
    parts = sorted((run / TOKENS).glob("*.parquet"))
    manifest = read_manifest(run) if is_there(run / MANIFEST) else {"format": OLDER}
    for number, part in enumerate(parts):
        part_id = PartId(TOKENS, str(manifest.get("run", "")), number)
        yield read_table(part, part_id, digested=has_digest(manifest, TOKENS, number))
