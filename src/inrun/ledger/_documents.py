"""Files that are no tables, digested: JSON documents, and logs of one line per result.

    document   {..., "digest": SHA-256 of the rest}, written in one way, byte for byte
    log        {..., "seal": SHA-256 of the digests before and this line}, one object per line

Files of older versions have no digest and are read as they are. A digest that a flipped bit has
made unreadable is not taken for one that was never there.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inrun.errors import StoreError
from inrun.ledger._files import changed_file, replace_file

FORMAT, OLDER = 2, 1
LONGEST = 50_000_000  # bytes: hundreds of thousands of targets, or of files
_SEALED_END = re.compile(r'": "[0-9a-f]{64}"\n}\n\Z')


def document_digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of everything in a document but its digest."""
    told = {name: value for name, value in content.items() if name != "digest"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def write_document(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON document with its digest, whole or not at all.

    Raises:
        StoreError: the disk refused.
    """
    text = _text({**content, "digest": document_digest(content)})
    replace_file(path, lambda file: file.write(text.encode()))


def read_document(path: Path) -> dict[str, Any]:
    """Reads what `write_document` was given, or a document without a digest.

    Raises:
        StoreError: there is none, it is no JSON object, or it was changed.
    """
    try:
        text = path.read_bytes().decode()
        found = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{path} cannot be read ({error}).") from error
    if not isinstance(found, dict):
        raise StoreError(f"{path} is no JSON object.")
    if "digest" not in found and not _SEALED_END.search(text):
        return found
    if found.get("digest") != document_digest(found) or _text(found) != text:
        raise changed_file(path)
    return {name: value for name, value in found.items() if name != "digest"}


def read_versioned(path: Path) -> dict[str, Any]:
    """A document that says its `format`: 1 has no digest, 2 has.

    Raises:
        StoreError: it cannot be read, is of another format, or was changed.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(LONGEST + 1)
        found = json.loads(content.decode("utf-8"))
        digest = document_digest(found) if isinstance(found, dict) else None
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{path} cannot be read: {error}") from error
    known = found.get("format") if isinstance(found, dict) else None
    if not isinstance(found, dict) or isinstance(known, bool) or known not in (OLDER, FORMAT):
        raise StoreError(f"{path} is not of format {OLDER} or {FORMAT}, which this version reads.")
    if found.get("digest") != (digest if known == FORMAT else None):
        raise StoreError(
            f"{path} was changed since it was written: its digest does not fit. Put the original "
            "back."
        )
    return found


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, which need not fit into memory."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 22):
            found.update(piece)
    return found.hexdigest()


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"


class Log:
    """A file that grows by one JSON object per line.

    Args:
        path: of the file; None keeps nothing.

    Raises:
        StoreError: it cannot be read, or a line was changed, cut off, taken out or put elsewhere.
    """

    def __init__(self, path: Path | None):
        self._path, self._digest = path, ""
        self.lines: list[dict[str, Any]] = []
        try:
            text = b"" if path is None or not path.exists() else path.read_bytes()
            raw = text.decode().removesuffix("\n").split("\n") if text else []
            found = [json.loads(line) for line in raw]
        except (OSError, ValueError, RecursionError) as error:
            raise StoreError(
                f"{path} is torn ({error}): remove its last line to go on from there."
            ) from error
        for number, line in enumerate(found, start=1):
            self.lines.append(self._opened(line, raw[number - 1], number))

    def _opened(self, line: Any, raw: str, number: int) -> dict[str, Any]:
        digest = line.pop("seal", None) if isinstance(line, dict) else ""
        if digest is None and not self._digest:  # of an older version
            return dict(line)
        known = isinstance(line, dict) and digest == self._digest_of(line)
        if not known or raw != json.dumps({**line, "seal": digest}):
            raise StoreError(
                f"{self._path} was changed: line {number} does not fit its checksum and the lines "
                "before it. Put the original back, or name a new file."
            )
        self._digest = str(digest)
        return dict(line)

    def _digest_of(self, line: Mapping[str, Any]) -> str:
        return hashlib.sha256((self._digest + json.dumps(line)).encode()).hexdigest()

    def append(self, line: dict[str, Any]) -> None:
        """Adds a line to the file.

        Raises:
            StoreError: the disk refused.
        """
        self.lines.append(line)
        if self._path is None:
            return
        digest = self._digest_of(line)
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps({**line, "seal": digest}) + "\n")
        except OSError as error:
            raise StoreError(f"{self._path} could not be written: {error}") from error
        self._digest = digest
