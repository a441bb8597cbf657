"""One command a table: `python -m benchmarks.NAME`. Results go to benchmarks/results/ as JSON."""
