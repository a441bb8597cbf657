"""Checkpoints of a run that goes on: which is the last whole one, and whether it is as it was.

Most of a checkpoint's files are the Trainer's, which reads whatever they hold. So that a changed
one is never trained from, and a missing one is not another library's error, our own state in the
checkpoint, which is digested, has a checksum of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from inrun.errors import StoreError
from inrun.ledger import file_digest, read_state, unpack_state
from inrun.training._arguments import CHECKPOINTS

STATE = "inrun-train.safetensors"  # what a run of ours keeps beside the Trainer's
SCORED_STATE = "inrun.safetensors"  # of the callback: what it writes last into a checkpoint


def checksums(folder: Path) -> dict[str, str]:
    """Of every file in a checkpoint but our own two, by its path in there."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: file_digest(names[name]) for name in names.keys() - {STATE, SCORED_STATE}}


def last_whole(run: Path) -> Path | None:
    """The last checkpoint; one that a killed process was writing is none."""
    whole = [
        folder for folder in (run / CHECKPOINTS).glob("checkpoint-*")
        if all((folder / name).exists() for name in (STATE, SCORED_STATE))
    ]  # fmt: skip
    return max(whole, key=lambda folder: int(folder.name.split("-")[1]), default=None)


def require_unchanged(folder: Path) -> None:
    """Compares a checkpoint's files with what they were.

    Those of earlier versions, which have no checksums, are taken as they are.

    Raises:
        StoreError: one is missing, was changed or cannot be read.
    """
    header, _ = unpack_state(read_state(folder / STATE))
    known: Mapping[str, str] = header.get("files", {})
    try:
        wrong = next((n for n in sorted(known) if file_digest(folder / n) != known[n]), None)
    except OSError as error:
        raise StoreError(f"{error.filename} cannot be read: {error.strerror}. {_WAY_ON}") from error
    if wrong is not None:
        raise StoreError(
            f"{folder / wrong} was changed since the checkpoint was written: its checksum does not "
            f"fit. {_WAY_ON}"
        )


_WAY_ON = (
    "Put the original back; or remove this checkpoint's folder, so that --resume takes the one "
    "before it, if there is one; or start again."
)
