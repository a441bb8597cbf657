"""A stored run's report: its tables as words, charts and samples, written as one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from inrun.errors import StoreError
from inrun.ledger import JUMP, Run
from inrun.report import _charts as charts
from inrun.report._first import first_screen
from inrun.report._live import live_charts
from inrun.report._page import Figure, Page, Paragraph, Samples, Section, Table
from inrun.report._payload import contents, payload
from inrun.report._shown import judges
from inrun.report._words import covered_column, evidence, lead, losses_known
from inrun.uses import explain, judged_as, jumps


@dataclass(frozen=True)
class Told:
    """What somebody who knows more than the run's folder adds to its report."""

    title: str | None = None
    lead: str | None = None
    figures: Sequence[Figure] = ()
    summary: Sequence[Paragraph] = ()
    sections: Sequence[Section] = ()
    footer: str | None = None


def write_report(
    run: Run,
    path: Path,
    *,
    samples: pa.Table | None = None,
    told: Told | None = None,
    judge: str | None = None,
) -> None:
    """Writes a run's report as one HTML file that opens without a network.

    Args:
        run: a stored run.
        path: the file; it is replaced.
        samples: what the samples are, if the run was not told (`Run.describe`).
        told: a title, words and sections beside the run's own.
        judge: 'even' or 'training', what each class counts; None as the run was trained.

    Raises:
        StoreError: the run holds no visits, or the page cannot be written.
    """
    told = told or Told()
    run = judged_as(run, judge, samples)
    of = contents(run, samples)
    ledger = run.ledger()
    page = Page(
        title=told.title or f"What each sample did: {run.path.resolve().name}",
        lead=told.lead or lead(of),
        figures=told.figures,
        sections=[
            *told.sections,
            _jumps(run, of.table),
            Section("Can I trust it? The evidence", evidence(of)),
            _residual(run),
            *_coverage(run),
            *judges(run),
            _reading(run),
        ],
        footer=told.footer or f"{run.path.resolve().name}: estimator {run.estimator}.",
        summary=[*first_screen(of), *told.summary],
    )
    samples_of = Samples(payload(of), live_charts(ledger, len(of.targets)))
    replace(page, samples=samples_of).write(path)


def _jumps(run: Run, samples: pa.Table) -> Section:
    """The steps in which the loss rose most, and who did it."""
    found = [explain(run, step, samples=samples) for step in jumps(run)]
    told = [one for one in found if one.change > 0 and one.deviations > JUMP]
    if not told:
        return Section(
            "Did the loss jump?",
            [f"In no step by more than {JUMP:.0f} robust deviations from the steps around it."],
        )
    rows = [
        [
            f"{one.first:,}", f"{one.change:+.3g}", f"{one.deviations:.0f}", f"{one.began:,}",
            "" if one.sources is None else str(one.sources["source"][0]),
            ", ".join(map(str, one.named[:5])),
        ]
        for one in told
    ]  # fmt: skip
    head = ["step", "loss rose by", "robust deviations", "began in step", "source", "rows"]
    words = told[0].sentences()
    return Section("Did the loss jump?", words, tables=[Table(head, rows)])


def _residual(run: Run) -> Section:
    ledger = run.ledger()
    known = losses_known(ledger)
    words = (
        "At every step, opening loss - closing loss = samples + momentum + weight decay + "
        "unattributed (gradients that were declared to be of no sample) + other (changes of the "
        "loss between steps) + residual. The residual is what the method does not explain, here as "
        "a share of the step's entries."
        if known
        else "What the entries leave unexplained is not known: "
        + "; ".join(dict.fromkeys(n for n in ledger["note"].to_pylist() if n))
        + "."
    )
    return Section(
        "Do the books close?",
        [words],
        charts=[charts.residuals(ledger)] if known else [],
        tables=[
            Table(
                ["entry", "loss taken off over the run"],
                [
                    [name, f"{size:+.4g}"]
                    for name, size in _entries(run).items()
                    if np.isfinite(size)
                ],
            )
        ],
    )


def _entries(run: Run) -> dict[str, float]:
    """The books' sums; with payout, where momentum's part came from."""
    found = run.balance()
    entries = {"samples": found["immediate"], "momentum": found["before_window"]}
    if run.extra == "paid_out":
        entries = {
            "samples, in their own steps": found["immediate"],
            "samples, through momentum later": found["paid_out"],
            "still in the momentum, not paid yet": found["still_in_momentum"],
            "momentum from before the window": found["before_window"],
        }
    entries["weight decay"] = found["weight_decay"]
    entries |= {name: found[name] for name in ("unattributed", "other") if found[name]}
    return entries | {"residual": found["residual"]}


def _coverage(run: Run) -> list[Section]:
    try:
        coverage = run.coverage()
    except StoreError:  # the run was cut off; the words at the top say so
        return []
    column, of = covered_column(coverage)
    rows = [
        [r["parameter"], r["shape"], r["status"], r["captured_as"], f"{r[column]:.1%}"]
        for r in coverage.to_pylist()
    ]
    head = ["parameter", "shape", "status", "captured as", f"share of the {of}"]
    words = ["Which parameters the values cover."]
    return [Section("Coverage", words, tables=[Table(head, rows)], folded=True)]


def _reading(run: Run) -> Section:
    later = (
        "What a sample's gradient did later, through momentum, is in its value for as many steps "
        "as the run paid it out; what came after stands in the books under momentum."
        if run.extra == "paid_out"
        else "It is the immediate effect. Under Adam a gradient also acts later, through momentum: "
        "that part stands in the books under momentum, not with the samples."
    )
    return Section(
        "How to read a value",
        [
            "A value is a contribution to the reduction of the validation loss, in units of that "
            "loss: positive helped, negative harmed. It is the sample's Shapley value in the game "
            "of its own optimizer step, with the optimizer's state as it was.",
            "Total values add up to the books and favour early steps, where the loss falls "
            "fastest. Normalised values divide each step's by their mean size, which often ranks "
            "better. The worst-harmed target is the one for which a sample's normalised values sum "
            "lowest.",
            later,
            "Surely harmful: the confidence that the mean over a sample's visits is below 0, by a "
            "t test on the means of its early and its late half, whose variance is drawn towards "
            "that of all samples. Below eight visits there is none. Training again is the check "
            "(inrun prune --check).",
        ],
    )
