"""Whether values follow what rows say or how they are written: `python -m benchmarks.form`."""
