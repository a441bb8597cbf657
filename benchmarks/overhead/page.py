"""Writes docs/evidence/cost.md from the cells on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.markdown import fill, long_table, markdown
from benchmarks.overhead.methods import PROFILED, REFERENCE, Size
from benchmarks.overhead.scaling import growth, larger
from benchmarks.results_file import RESULTS

PAGE = Path(__file__).parents[2] / "docs" / "evidence" / "cost.md"
MEGABYTE = 2**20
SHOWN = ("hold", "stream", "hold, half the validation rows", "naive per-sample gradients")


def write_page() -> None:
    """Reads what is there and writes the page."""
    cells = json.loads((RESULTS / "overhead.json").read_text())["cells"]
    sizes = {Size.of(key): cell["result"] for key, cell in cells.items()}
    parts = {"SUMMARY": _summary(sizes), "METHODS": _methods(sizes), "PARTS": _parts(sizes)}
    parts |= {"GROWTH": growth(sizes), "LARGER": larger(sizes)}
    parts["MANY"] = _many(json.loads((RESULTS / "many.json").read_text())["cells"])
    environment = list(cells.values())[-1]["environment"]
    parts["RUN"] = (
        f"{len(cells)} sizes, commit {environment['commit']}, PyTorch {environment['torch']}, "
        f"Python {environment['python']}, one thread of {environment['cores']} cores, "
        f"{environment['gpu'] or 'no GPU'}"
    )
    fill(Path(__file__).parent / "page.md", parts, PAGE)


def _many(cells: Mapping[str, Any]) -> str:
    """Steps of many small parameters beside plain ones."""
    rows = []
    for key, cell in cells.items():
        plain, scored = (cell["result"][name] for name in ("plain", "scored"))
        median, mean = (of(scored) / of(plain) for of in (np.median, np.mean))
        commit = cell["environment"]["commit"]
        milliseconds = f"{1e3 * np.median(plain):.0f}", f"{1e3 * np.median(scored):.0f}"
        rows.append([key, *milliseconds, f"{median:.2f}", f"{mean:.2f}", commit])
    head = ["parameters", "plain, ms", "scored, ms", "times plain, median", "mean", "commit"]
    return markdown(head, rows)


def _summary(sizes: Mapping[Size, Mapping[str, Any]]) -> str:
    """Time over plain training with a validation pass: one row per size."""
    rows = []
    for size, found in sizes.items():
        ratios = [
            f"{np.median(found[name]['ratio']):.2f}" if found.get(name) else "" for name in SHOWN
        ]
        plain, hold = found["plain"], found["hold"]
        share = 1 / np.median(np.array(hold["seconds"]) / np.array(plain["seconds"]))
        memory = hold["peak_bytes"] / plain["peak_bytes"]
        rows.append([size.words, *ratios, f"{share:.1%}", f"{memory:.2f}"])
    head = ["size", *SHOWN, "`hold`: of plain throughput", "of plain memory"]
    return markdown(head, rows)


HEAD = [
    "method", "samples/s", "of plain throughput", "time over plain + validation (quartiles)",
    "peak MB", "of plain's", "R with the dense contraction: lowest, median",
]  # fmt: skip


def section(size: Size, found: Mapping[str, Any]) -> str:
    """One size's table."""
    return f"## {_told(size)}\n\n{markdown(HEAD, _section(size, found))}"


def _methods(sizes: Mapping[Size, Mapping[str, Any]]) -> str:
    """Every method at every size."""
    rows = []
    for size, found in sizes.items():
        rows += [[_told(size), *row] for row in _section(size, found)]
    return long_table("cost_methods", "Every method at every size", ["size", *HEAD], rows)


def _told(size: Size) -> str:
    with torch.device("meta"):
        parameters = sum(p.numel() for p in size.model().parameters())
    return (
        f"{size.batch} x {size.tokens} tokens, validation {size.validation} x {size.tokens}, "
        f"{size.layers} layers of width {size.width} ({size.kind}, {parameters / 1e6:.1f} million "
        f"parameters, {size.precision})"
    )


def _section(size: Size, found: Mapping[str, Any]) -> list[list[str]]:
    plain = found["plain"]
    rows = []
    for name, one in found.items():
        if one is None:
            rows.append([name, "does not fit", *[""] * 5])
            continue
        ratio = np.array(one["ratio"])
        to_plain = np.array(one["seconds"]) / np.array(plain["seconds"])
        agreed = [r for r in one["r_with_exact"] if np.isfinite(r)]
        rows.append([
            name,
            f"{size.batch / np.median(one['seconds']):.2f}",
            f"{1 / np.median(to_plain):.1%}",
            "1" if name == REFERENCE else _range(ratio),
            f"{one['peak_bytes'] / MEGABYTE:.0f}",
            f"{one['peak_bytes'] / plain['peak_bytes']:.3f}",
            f"{min(agreed):.4f}, {np.median(agreed):.6f}" if agreed else "",
        ])  # fmt: skip
    return rows


def _parts(sizes: Mapping[Size, Mapping[str, Any]]) -> str:
    """Milliseconds per step of each part, beside the time of training and its validation pass."""
    rows = []
    for size, found in sizes.items():
        whole = np.median(found[REFERENCE]["seconds"])
        profiled = [name for name in PROFILED if found[name] is not None]
        for part in dict.fromkeys(part for name in profiled for part in found[name]["parts"]):
            parts = [found[n]["parts"].get(part, 0.0) if n in profiled else 0.0 for n in PROFILED]
            cells = (f"{1e3 * s:.1f} ({s / whole:.1%})" if s else "" for s in parts)
            rows.append([size.words, part, *cells])
    head = ["size", "of a step", *(f"{n}, ms (of plain + validation pass)" for n in PROFILED)]
    return long_table("cost_parts", "Parts of a step", head, rows)


def _range(ratio: np.ndarray) -> str:
    low, middle, high = np.percentile(ratio, [25, 50, 75])
    return f"**{middle:.3f}** ({low:.3f} to {high:.3f})"
