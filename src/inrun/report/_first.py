"""The first screen: four questions, each with an answer in a few words and what it rests on.

The limits of the verdict: of a step's entries at most `CLOSED` unexplained in the median, a Pearson
R of at least `AGREES` with exact Shapley values, and `COVERED` of the update in the values are what
speaks for it; below `OPEN`, `DISAGREES` or `UNCOVERED` the answer is no.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from inrun.errors import StoreError
from inrun.ledger import known_residual_shares, totals
from inrun.report._page import Paragraph
from inrun.report._payload import Contents
from inrun.report._words import covered_column, doubted_sources, groups, helped, surely
from inrun.truth import UNJUDGED
from inrun.truth import report as audit_report
from inrun.uses import confounds, judge_notes

CLOSED, AGREES, COVERED = 0.02, 0.95, 0.99
CHECKS = 3  # audited steps, below which an audit speaks for nothing
OPEN, DISAGREES, UNCOVERED = 0.2, 0.5, 0.5


def first_screen(of: Contents) -> list[Paragraph]:
    """The answers, in the order in which they are asked."""
    return [_fall(of), _labels(of), _hurting(of), _trust(of)]


def _fall(of: Contents) -> Paragraph:
    question, sums = "How far did the loss fall, and through what?", totals(of.run.ledger())
    opening, closing = (sums.get(f"{end}_loss", np.nan) for end in ("opening", "closing"))
    names = ("samples", "momentum", "weight_decay", "unattributed", "other", "residual")
    known = [(name.replace("_", " "), sums[name]) for name in names if np.isfinite(sums[name])]
    least = 1e-4 * max((abs(size) for _, size in known), default=0.0)
    entries = [f"{name} {size:+.3g}" for name, size in known if abs(size) > least]
    said = [f"Taken off by {', '.join(entries)}."] if entries else []
    if of.run.extra == "paid_out":
        said.append(
            f"Of the samples' part, {sums['paid_out']:+.3g} came through momentum in the steps "
            "after their own."
        )
    if not np.isfinite(opening - closing):
        return Paragraph(question, [*said, *helped(of)], "Not known")
    rose = "It rose by " if closing > opening else ""
    head = f"{rose}{abs(opening - closing):.3g}: from {opening:.3g} to {closing:.3g}"
    return Paragraph(question, [*said, *helped(of)], head)


def _labels(of: Contents) -> Paragraph:
    question = "How many labels are probably wrong?"
    if "label" not in of.table.column_names:
        return Paragraph(question, ["The run was told of no labels."], "No labels")
    if of.wrong is not None:
        found, first = of.wrong, "The first ten:"
        if found.count is None:
            return Paragraph(question, [*found.sentences(), first], "Cannot be told", "labels")
        head = f"About {found.count:.0f} (95 %: {found.low:.0f} to {found.high:.0f})"
        return Paragraph(question, [*found.sentences(), first], head, "labels")
    if not {"doubt_rank", "suggested_label"} & set(of.table.column_names) and not of.targets:
        said = "This needs one target per class, or label doubts (inrun.label_doubts)."
        return Paragraph(question, [said], "Not known")
    said = (
        "Which labels to look at first is known, not how many are wrong: that needs a training "
        "with planted flips (inrun.plant; a column 'planted' says which). The first ten:"
    )
    return Paragraph(question, [said], "Not counted", "labels")


def _hurting(of: Contents) -> Paragraph:
    said, worst = groups(of, best=False)
    for sentence, name in doubted_sources(of):
        said.append(sentence)
        worst.append(name)
    more, _ = groups(of, best=True)
    if not said:
        said = ["No label or source is less helpful on average than chance would make it."]
    head = ", ".join(worst) if worst else "None is told to hurt"
    return Paragraph("Which source or class hurts?", [*said, *surely(of), *more], head)


class _Evidence(NamedTuple):
    """What speaks for the values, what against them, and what says no."""

    good: list[str]
    doubtful: list[str]
    bad: list[str]

    def add(self, said: str, number: float, good: bool, bad: bool) -> None:
        """Sorts a sentence in by its number; one that is not known is a doubt."""
        known = np.isfinite(number)
        (self.good if known and good else self.bad if known and bad else self.doubtful).append(said)


def _trust(of: Contents) -> Paragraph:
    found = _Evidence([], [], [])
    _residual(of, found)
    _coverage(of, found)
    audited = _audit(of, found)
    found.doubtful.extend(judge_notes(of.run, of.table))
    found.doubtful.extend(confounds(of.run, samples=of.table).warnings())
    if of.outlier.any():
        size = np.abs(of.values["value"].to_numpy())
        share = size[of.outlier].sum() / size.sum()
        found.add(f"outliers make {share:.0%} of the size of all values", share, share < 0.1, False)
    without = "Yes" if audited else "As far as was checked"  # no audit is a doubt of its own
    head = "No" if found.bad else "With care" if len(found.doubtful) > (not audited) else without
    said = [
        f"{word}: {'; '.join(parts)}."
        for word, parts in (("Against it", found.bad), ("For it", found.good))
        if parts
    ]
    return Paragraph("Can I trust it?", said + [_sentence(d) for d in found.doubtful], head)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _residual(of: Contents, found: _Evidence) -> None:
    shares = known_residual_shares(of.run.ledger())
    if not shares.size:
        found.doubtful.append("what the values leave unexplained was not measured")
        return
    middle = float(np.median(shares))
    said = f"{middle:.2%} of a step's entries are unexplained in the median"
    found.add(said, middle, middle <= CLOSED, middle > OPEN)


def _coverage(of: Contents, found: _Evidence) -> None:
    try:
        coverage = of.run.coverage()
    except StoreError:
        found.doubtful.append("the run was not flushed to its end, so its coverage is not known")
        return
    column, whole = covered_column(coverage)
    share = sum(r[column] for r in coverage.to_pylist() if r["status"] == "captured")
    said = f"the values cover {share:.1%} of the {whole}"
    found.add(said, share, share >= COVERED, share < UNCOVERED)


def _audit(of: Contents, found: _Evidence) -> bool:
    """Whether there was one."""
    try:
        audit = audit_report(of.run.audit())
    except StoreError:
        found.doubtful.append(
            "This run was not audited: attribution.audit(seconds=60, steps=...) before the loop "
            "compares its values with exact Shapley values."
        )
        return False
    r = audit.pearson.median
    steps = f"{audit.checks} random step" + ("s" if audit.checks > 1 else "")
    said = f"R with exact Shapley values at {steps} is {audit.pearson:.3f}"
    found.add(said, r, r >= AGREES and audit.checks >= CHECKS, r < DISAGREES)
    found.doubtful.extend(cause.evidence for cause in audit.causes if cause.name == UNJUDGED)
    return True
