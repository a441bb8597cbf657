"""Which training passage a text came from: `python -m benchmarks.tracing`."""
