"""Accuracy after dropping what a ranking puts first: `python -m benchmarks.pruning`."""
