"""The cells: what the tutorial says of one model, and its page."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.data import smollm2
from benchmarks.markdown import EVIDENCE, fill, long_table
from benchmarks.results_file import RESULTS, environments

TUTORIAL = Path(__file__).parents[2] / "examples" / "tutorials" / "what_taught_it.py"
MODELS = ("the tutorial's tiny Llama", "SmolLM2-135M, LoRA")
TRAININGS = ("trained on all rows", "trained without the twelve first",
             "trained without twelve random")  # fmt: skip


def measure(key: str) -> dict[str, Any]:
    """The tutorial in a process of its own: recalls, false answers, what it printed, seconds."""
    command = [sys.executable, str(TUTORIAL), *([str(smollm2())] if key == MODELS[1] else [])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    said = [line for line in done.stdout.splitlines() if line and not line.startswith("{")]
    text = "\n".join(said)
    recalls = re.findall(r"recall@(\d+): by value ([\d.]+), by words ([\d.]+)", text)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "recall": {k: {"by value": float(v), "by words": float(w)} for k, v, w in recalls},
        "false answers": {
            name: int(re.findall(rf"{name}: (\d+) of", text)[0]) for name in TRAININGS
        },
        "processor seconds": used.ru_utime + used.ru_stime,
        "said": said,
    }


def write_page() -> None:
    """Reads what is there and writes the page."""
    cells = json.loads((RESULTS / "taught.json").read_text())["cells"]
    found = {key: cell["result"] for key, cell in cells.items()}
    sizes = list(next(iter(found.values()))["recall"])
    recall = [
        [key, by, *(f"{result['recall'][k][by]:.2f}" for k in sizes)]
        for key, result in found.items() for by in ("by value", "by words")
    ]  # fmt: skip
    gone = [
        [key, *(f"{result['false answers'][name]} of 4" for name in TRAININGS),
         f"{result['processor seconds'] / 60:.0f} min"]
        for key, result in found.items()
    ]  # fmt: skip
    parts = {
        "RECALL": long_table(
            "taught_recall", "Recall", ["model", "ranked", *(f"recall@{k}" for k in sizes)], recall
        ),
        "GONE": long_table(
            "taught_answers", "False answers", ["model", *TRAININGS, "processor time"], gone
        ),
        "RUN": environments(cells),
    }
    fill(Path(__file__).parent / "page.md", parts, EVIDENCE / "taught.md")


def summary(cells: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For the page of all benchmarks."""
    rows = []
    for key, cell in cells.items():
        result = cell["result"]
        found = [result["recall"]["12"][by] for by in ("by value", "by words")]
        false = ", ".join(str(n) for n in result["false answers"].values())
        rows.append((f"{key}: recall@12 by value, by words", "{:.2f}, {:.2f}".format(*found), ""))
        what = "false answers of 4: all rows, without the first twelve, without random ones"
        rows.append((f"{key}: {what}", false, ""))
    return rows
