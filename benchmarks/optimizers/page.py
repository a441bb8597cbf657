"""Writes docs/optimizers.md from the cells on disk."""

from __future__ import annotations


def write_page() -> None:
    """Reads what is there and writes the page."""
