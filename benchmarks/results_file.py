"""Results on disk: cells that are kept one by one, so that a run that was cut off goes on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

import inrun

ROOT = Path(__file__).parent
RESULTS = ROOT / "results"


def environment() -> dict[str, Any]:
    """What the numbers were measured with."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "commit": _commit(),
        "inrun": inrun.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }


def _commit() -> str:
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return asked.stdout.strip() or "unknown"


def cells(
    name: str, keys: Iterable[str], measure: Callable[[str], Any], *, fresh: bool = False
) -> dict[str, Any]:
    """Measures each key that is not on disk yet, saving after each; returns all of them."""
    path = RESULTS / f"{name}.json"
    measured_with = environment()
    found: dict[str, Any] = {}
    if path.exists() and not fresh:
        found = json.loads(path.read_text())["cells"]
    for key in keys:
        if key not in found:
            print(f"{name}: {key}", flush=True)
            found[key] = {"environment": measured_with, "result": measure(key)}
            path.parent.mkdir(exist_ok=True)
            text = json.dumps({"benchmark": name, "cells": found}, indent=1)
            path.write_text(text + "\n")
    return {key: found[key]["result"] for key in keys}
