"""Offline against online selection at every horizon: `python -m benchmarks.selection`."""
