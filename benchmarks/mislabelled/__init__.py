"""How well wrong labels are found and mended: `python -m benchmarks.mislabelled`."""
