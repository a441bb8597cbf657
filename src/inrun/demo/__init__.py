"""The first run: digits with wrong labels, found, explained, checked and pruned."""

from inrun.demo._demo import run_demo

__all__ = ["run_demo"]
