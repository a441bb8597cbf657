"""The rows behind a false answer of SmolLM2-135M, and the answer without them."""
