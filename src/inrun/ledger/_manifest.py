"""What a run's folder says of itself: `run.json`.

Format 2 has a digest over everything else in it, and says how many parts of each kind were written
and what they are (`digests`, see `_parts`). Format 1, of earlier versions, has neither.
`unsealed` is there where a run of format 1 was continued: so many of its parts carry no checksum.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from inrun.errors import StoreError
from inrun.ledger._documents import FORMAT, OLDER, read_versioned, write_document
from inrun.ledger._files import is_there

KINDS = ("visits", "ledger")  # of parts that every run has
TOKENS = "tokens"  # and of those that some have
MANIFEST = "run.json"


def read_manifest(path: Path) -> dict[str, Any]:
    """What a run's folder says that it holds."""
    place = path / MANIFEST
    if not is_there(place):
        raise StoreError(f"{path} is not a run: it has no {MANIFEST}.")
    manifest = read_versioned(place)
    wrong = next((name for name, fits in _FIELDS.items() if not fits(manifest)), None)
    if wrong is not None:
        raise StoreError(
            f"{place} is malformed: {wrong!r} is {manifest.get(wrong)!r:.80}. Put the original "
            "back."
        )
    return manifest


def new_manifest(**about: Any) -> dict[str, Any]:
    """What a run says that has written nothing yet; `about`: see `RunFolder`."""
    return {
        "format": FORMAT, "run": uuid.uuid4().hex, **about, "id_type": None,
        "sign": "positive values lowered the validation loss", "unit": "validation loss",
        "parts": dict.fromkeys(KINDS, 0), "digests": dict.fromkeys(KINDS, ""),
    }  # fmt: skip


def continued(path: Path, own: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's folder says, for one that goes on with it.

    Raises:
        StoreError: it is not the kind of run that `own` says.
    """
    found = {"sized": False} | read_manifest(path)  # earlier versions had none
    for name in ("estimator", "targets", "weights", "extra", "sized"):
        if found.get(name) != own[name]:
            raise StoreError(
                f"{path} holds a run with {name} {found.get(name)!r}, and this one has "
                f"{own[name]!r}: it cannot be continued so. Attach as before."
            )
    kept = ("run", "id_type", "parts", "digests", "unsealed")
    made = {**own, **{name: found[name] for name in kept if name in found}}
    if found["format"] == OLDER:
        made["unsealed"] = {
            kind: len(list((path / kind).glob("*.parquet"))) for kind in (*KINDS, TOKENS)
        }
    return made


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Writes `run.json` with its digest."""
    write_document(path / MANIFEST, manifest)


def has_digest(manifest: Mapping[str, Any], kind: str, number: int = 0) -> bool:
    """Whether a run's part, or the one file of a kind, carries a checksum."""
    if manifest["format"] == OLDER:
        return False
    older = manifest.get("unsealed")
    return older is None or number >= older.get(kind, 1)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _targets(manifest: Mapping[str, Any]) -> bool:
    names = manifest.get("targets")
    return (
        isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and 0 < len(names) == len(set(names))
    )


def _weights(manifest: Mapping[str, Any]) -> bool:
    weights = manifest.get("weights")
    if weights is None:
        return bool(manifest["format"] == OLDER)
    return (
        isinstance(weights, list)
        and all(isinstance(w, (int, float)) and not isinstance(w, bool) for w in weights)
        and len(weights) == len(manifest["targets"])
    )


def _counts(manifest: Mapping[str, Any], name: str) -> bool:
    found = manifest.get(name)
    if found is None:
        return bool(manifest["format"] == OLDER) or name == "unsealed"
    return isinstance(found, dict) and all(map(_is_count, found.values()))


_FIELDS: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "estimator": lambda m: isinstance(m.get("estimator"), str),
    "targets": _targets,
    "weights": _weights,
    "id_type": lambda m: m.get("id_type", "none") in (None, "int64", "string"),
    "extra": lambda m: m.get("extra") in (None, "standard_error", "paid_out"),
    "sized": lambda m: m.get("sized", False) in (True, False),
    "run": lambda m: isinstance(m.get("run", "" if m["format"] == OLDER else None), str),
    "parts": lambda m: _counts(m, "parts"),
    "unsealed": lambda m: _counts(m, "unsealed"),
    "digests": lambda m: m["format"] == OLDER or isinstance(m.get("digests"), dict),
}
