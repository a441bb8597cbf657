"""One command a table: `python -m benchmarks.NAME`. Results go to benchmarks/results/ as JSON."""

EXACT = "look-ahead, exact slopes"
"""A row of several pages: `inrun.lookahead` with `damped=False`."""
