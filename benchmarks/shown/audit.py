"""The demo's run, as `inrun audit` sees it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.shown.shell import printed, transcript


def shown() -> dict[str, str]:
    """The transcript."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        printed(folder, "inrun demo --seeds 2")
        return {"audit": transcript(folder, "inrun audit inrun-demo/run")}
