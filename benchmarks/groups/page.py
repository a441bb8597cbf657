"""Writes docs/evidence/groups.md from the cells on disk."""

from __future__ import annotations


def write_page() -> None:
    """Nothing yet."""
