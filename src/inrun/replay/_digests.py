"""Digests of a recording's files, which its manifest keeps: what was changed since is refused.

The manifest's own digest is over everything else in it. Recordings of format 1 have none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inrun.errors import StoreError

_BLOCK = 1 << 22


PARTS = ("steps.jsonl", "states/*.safetensors", "random/*.safetensors")


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file in a recording, by its path in it; the manifest is not among them."""
    files = [path for part in PARTS for path in sorted(folder.glob(part))]
    return {path.relative_to(folder).as_posix(): _digest(path) for path in files}


def demand_file(folder: Path, path: Path, digests: Mapping[str, str] | None) -> None:
    """Raises where a file is not the one that was recorded.

    Raises:
        StoreError: it is missing, torn, changed, or none of the recording's.
    """
    if digests is None:
        return  # an older recording, or one that is still being made
    try:
        found = _digest(path)
    except OSError as error:
        raise StoreError(
            f"{path} is missing or torn ({error}). A replay starts from it: record the run again."
        ) from error
    if digests.get(path.relative_to(folder).as_posix()) != found:
        raise StoreError(
            f"{path} is torn or was changed since it was recorded: its digest does not fit. Put "
            "the original back, or record the run again."
        )


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """The digest of what a manifest says, but for itself."""
    told = {name: value for name, value in manifest.items() if name != "digest"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()
