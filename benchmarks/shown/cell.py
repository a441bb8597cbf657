"""The runs by name: what each printed, or what its pictures are drawn from."""

from __future__ import annotations

from typing import Any

from benchmarks.shown import audit, digits, steps, topics

RUNS = {"digits": digits.shown, "topics": topics.shown, "audit": audit.shown, "steps": steps.shown}


def measure(key: str) -> dict[str, Any]:
    """Runs it."""
    return dict(RUNS[key]())
