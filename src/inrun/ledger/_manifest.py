"""What a run's folder says of itself: `run.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from inrun.errors import StoreError

FORMAT = 1
MANIFEST = "run.json"


def read_manifest(path: Path) -> dict[str, Any]:
    """What a run's folder says that it holds.

    Raises:
        StoreError: it is not a run, or of another format.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except FileNotFoundError:
        raise StoreError(f"{path} is not a run: it has no {MANIFEST}.") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path / MANIFEST} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise StoreError(f"{path / MANIFEST} is not of format {FORMAT}, which this version reads.")
    return manifest
