"""A run's parts on disk: in their order, none missing, none of another run; and back to a position.

A position says how far a run had come when a checkpoint was written: it names the run, counts its
parts and holds a digest of them, each kind's chained part by part: digest = SHA-256(digest before,
SHA-256 of the part). What was stored after the position will be trained again: it is set aside in
`discarded/`, so that no visit is counted twice and nothing is destroyed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from inrun.errors import StoreError
from inrun.ledger._files import PartId, checked_bytes, is_there, parsed
from inrun.ledger._manifest import KINDS, TOKENS, has_digest


def listed(path: Path, manifest: Mapping[str, Any], kind: str) -> list[Path]:
    """The parts of a kind, by their names."""
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
            digested = has_digest(manifest, kind, number)
            part_id = PartId(kind, manifest.get("run", ""), number)
            content = checked_bytes(part, part_id, digested=digested)
            if not digested:
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


def require_whole(
    path: Path, manifest: Mapping[str, Any], single: Mapping[str, str], *, incomplete: bool = False
) -> StoreError | None:
    """Checks the files that are no parts of visits or the ledger, as far as they are there.

    Returns:
        Which part of the values per token is missing, where the run may be `incomplete`.
    """
    run = manifest.get("run", "")
    files = [(path / name, PartId(kind, run)) for kind, name in single.items()]
    tokens, missing = _named(path / TOKENS, manifest.get("parts", {}).get(TOKENS, 0))
    if missing is not None and not incomplete:
        raise _gap(missing)
    files += [(part, PartId(TOKENS, run, number)) for number, part in enumerate(tokens)]
    for file, part_id in files:
        if is_there(file):
            digested = has_digest(manifest, part_id.kind, part_id.number)
            content = checked_bytes(file, part_id, digested=digested)
            if not digested:
                parsed(file, content)
    return None if missing is None else _gap(missing)


def require_columns(part: Path, table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table's columns in the schema's order."""
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


def chained(digest: str, content: bytes) -> str:
    """The digest with one more part."""
    own = hashlib.sha256(content).digest()
    return hashlib.sha256(bytes.fromhex(digest) + own).hexdigest()


def chain(digest: str, part: Path) -> str:
    """The digest with one more part that is on disk."""
    try:
        return chained(digest, part.read_bytes())
    except OSError as error:
        raise StoreError(f"{part} cannot be read ({error}).") from error


def part_name(number: int) -> str:
    """The file of a kind's part."""
    return f"{number:06d}.parquet"


def require_position(path: Path, run: str, where: Mapping[str, Any]) -> None:
    """Checks that the run on disk is the one that was left, whole up to the position."""
    if not _is_position(where):
        raise StoreError(
            "The state's position in its store is malformed. Resume from another checkpoint."
        )
    if run != where["run"]:
        raise StoreError(
            f"{path} is not the run that this state was taken from. Attach to the store that the "
            "checkpoint was written with; it may have been moved or renamed, but not replaced."
        )
    for kind in KINDS:
        digest = ""
        for number in range(where["parts"][kind]):
            part = path / kind / part_name(number)
            if not part.exists():
                raise StoreError(
                    f"{part} is missing, which was there when the checkpoint was written: the run "
                    "cannot be continued without losing visits. Put it back."
                )
            digest = chain(digest, part)
        if digest != where["digests"][kind]:
            raise StoreError(
                f"The parts in {path / kind} are not those of the checkpoint: at least one was "
                "changed or cut off since. Put the original files back, or start a new run."
            )


def _is_position(where: object) -> bool:
    if not isinstance(where, Mapping) or not isinstance(where.get("run"), str):
        return False
    parts, digests = where.get("parts"), where.get("digests")
    return (
        isinstance(parts, Mapping)
        and isinstance(digests, Mapping)
        and all(isinstance(parts.get(kind), int) for kind in KINDS)
        and all(isinstance(digests.get(kind), str) for kind in KINDS)
    )


def set_aside(path: Path, parts: Mapping[str, int]) -> None:
    """Moves what lies after the position away; a process killed in between may do it again.

    Raises:
        StoreError: the disk refused.
    """
    late = [
        part
        for kind in KINDS
        for part in sorted((path / kind).glob("*.parquet"))
        if part.name >= part_name(parts[kind])
    ]
    if not late:
        return
    aside = path / "discarded"
    try:
        number = len(list(aside.iterdir())) if aside.exists() else 0
        for part in reversed(late):  # from the end, so that what is left never has a gap
            target = aside / f"{number:04d}" / part.parent.name / part.name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(part, target)
    except OSError as error:
        raise StoreError(f"Parts of {path} could not be set aside ({error}).") from error
