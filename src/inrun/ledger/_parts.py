"""Which parts a run has: in their order, none missing, none of another run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from inrun.errors import StoreError
from inrun.ledger._files import Seal, checked_bytes, is_there, parsed
from inrun.ledger._manifest import is_sealed
from inrun.ledger._position import chained, part_name
from inrun.ledger._tokens import TOKENS


def listed(path: Path, manifest: Mapping[str, Any], kind: str) -> list[Path]:
    """The parts of a kind, by their names.

    Raises:
        StoreError: one is missing.
    """
    parts, missing = _named(path / kind, manifest.get("parts", {}).get(kind, 0))
    if missing is not None:
        raise _gap(missing)
    return parts


def whole(
    path: Path, manifest: Mapping[str, Any], kind: str
) -> tuple[list[Path], StoreError | None]:
    """The parts of a kind, each one's content checked.

    Returns:
        Those before the first that is missing, torn, changed or another one; and what is wrong
        with that one, if there is one.
    """
    count = manifest.get("parts", {}).get(kind, 0)
    try:
        parts, missing = _named(path / kind, count)
    except StoreError as fault:
        return [], fault
    digest = ""
    for number, part in enumerate(parts):
        try:
            sealed = is_sealed(manifest, kind, number)
            seal = Seal(kind, manifest.get("run", ""), number)
            content = checked_bytes(part, seal, sealed=sealed)
            if not sealed:
                parsed(part, content)
        except StoreError as fault:
            return parts[:number], fault
        digest = chained(digest, content)
        if number + 1 == count and manifest["digests"].get(kind) != digest:
            return [], StoreError(
                f"The parts in {path / kind} are not those that the run wrote, although each is "
                "whole: one was put in another's place. Put the original files back."
            )
    return parts, None if missing is None else _gap(missing)


def demand_whole(
    path: Path, manifest: Mapping[str, Any], single: Mapping[str, str], *, incomplete: bool = False
) -> StoreError | None:
    """Checks the files that are no parts of visits or books, as far as they are there.

    Returns:
        Which part of the values per token is missing, where the run may be `incomplete`.

    Raises:
        StoreError: one is torn, changed, or of another run.
    """
    run = manifest.get("run", "")
    files = [(path / name, Seal(kind, run)) for kind, name in single.items()]
    tokens, missing = _named(path / TOKENS, manifest.get("parts", {}).get(TOKENS, 0))
    if missing is not None and not incomplete:
        raise _gap(missing)
    files += [(part, Seal(TOKENS, run, number)) for number, part in enumerate(tokens)]
    for file, seal in files:
        if is_there(file):
            sealed = is_sealed(manifest, seal.kind, seal.number)
            content = checked_bytes(file, seal, sealed=sealed)
            if not sealed:
                parsed(file, content)
    return None if missing is None else _gap(missing)


def demand_columns(part: Path, table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table's columns in the schema's order.

    Raises:
        StoreError: it has others, of other types, or with cells that are empty.
    """
    found = {field.name: field.type for field in table.schema}
    wanted = {field.name: field.type for field in schema}
    if found != wanted or len(table.schema) != len(schema):
        strange = (
            sorted(n for n in found.keys() | wanted.keys() if found.get(n) != wanted.get(n))
            or table.column_names
        )
        raise StoreError(
            f"{part} does not have the columns that this version reads ({strange} differ): "
            "another version wrote it, or somebody changed it. Read it with that one, or with any "
            "Parquet reader."
        )
    empty = [name for name in table.column_names if table[name].null_count]
    if empty:
        raise StoreError(f"{part} has empty cells in {empty}: somebody changed it.")
    return table.select(schema.names)


def _named(folder: Path, count: int) -> tuple[list[Path], Path | None]:
    """The parts up to the first that is missing, and that one; at least `count` must be there."""
    try:
        there = sorted(p for p in folder.glob("*.parquet"))
    except OSError as error:
        raise StoreError(f"{folder} cannot be looked into ({error}).") from error
    for number, part in enumerate(there):
        if part.name != part_name(number):
            return there[:number], folder / part_name(number)
    return there, folder / part_name(len(there)) if len(there) < count else None


def _gap(missing: Path) -> StoreError:
    return StoreError(
        f"{missing} is missing: the run has a gap, and its sums would be without its visits or "
        "books. Put it back; inrun.load(run, incomplete=True) reads what comes before."
    )
