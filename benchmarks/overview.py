"""The page of all benchmarks: for each its question, its main figure, and what others report.

Our figures are computed from the results on disk. Others' are as their papers give them, on their
own models and machines; where the other method was run here, that is a figure of ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.claims import CLAIMS
from benchmarks.datamodeling.page import summary as of_halves
from benchmarks.explain.page import NO_ROWS
from benchmarks.fidelity.reading import cells_of, plain, values
from benchmarks.groups.page import summary as of_groups
from benchmarks.heads.cell import WAYS
from benchmarks.import_time import REFERENCE, ratios
from benchmarks.interaction.cell import OPTIMIZERS
from benchmarks.interaction.losses import TASKS
from benchmarks.interaction.page import found as of_loss
from benchmarks.interaction.page import measured
from benchmarks.markdown import markdown
from benchmarks.overhead.page import by_size, kept
from benchmarks.queries.page import summary as of_queries
from benchmarks.results_file import RESULTS
from benchmarks.smollm.page import throughput
from benchmarks.smollm.training import KINDS
from benchmarks.statements.page import summary as of_statements
from benchmarks.window.page import summary as of_windows

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
CLOSED, MOVING = 5, 8  # the steps from which on fidelity and optimizers are summed up
Cells = Mapping[str, Any]


class Topic(NamedTuple):
    """A benchmark: its module, its page, what it asks, and rows of (what, ours, others')."""

    name: str
    page: str | None
    question: str
    rows: Callable[[Cells], list[tuple[str, str, str]]]


def write_page() -> None:
    """Reads the results and writes the page."""
    parts = [HEAD]
    for topic in TOPICS:
        cells = json.loads((RESULTS / f"{topic.name}.json").read_text())["cells"]
        rows = topic.rows(cells)
        cited = any(row[-1] for row in rows)
        head = ["number", "here", "elsewhere"] if cited else ["number", "here"]
        table = markdown(head, [row[: len(head)] for row in _said_once(rows)])
        if topic.page:
            parts.append(f"## [{topic.question}]({topic.page})\n\n{table}")
        else:
            claim, control = CLAIMS[topic.name]
            command = f"`python -m benchmarks.{topic.name}`"
            said = f"{claim} *Control:* {control} {command}."
            parts.append(f"## {topic.question}\n\n{said}\n\n{table}")
    PAGE.write_text("\n\n".join(parts) + "\n")


def _said_once(rows: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """The same rows, where "name: measure" has its measure only when that changes."""
    measures = [row[0].partition(": ")[2] for row in rows]
    return [
        (row[0].partition(": ")[0] if i and measures[i] == measures[i - 1] else row[0], *row[1:])
        for i, row in enumerate(rows)
    ]


def _fidelity(_: Cells) -> list[tuple[str, str, str]]:
    chosen = plain(cells_of("fidelity"))
    records = [record for found in chosen.values() for record in found]
    models = len({setting.task for setting in chosen})
    where = f"median R over {models} models, from step {CLOSED} on"
    rows = []
    for name, what, elsewhere in (
        ("path, attached", "`path` as attached", ""),
        ("linearized", "`linearized`, the published estimator", "> 0.99 (arXiv 2602.00329)"),
        ("sgd", "`sgd` under AdamW", "about 0.11 (arXiv 2602.00329)"),
    ):
        median = np.nanmedian(values(records, name, "pearson", CLOSED))
        rows.append((f"{what}: {where}", f"{median:.4f}", elsewhere))
    return rows


def _optimizers(cells: Cells) -> list[tuple[str, str, str]]:
    medians = [
        np.nanmedian([
            record["estimates"]["attached"]["pearson"]
            for record in cell["result"]
            if record["step"] >= MOVING
        ])
        for cell in cells.values()
    ]  # fmt: skip
    names = len({key.split("optimizer=")[1].split(" ")[0] for key in cells})
    what = f"{names} optimizers on two models: median R with exact values, the lowest of them"
    return [(what, f"{min(medians):.4f}", "")]


def _influence(cells: Cells) -> list[tuple[str, str, str]]:
    rows = []
    kinds = (("fidelity", "look-ahead"), ("carried", "look-ahead, carried push"),
             ("fidelity", "SGD dynamics"), ("fidelity", "TracIn, 5 states"))  # fmt: skip
    for kind, method in kinds:
        found = [
            cell["result"]["methods"][method]["spearman"]
            for key, cell in cells.items()
            if key.startswith(f"{kind}: ") and method in cell["result"]["methods"]
        ]
        low, middle, high = np.percentile(found, [0, 50, 100])
        what = f"`{method}`: Spearman with retraining, {len(found)} cells, median (range)"
        said = "10 % to over 300 % above SGD (arXiv 2605.18814)"
        elsewhere = said if method == "look-ahead" else ""
        rows.append((what, f"{middle:.3f} ({low:.3f} to {high:.3f})", elsewhere))
    return rows


def _overhead(cells: Cells) -> list[tuple[str, str, str]]:
    rows = []
    for size, found in by_size(cells).items():
        said = "95 % of plain throughput (arXiv 2602.00329)" if not rows else ""
        names = ("window 10", "window 1", "every step")
        shares = [(name, kept(found, name)) for name in names]
        told = ", ".join(f"{name} {share:.1%}" for name, share in shares if share is not None)
        rows.append((f"of plain throughput, {size.words}", told, said))
    return rows


def _pruning(cells: Cells) -> list[tuple[str, str, str]]:
    rows = []
    for ranking in ("path, total, balanced", "mean loss", "sgd, total", "linearized, total"):
        gains = []
        for cell in cells.values():
            accuracy = cell["result"]["accuracy"]
            if ranking in accuracy:
                ours, control = accuracy[ranking], accuracy["random, balanced"]
                gains.append(100 * np.mean([ours[share] - control[share] for share in control]))
        what = f"`{ranking}`: points of accuracy over random pruning, mean of {len(gains)}"
        rows.append((what, f"{np.mean(gains):+.2f}", ""))
    return rows


def _mislabelled(cells: Cells) -> list[tuple[str, str, str]]:
    rows = []
    for detector in ("label doubts", "mean loss", "margin (AUM)", "cleanlab, self-confidence"):
        auc = np.mean([cell["result"]["found"][detector]["auc"] for cell in cells.values()])
        rows.append((f"`{detector}`: AUC, mean of {len(cells)} cells", f"{auc:.4f}", ""))
    return rows


def _tracing(cells: Cells) -> list[tuple[str, str, str]]:
    ranks: dict[str, Mapping[str, list[float]]] = {}
    for cell in cells.values():
        ranks |= cell["result"]["ranks"]
    rows = []
    for method in ("path, standardised", "sgd, standardised", "BM25", "embedding similarity"):
        each = ", ".join(f"{np.median(numbers):g}" for numbers in ranks[method].values())
        distances = ", ".join(ranks[method])
        rows.append((f"`{method}`: median rank of the source ({distances})", each, ""))
    return rows


def _taught(cells: Cells) -> list[tuple[str, str, str]]:
    rows = []
    for key, cell in cells.items():
        result = cell["result"]
        found = [result["recall"]["12"][by] for by in ("by value", "by words")]
        false = ", ".join(str(n) for n in result["false answers"].values())
        rows.append((f"{key}: recall@12 by value, by words", "{:.2f}, {:.2f}".format(*found), ""))
        what = "false answers of 4: all rows, without the first twelve, without random ones"
        rows.append((f"{key}: {what}", false, ""))
    return rows


def _explain(cells: Cells) -> list[tuple[str, str, str]]:
    rows = []
    for asked in ("explain", "training loss", "validation loss", "gradient norm"):
        found = [cell["result"][asked] for cell in cells.values()]
        told = ("step",) if asked in NO_ROWS else ("step", "rows", "source")
        each = ", ".join(f"{sum(one[what] for one in found)}" for what in told)
        rows.append((f"`{asked}`: {', '.join(told)} right, of {len(found)}", each, ""))
    return rows


def _selection(cells: Cells) -> list[tuple[str, str, str]]:
    arms = [cell["result"]["arms"] for cell in cells.values()]
    rows = []
    for name in ("full", "online 1", "online 1, rounds 16", "online 8", "offline 1", "loss"):
        gains = [100 * (found[name]["accuracy"] - found["random"]["accuracy"]) for found in arms]
        rows.append((f"`{name}`: points of accuracy over `random`", f"{np.mean(gains):+.1f}", ""))
    return rows


def _payout(cells: Cells) -> list[tuple[str, str, str]]:
    def mean(window: int, what: str) -> float:
        return float(np.mean([cell["result"][str(window)][what] for cell in cells.values()]))

    return [
        (
            f"AUC of the total value for wrong labels, without and with momentum_window={window}",
            f"{mean(0, 'auc'):.3f}, {mean(window, 'auc'):.3f}",
            "",
        )
        for window in (20, 40)
    ]


def _budget(cells: Cells) -> list[tuple[str, str, str]]:
    def mean(way: str, what: str) -> float:
        return float(np.mean([cell["result"][way][what] for cell in cells.values()]))

    return [
        (f"`{shown}`: R of the totals with scoring everything", f"{mean(way, 'pearson'):.3f}", "")
        for way, shown in (
            ("validation_parts=2", "validation_parts=2"),
            ("validation_parts=10", "validation_parts=10"),
            ("Sampled(5)", "scoring=inrun.Sampled(5)"),
            ("stream", "stream"),
        )
    ]


def _interaction(cells: Cells) -> list[tuple[str, str, str]]:
    rows = []
    for name, task in TASKS.items():
        records = [r for optimizer in OPTIMIZERS for r in of_loss(cells, name, optimizer)]
        each = [
            f"{np.nanmedian(measured(records, game, 'pearson')):.3f}"
            for game in ("own slots", "left out")
        ]
        rows.append((task.shown, ", ".join(each), ""))
    said = "median R with exact values of own slots, and of rows left out"
    return [(f"{rows[0][0]}: {said}", *rows[0][1:]), *rows[1:]]


def _following(cells: Cells) -> list[tuple[str, str, str]]:
    return [
        (f"{size}: a step over that of the version before", f"{ratio[0]:.2f}", "")
        for size, cell in cells.items()
        if (ratio := cell["result"].get("now / before"))
    ]


def _heads(cells: Cells) -> list[tuple[str, str, str]]:
    rows = []
    for key, cell in cells.items():
        width, way = key.split(": ")
        alone = cells[f"{width}: fused"]["result"]["peak_bytes"]
        if way != "fused":
            what = f"{WAYS[way]}, width {width}: peak memory over training alone"
            rows.append((what, f"{cell['result']['peak_bytes'] / alone:.3f}", ""))
    return rows


def _smollm(cells: Cells) -> list[tuple[str, str, str]]:
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
    return rows


def _soak(cells: Cells) -> list[tuple[str, str, str]]:
    rows = []
    for key, cell in cells.items():
        capture, steps = key.split()
        stretches = cell["result"]["stretches"]
        first, last = stretches[0], stretches[-1]
        what = f"`{capture}`, {int(steps):,} steps: last tenth beside the first"
        ours = ", ".join(
            f"{last[name] / first[name]:.2f} times the {said}"
            for name, said in (("milliseconds", "time a step"), ("megabytes", "memory"))
        )
        rows.append((what, ours, ""))
    return rows


def _import_time(cells: Cells) -> list[tuple[str, str, str]]:
    found = ratios(cells["import"]["result"])
    return [
        (f"`{statement}`, processor time over that of `{REFERENCE}`", f"{ratio:.2f}", "")
        for statement, ratio in found.items()
        if statement != REFERENCE
    ]


TOPICS = (
    Topic("fidelity", "evidence/fidelity.md", "How right are the values?", _fidelity),
    Topic("optimizers", "evidence/optimizers.md", "Beyond Adam?", _optimizers),
    Topic("interaction", "evidence/interaction.md", "Where samples interact?", _interaction),
    Topic(
        "influence", "evidence/influence.md", "Does look-ahead agree with retraining?", _influence
    ),
    Topic("selection", "evidence/selection.md", "Does choosing what to train on pay?", _selection),
    Topic("overhead", "evidence/cost.md", "What does it cost?", _overhead),
    Topic("following", "evidence/following.md", "What does following owners cost?", _following),
    Topic("heads", "evidence/heads.md", "Does a fused head's memory stay saved?", _heads),
    Topic("smollm", "evidence/smollm.md", "On a real language model?", _smollm),
    Topic("budget", "evidence/budget.md", "What does spending less cost?", _budget),
    Topic("payout", "evidence/payout.md", "What does momentum's part add?", _payout),
    Topic("pruning", "evidence/pruning.md", "Does pruning pay?", _pruning),
    Topic("mislabelled", "evidence/mislabelled.md", "Are wrong labels found?", _mislabelled),
    Topic("tracing", "evidence/tracing.md", "Is the source of a text found?", _tracing),
    Topic("taught", "evidence/taught.md", "Is the false fact's source found?", _taught),
    Topic("explain", "evidence/explain.md", "Is the cause of a jump found?", _explain),
    Topic("window", "evidence/window.md", "How good are scoring windows?", of_windows),
    Topic("datamodeling", "evidence/datamodeling.md", "What if half the data goes?", of_halves),
    Topic("groups", "evidence/groups.md", "What if a whole source goes?", of_groups),
    Topic("queries", "evidence/queries.md", "What do many queries cost?", of_queries),
    Topic("statements", "evidence/statements.md", "What may be said of a value?", of_statements),
    Topic("import_time", None, "How long does importing take?", _import_time),
    Topic("soak", "evidence/soak.md", "Does a long run stay as it is?", _soak),
)

HEAD = """# Evidence: everything that was measured

The main numbers of each page, disappointing ones too (`python -m benchmarks` writes this one). The
pages begin with the claim, the control that could refute it and the command, and say on which data
and versions; long tables are CSV files under `docs/evidence/tables`. *Elsewhere* are figures as
papers report them, on their own models and machines.

To check a number: read `benchmarks/NAME/cell.py`, which measures one cell, and run the command. It
measures what is missing in the results (`--fresh` all, `--quick` a part that takes minutes) and
writes the page; `--page-only` only writes the page. There was no GPU."""
