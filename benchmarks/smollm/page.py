"""Writes docs/evidence/smollm.md from the cells on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import EXACT
from benchmarks.claims import CLAIMS
from benchmarks.compared import require
from benchmarks.markdown import fill, long_table
from benchmarks.results_file import RESULTS, environments
from benchmarks.smollm import halves
from benchmarks.smollm.cell import WARM_UP
from benchmarks.smollm.exact import SAMPLES
from benchmarks.smollm.rows import LAYERS
from benchmarks.smollm.training import KINDS, RATES, Size

DOCS = Path(__file__).parents[2] / "docs"
CLOSED = 3  # the step from which on books are summed up: Adam's first two are near signs
MEGABYTE = 1e6


def write_page() -> None:
    """Reads what is there and writes the page."""
    cells = json.loads((RESULTS / "smollm.json").read_text())["cells"]
    size = Size()
    parts = {
        "SHAPE": f"{size.rows} rows of {size.tokens} tokens per step, {size.steps} steps",
        "RATES": " and ".join(f"{RATES[kind]:g} ({KINDS[kind]})" for kind in KINDS),
        "SAMPLES": str(SAMPLES),
        "TRAINED": _table(cells, _trained),
        "EXACT": _exact(cells),
        "HALVES": _halves(cells),
        **{name: str(number) for name, number in _scale().items()},
        **_said(halves_of(cells)),
        "WARM_UP": str(WARM_UP),
        "FINDINGS": (Path(__file__).parent / "findings.md").read_text().strip(),
        "LEFT": " and ".join(
            f"{throughput(cells[f'{kind}: in turns']['result'])[0]:.0%} ({KINDS[kind]})"
            for kind in KINDS
            if f"{kind}: in turns" in cells
        ),
        "RUN": environments(cells),
    }
    fill(Path(__file__).parent / "page.md", parts, DOCS / "evidence" / "smollm.md")


def _table(cells: Mapping[str, Any], rows_of: Callable[[Any, str], dict[str, str]]) -> str:
    """A column per kind of training."""
    kinds = [kind for kind in KINDS if f"{kind}: exact" in cells]
    columns = [rows_of({k: v["result"] for k, v in cells.items()}, kind) for kind in kinds]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    head = ["", *(KINDS[kind] for kind in kinds)]
    return long_table("smollm", "With and without attribution", head, rows)


def _trained(cells: Any, kind: str) -> dict[str, str]:
    plain, attributed = cells[f"{kind}: plain"], cells[f"{kind}: attributed"]
    shares = attributed["residual_shares"]
    share, seconds = throughput(cells[f"{kind}: in turns"])
    peaks = [run["peak_bytes"] / MEGABYTE for run in (plain, attributed)]
    same = plain["weights"] == attributed["weights"]
    return {
        "weights after training, with and without": "the same bits" if same else "**differ**",
        "texts with a value, and their visits": f"{attributed['samples']}, {attributed['visits']}",
        "covered": f"{attributed['covered']:.4f}",
        "residual of the books, steps 1 and 2": ", ".join(f"{s:.2%}" for s in shares[:2]),
        f"from step {CLOSED} on, median and highest": f"{np.median(shares[CLOSED - 1 :]):.2%}, "
        f"{max(shares[CLOSED - 1 :]):.2%}",
        "seconds of processor time per step, plain": f"{seconds['plain']:.2f}",
        "seconds per step, attributed": f"{seconds['attributed']:.2f}",
        "share of plain throughput that is left": f"{share:.1%}",
        "peak memory of the process, plain, MB": f"{peaks[0]:,.0f}",
        "peak memory, attributed, MB": f"{peaks[1]:,.0f} ({peaks[1] / peaks[0]:.2f} times)",
    }


def throughput(turns: Mapping[str, Any]) -> tuple[float, dict[str, float]]:
    """The median share of plain throughput in steps side by side, and median seconds."""
    seconds = {name: np.array(times) for name, times in turns["seconds"].items()}
    share = float(np.median(seconds["plain"] / seconds["attributed"]))
    return share, {name: float(np.median(times)) for name, times in seconds.items()}


def _exact(cells: Mapping[str, Any]) -> str:
    rows = []
    for kind, what in KINDS.items():
        if f"{kind}: exact" not in cells:
            continue
        for record in cells[f"{kind}: exact"]["result"]["records"]:
            shared, given = (record["agreement"][game] for game in ("shared", "given"))
            rows.append([
                what, str(record["step"]),
                *(f"{game['pearson']:.4f}, {game['relative_error']:.1%}"
                  for game in (shared, given)),
                f"{shared['sum_ratio']:.3f}",
            ])  # fmt: skip
    head = ["training", "step", "shared history: R, error", "given history: R, error"]
    head.append("sum over exact sum")
    return long_table("smollm_exact", "Values beside exact ones, by step", head, rows)


def _scale() -> dict[str, int]:
    scale = halves.Scale()
    return {
        "TALES": scale.tales, "TEXTS": scale.tales * len(halves.TRAINED), "CUT": scale.tokens,
        "SINGLE": scale.queries, "OTHERS": scale.held_out, "BATCH": scale.batch,
        "EPOCHS": scale.epochs, "LEFT_OUT": scale.halves, "ADAPTED": LAYERS,
    }  # fmt: skip


def _halves(cells: Mapping[str, Any]) -> str:
    """Scores of every method by seed, the best first, and what any values could reach."""
    found = halves_of(cells)
    order = sorted(found[0]["scores"], key=lambda m: -score(found, m))
    rows = [
        [
            method,
            *("{score:.2f} ({low:.2f} to {high:.2f})".format(**f["scores"][method]) for f in found),
            *(f"{part:.2f}" for part in _by_query(found, method)),
            f"{np.median([f['seconds'][method] for f in found]):.0f}",
        ]
        for method in order
    ]
    rows.append(["ceiling of any sums", *(f"{f['ceiling']:.2f}" for f in found), "", "", ""])
    seeds = [f"seed {n}" for n in range(len(found))]
    head = ["method", *seeds, "one retelling", halves.HELD_OUT, "seconds"]
    return long_table("smollm_halves", "Scores by method", head, rows)


def _said(found: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Scores that the text names, and how far the losses fell.

    Raises:
        ValueError: they do not bear the claim in `benchmarks/claims.py`.
    """
    named = {"FINITE": "look-ahead, finite push", "TANGENT": "look-ahead", "PATH": "path",
             "SLOPES": EXACT, "COSINE": "gradient cosine", "CHANCE": "random"}  # fmt: skip
    falls = -np.diff([f["start and end"] for f in found], axis=1)
    best = score(found, named["FINITE"])
    require(
        best == max(score(found, m) for m in halves.METHODS)
        and best > np.mean([f["ceiling"] for f in found]) - 0.05
        and all(f["scores"]["path"]["low"] < 0 for f in found),
        CLAIMS["smollm"].claim,
    )
    lowest = min(f["by query"][EXACT][k] for f in found for k in range(4))
    return {part: f"{score(found, method):.2f}" for part, method in named.items()} | {
        "CEILING": f"{np.mean([f['ceiling'] for f in found]):.2f}",
        "FALLS": f"{falls.min():.2f} to {falls.max():.2f}",
        "LOWEST": f"{lowest:.2f}",
    }


def halves_of(cells: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was found, by seed."""
    return [cell["result"] for key, cell in cells.items() if key.startswith("lora: halves")]


def score(found: Sequence[Mapping[str, Any]], method: str) -> float:
    """The mean over seeds."""
    return float(np.mean([f["scores"][method]["score"] for f in found]))


def _by_query(found: Sequence[Mapping[str, Any]], method: str) -> tuple[float, float]:
    """Means over seeds: of the single queries, and of the mean over other tales."""
    each = np.mean([f["by query"][method] for f in found], 0)
    return float(each[:-1].mean()), float(each[-1])


def summary(cells: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For the page of all benchmarks."""
    rows = []
    for kind, what in KINDS.items():
        records = cells[f"{kind}: exact"]["result"]["records"]
        r = [record["agreement"]["shared"]["pearson"] for record in records]
        shares = cells[f"{kind}: attributed"]["result"]["residual_shares"]
        left, _ = throughput(cells[f"{kind}: in turns"]["result"])
        rows.append(
            (f"{what}: R with exact values per step, the lowest of {len(r)}", f"{min(r):.4f}", "")
        )
        rows.append(
            (f"{what}: residual of the books per step, the highest", f"{max(shares):.2%}", "")
        )
        rows.append((f"{what}: share of plain throughput", f"{left:.0%}", ""))
    found = halves_of(cells)
    for method in ("look-ahead, finite push", "gradient cosine", "path", "random"):
        what = f"LoRA, half of the rows left out, {method}: datamodeling score"
        rows.append((what, f"{score(found, method):.2f}", ""))
    return rows
