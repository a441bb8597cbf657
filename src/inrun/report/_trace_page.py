"""The sources of a query as a page: each shown as what it is, texts shaded token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inrun.report._page import Page, Passage, Section
from inrun.uses import Trace

LONGEST = 4000


def write_trace(
    trace: Trace,
    queries: Mapping[str, str],
    sources: Mapping[str, Sequence[Mapping[str, Any]]],
    path: Path,
) -> None:
    """Writes the page.

    Args:
        trace: from `inrun.trace`.
        queries: their texts by name.
        sources: by query, its first sources: the ranking's columns, those of the sample, and
            `tokens` with `token_values` where there are any.
        path: the file; it is replaced.

    Raises:
        StoreError: the page cannot be written.
    """
    Page(
        title="Where it came from",
        lead=(
            f"Training samples by what they took off each query's loss, by {trace.method}. Green "
            "tokens moved the model towards the query, red ones away from it."
        ),
        figures=[],
        sections=[
            Section(query, [queries.get(query, "")], passages=[_passage(row) for row in rows])
            for query, rows in sources.items()
        ],
        footer="Positive values: leaving the sample out would have left the query's loss higher.",
    ).write(path)


def _passage(row: Mapping[str, Any]) -> Passage:
    facts = [f"{row['value']:+.3g}", f"{row['share']:.1%} of all that lowered it"]
    facts += [f"{k}: {row[k]}" for k in ("label", "source") if row.get(k) is not None]
    head = f"{row['rank']}. {row['sample_id']}"
    if "tokens" in row:
        return Passage(head, facts, list(row["tokens"]), list(row["token_values"]))
    return Passage(head, facts, [str(row.get("text") or "")[:LONGEST]], [0.0])
