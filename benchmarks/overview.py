"""The page of all benchmarks: for each its question, its main figure, and what others report.

Our figures are computed from the results on disk. Others' are as their papers give them, on their
own models and machines; where the other method was run here, that is a figure of ours.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from benchmarks import import_time
from benchmarks.budget import page as budget
from benchmarks.claims import CLAIMS
from benchmarks.datamodeling import page as datamodeling
from benchmarks.explain import page as explain
from benchmarks.fidelity import page as fidelity
from benchmarks.following import page as following
from benchmarks.form import page as form
from benchmarks.groups import page as groups
from benchmarks.heads import page as heads
from benchmarks.influence import kinds as influence
from benchmarks.interaction import page as interaction
from benchmarks.markdown import long_table, markdown
from benchmarks.mislabelled import page as mislabelled
from benchmarks.optimizers import page as optimizers
from benchmarks.overhead import page as overhead
from benchmarks.payout import page as payout
from benchmarks.poison import page as poison
from benchmarks.pruning import page as pruning
from benchmarks.queries import page as queries
from benchmarks.results_file import RESULTS, commits, machines
from benchmarks.selection import page as selection
from benchmarks.smollm import page as smollm
from benchmarks.soak import page as soak
from benchmarks.statements import page as statements
from benchmarks.taught import cell as taught
from benchmarks.tools import page as tools
from benchmarks.tracing import page as tracing
from benchmarks.window import page as window

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"


class Topic(NamedTuple):
    """A benchmark: its name, its page, what it asks, and the module whose `summary` has the rows.

    A row is (what, ours, others'); the first one is the benchmark's main number.
    """

    name: str
    page: str | None
    question: str
    source: ModuleType


def write_page() -> None:
    """Reads the results and writes the page: one row per question, and a file of every number."""
    firsts, numbers, apart = [], [], []
    for topic in TOPICS:
        cells = json.loads((RESULTS / f"{topic.name}.json").read_text())["cells"]
        rows = topic.source.summary(cells)
        what, ours, theirs = rows[0]
        asked = f"[{topic.question}]({topic.page})" if topic.page else topic.question
        *older, last = commits(cells).removeprefix("commit ").split(", ")
        measured = f"`{topic.name}`, {last}" + f" and {len(older)} more" * bool(older)
        control = CLAIMS[topic.name].control
        firsts.append([asked, what, ours, theirs, control, measured])
        numbers += [[topic.question, *row, commits(cells), machines(cells)] for row in rows]
        if not topic.page:
            claim, control = CLAIMS[topic.name]
            told = f"{topic.question} `python -m benchmarks.{topic.name}` has no page."
            apart.append(f"{told} *Claim:* {claim} *Control:* {control}")
    head = ["question", "number", "here", "elsewhere", "measured at", "on"]
    parts = [
        HEAD,
        markdown(
            ["question", "its first number", "here", "elsewhere", "control", "command, commit"],
            firsts,
        ),
        *apart,
        "## Every number",
        long_table("all", "As CSV", head, numbers, folder="evidence/tables"),
    ]
    PAGE.write_text("\n\n".join(parts) + "\n")


TOPICS = (
    Topic("fidelity", "evidence/fidelity.md", "How right are the values?", fidelity),
    Topic("optimizers", "evidence/optimizers.md", "Beyond Adam?", optimizers),
    Topic("interaction", "evidence/interaction.md", "Where samples interact?", interaction),
    Topic(
        "influence",
        "evidence/influence.md",
        "Does look-ahead agree with retraining?",
        influence,
    ),
    Topic(
        "selection",
        "evidence/selection.md",
        "Does choosing what to train on pay?",
        selection,
    ),
    Topic("overhead", "evidence/cost.md", "What does it cost?", overhead),
    Topic("following", "evidence/following.md", "What does following owners cost?", following),
    Topic("heads", "evidence/heads.md", "Does a fused head's memory stay saved?", heads),
    Topic("smollm", "evidence/smollm.md", "On a real language model?", smollm),
    Topic("budget", "evidence/budget.md", "What does spending less cost?", budget),
    Topic("payout", "evidence/payout.md", "What does momentum's part add?", payout),
    Topic("pruning", "evidence/pruning.md", "Does pruning pay?", pruning),
    Topic("mislabelled", "evidence/mislabelled.md", "Are wrong labels found?", mislabelled),
    Topic("tracing", "evidence/tracing.md", "Is the source of a text found?", tracing),
    Topic("taught", "evidence/taught.md", "Is the false fact's source found?", taught),
    Topic("poison", "evidence/poison.md", "Are planted rows found?", poison),
    Topic("form", "evidence/form.md", "Form or content?", form),
    Topic("explain", "evidence/explain.md", "Is the cause of a jump found?", explain),
    Topic("window", "evidence/window.md", "How good are scoring windows?", window),
    Topic(
        "datamodeling",
        "evidence/datamodeling.md",
        "What if half the data goes?",
        datamodeling,
    ),
    Topic("tools", "evidence/tools.md", "And beside other tools?", tools),
    Topic("groups", "evidence/groups.md", "What if a whole source goes?", groups),
    Topic("queries", "evidence/queries.md", "What do many queries cost?", queries),
    Topic("statements", "evidence/statements.md", "What may be said of a value?", statements),
    Topic("import_time", None, "How long does importing take?", import_time),
    Topic("soak", "evidence/soak.md", "Does a long run stay as it is?", soak),
)

HEAD = """# Evidence: everything that was measured

Each page begins with a claim, the control that could refute it and the command,
`python -m benchmarks.NAME`. To check a number, read `benchmarks/NAME/cell.py`, which measures one
cell, and run the command: it measures what the results lack (`--fresh` everything, `--quick` a
part that takes minutes) and writes the page; `--page-only` only writes it. Nothing was measured on
a GPU.

The table has the first number of each question; all are below it, disappointing ones too.
*Elsewhere* are figures as papers report them, on their own models and machines; in the last column
stands the NAME. `python -m benchmarks` writes this page."""
