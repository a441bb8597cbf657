"""How far a run on disk had come when a checkpoint was written, and how it is taken back to there.

A position names the run, counts its parts and holds a digest of them, each kind's chained part by
part: digest = SHA-256(digest before, SHA-256 of the part). What was stored after the position will
be trained again: it is set aside in `discarded/`, so that no visit is counted twice and nothing is
destroyed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inrun.errors import StoreError

KINDS = ("visits", "ledger")


def chained(digest: str, content: bytes) -> str:
    """The digest with one more part."""
    own = hashlib.sha256(content).digest()
    return hashlib.sha256(bytes.fromhex(digest) + own).hexdigest()


def chain(digest: str, part: Path) -> str:
    """The digest with one more part that is on disk.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        return chained(digest, part.read_bytes())
    except OSError as error:
        raise StoreError(f"{part} cannot be read ({error}).") from error


def part_name(number: int) -> str:
    """The file of a kind's part."""
    return f"{number:06d}.parquet"


def position(run: str, parts: Mapping[str, int], digests: Mapping[str, str]) -> dict[str, Any]:
    """A position, in plain numbers and strings."""
    return {"run": run, "parts": dict(parts), "digests": dict(digests)}


def demand(path: Path, run: str, where: Mapping[str, Any]) -> None:
    """Checks that the run on disk is the one that was left, whole up to the position.

    Raises:
        StoreError: it is another run, or a part is missing or was changed; it is named.
    """
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


def set_aside(path: Path, parts: Mapping[str, int]) -> int:
    """Moves what lies after the position away; a process killed in between may do it again.

    Returns:
        How many parts were moved.

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
        return 0
    aside = path / "discarded"
    try:
        number = len(list(aside.iterdir())) if aside.exists() else 0
        for part in reversed(late):  # from the end, so that what is left never has a gap
            target = aside / f"{number:04d}" / part.parent.name / part.name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(part, target)
    except OSError as error:
        raise StoreError(f"Parts of {path} could not be set aside ({error}).") from error
    return len(late)
