"""Writes docs/evidence/tracing.md from the cells on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.markdown import fill, long_table
from benchmarks.results_file import RESULTS, environments
from benchmarks.tracing.cell import ASKED_AHEAD, EPOCHS
from benchmarks.tracing.corpus import DISTANCES, PASSAGES, encoded
from benchmarks.tracing.model import VOCABULARY, WIDTH, build

DOCS = Path(__file__).parents[2] / "docs"

Ranks = dict[str, dict[str, list[int]]]


def write_page() -> None:
    """Reads what is there and writes the page."""
    stored = json.loads((RESULTS / "tracing.json").read_text())["cells"]
    ranks: Ranks = {
        name: found for cell in stored.values() for name, found in cell["result"]["ranks"].items()
    }
    here = Path(__file__).parent
    model = build(encoded(VOCABULARY, WIDTH).vectors)
    fewer = {name: {d: found[d][:ASKED_AHEAD] for d in DISTANCES} for name, found in ranks.items()}
    all_asked = {n: f for n, f in ranks.items() if len(f["exact"]) > ASKED_AHEAD}
    parts = {
        "SOURCES": str(len(next(iter(all_asked.values()))["exact"])),
        "PASSAGES": f"{PASSAGES:,}",
        "PARAMETERS": f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,}",
        "EPOCHS": str(EPOCHS),
        "WIDTH": str(WIDTH),
        "AHEAD": str(ASKED_AHEAD),
        "FINDINGS": (here / "findings.md").read_text().strip(),
        "TABLE": long_table("tracing", "Ranks by method and query", *_table(all_asked)),
        "FEWER": long_table(
            "tracing_fewer", f"The first {ASKED_AHEAD} sources, all methods", *_table(fewer)
        ),
        "RUN": environments(stored),
        "SECONDS": ", ".join(
            f"{key.removesuffix(' seed=0')} {cell['result']['seconds']:.0f}"
            for key, cell in stored.items()
        ),
    }
    fill(here / "page.md", parts, DOCS / "evidence" / "tracing.md")


def _table(ranks: Ranks) -> tuple[list[str], list[list[str]]]:
    """The best at paraphrases first."""
    order = sorted(ranks, key=lambda name: float(np.median(ranks[name]["paraphrase"])))
    rows = [[name, *(_cell(ranks[name][d]) for d in DISTANCES)] for name in order]
    queries = len(ranks[order[0]]["exact"])
    return [f"method, {queries} queries each", *DISTANCES], rows


def _cell(ranks: list[int]) -> str:
    found = np.asarray(ranks)
    return f"{np.median(found):g} ({np.mean(found == 1):.0%}, {np.mean(found <= 10):.0%})"


def summary(cells: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For the page of all benchmarks."""
    ranks: dict[str, Mapping[str, list[float]]] = {}
    for cell in cells.values():
        ranks |= cell["result"]["ranks"]
    rows = []
    for method in ("path, standardised", "sgd, standardised", "BM25", "embedding similarity"):
        each = ", ".join(f"{np.median(numbers):g}" for numbers in ranks[method].values())
        distances = ", ".join(ranks[method])
        rows.append((f"`{method}`: median rank of the source ({distances})", each, ""))
    return rows
