"""The command `inrun`: parse, call, print."""

from inrun.cli._main import main

__all__ = ["main"]
