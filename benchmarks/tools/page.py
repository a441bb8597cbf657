"""Writes docs/evidence/tools.md from the cells on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import EXACT
from benchmarks.markdown import fill, long_table, markdown
from benchmarks.results_file import RESULTS, environments
from benchmarks.tools.cell import AGAIN, CONTROLS, HALVES, INSTALL, MEMORY, TOOLS, TRUTH
from benchmarks.tools.experiment import BATCH, LEFT_OUT, SAMPLES, Setting
from benchmarks.tools.frame import LAYERS, LENGTH, VOCABULARY, WIDTH, Gpt2

PAGE = Path(__file__).parents[2] / "docs" / "evidence" / "tools.md"
HEAD = ["tool", "method", "one sample", "half of them", "seconds: 1 query", "10 queries", "off"]
Cells = Mapping[str, Mapping[str, Any]]


def write_page() -> None:
    """Reads what is there and writes the page."""
    stored = json.loads((RESULTS / "tools.json").read_text())["cells"]
    settings = _settings(stored)
    parts = {
        "MODEL": f"The model is GPT-2 with {LAYERS} layers of width {WIDTH}, of plain PyTorch "
        f"layers ({sum(p.numel() for p in Gpt2().parameters()):,} parameters), on {SAMPLES} rows "
        f"of {LENGTH} words of the Brown corpus over {VOCABULARY} words, in batches of {BATCH}",
        "LEFT_OUT": f"{LEFT_OUT}",
        "HALVES": f"{HALVES}",
        "TABLE": _main(settings),
        "TABLES": "\n\n".join(
            long_table(
                f"tools_{setting.epochs}", f"Every row, {_told(setting)}", HEAD, _rows(cells)
            )
            for setting, cells in settings.items()
        ),
        "MEMORY": markdown(["tool", "memory, MB", "disk, MB"], _memory(stored)),
        "INSTALL": INSTALL,
        "RUN": environments(stored),
    }
    fill(Path(__file__).with_name("page.md"), parts, PAGE)


def _told(setting: Setting) -> str:
    return f"{setting.epochs} epochs, rate {setting.rate:g}"


def _main(settings: Mapping[Setting, Cells]) -> str:
    """The main rows: by setting single removals, halves, and seconds with all queries."""
    rows = []
    for name, method in MAIN:
        row = [name, method]
        for cells in settings.values():
            scores = cells.get(name, {}).get("scores", {})
            if method in scores:
                costs = _costs(cells[name], method)[1]
                row += [f"{scores[method]['single']:.3f}", _scores(scores[method])[1], costs]
            else:
                row += ["—"] * 3
        rows.append(row)
    heads = [
        f"{what}: {_told(setting)}"
        for setting in settings
        for what in ("one sample", "half of them", "seconds")
    ]
    return markdown(["tool", "method", *heads], rows)


def _settings(stored: Mapping[str, Any]) -> dict[Setting, dict[str, Mapping[str, Any]]]:
    """By setting, each tool's result."""
    found: dict[Setting, dict[str, Mapping[str, Any]]] = {}
    for key, cell in stored.items():
        name, _, setting = key.rpartition(": ")
        if name.startswith(MEMORY):
            continue
        found.setdefault(Setting.of(setting), {})[name] = cell["result"]
    return found


def _rows(cells: Cells) -> list[list[str]]:
    """Tools in their order, then the controls and the ceiling."""
    rows = []
    for name in [*(tool.name for tool in TOOLS), CONTROLS, AGAIN]:
        if name not in cells and name in (CONTROLS, AGAIN):
            continue
        if name not in cells:
            rows.append([name, "not installed", *["—"] * (len(HEAD) - 2)])
            continue
        cell = cells[name]
        for method, score in cell["scores"].items():
            own = "" if name == AGAIN else name
            rows.append([own, method, *_scores(score), *_costs(cell, method)])
    if CONTROLS in cells:
        ceiling = f"{cells[CONTROLS]['ceiling']:.3f}"
        rows.append(["", "ceiling of any sums", "", ceiling, *[""] * 3])
    return rows


def _scores(score: Mapping[str, float | None]) -> list[str]:
    half = "—"
    if score["score"] is not None and score["high"] is not None and score["low"] is not None:
        half = f"{score['score']:.3f} (±{(score['high'] - score['low']) / 2:.2f})"
    return [f"{score['single']:.3f} ({score['single_mean']:.3f})", half]


def _costs(cell: Mapping[str, Any], method: str) -> list[str]:
    """Seconds with one query and with all, and how far off its training was."""
    if "seconds" not in cell:
        return [""] * 3
    seconds = [
        f"{cell[kind].get('', 0) + cell[kind][method]:.1f}" for kind in ("seconds_one", "seconds")
    ]
    away = cell["away"]
    off = "—" if away is None else f"{away:.0e}" if away else "0"
    return [*seconds, off]


def _memory(stored: Mapping[str, Any]) -> list[list[str]]:
    """By tool, what a process that does only this took."""
    cells = {
        key.removeprefix(MEMORY).rpartition(": ")[0]: cell["result"]
        for key, cell in stored.items()
        if key.startswith(MEMORY)
    }
    return [
        [name, f"{cell['peak_mb']:,.0f}", f"{cell['disk_mb']:,.0f}"] for name, cell in cells.items()
    ]


def summary(cells: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For the page of all benchmarks."""
    rows = []
    for setting, found in _settings(cells).items():
        for name, method in MAIN:
            scores = found.get(name, {}).get("scores", {}).get(method)
            if scores:
                what = (
                    f"{name}, {method}: one sample left out, half of them; {setting.epochs} epochs"
                )
                half = "—" if scores["score"] is None else f"{scores['score']:.3f}"
                rows.append((what, f"{scores['single']:.3f}, {half}", ""))
    return rows


MAIN = (
    ("inrun", "look-ahead"), ("inrun", EXACT),
    ("inrun", "look-ahead, carried push"), ("inrun", "look-ahead, between"),
    ("Bergson 2.5.1", "MAGIC"),
    ("dattri-llm 0.1.0", "AdamW-influence"), ("dattri-llm 0.1.0", "EK-FAC, damping 0.01"),
    ("Kronfluence 1.0.1", "EK-FAC, its own damping"),
    ("GhostSuite b1a3524", "gradient dot products"), (CONTROLS, "words in common"), (AGAIN, TRUTH),
)  # fmt: skip
