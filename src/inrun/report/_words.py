"""A run in sentences: what helped, what hurt, how far to trust it. Every number is computed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from scipy.stats import norm

from inrun.errors import StoreError
from inrun.ledger import known_residual_shares, relative_error, totals
from inrun.report._page import Paragraph
from inrun.report._payload import Contents, grouping_columns
from inrun.truth import report as audit_report
from inrun.uses import FEWEST, TIMES, agreement, judge_notes

SURE = 0.95
FEW = 5


def summary(of: Contents) -> list[Paragraph]:
    """The report's first words."""
    return [
        Paragraph("What helped", _helped(of)),
        Paragraph("What hurt", _hurt(of)),
        Paragraph("How far to trust it", _trust(of)),
    ]


def lead(of: Contents) -> str:
    """One sentence on the run."""
    ledger = of.run.ledger()
    n, sums = of.values.num_rows, totals(ledger)
    seen = (
        f"{n:,} samples, visited {of.visits.num_rows:,} times in {ledger.num_rows:,} scored steps"
    )
    when = (
        "in its own steps and, through momentum, later" if _pays(of) else "when it was trained on"
    )
    went = (
        f"the validation loss went from {sums['opening_loss']:.4g} to {sums['closing_loss']:.4g}"
        if np.isfinite(sums.get("opening_loss", 0.0) - sums.get("closing_loss", 0.0))
        else "by how much the validation loss fell in all is not known"
    )
    return (
        f"{seen}; {went}. A value is what a sample took off that loss {when}: positive "
        "helped, negative harmed."
    )


def covered_column(coverage: pa.Table) -> tuple[str, str]:
    """Which column has parameters' shares, and of what; older runs have those of the gradient."""
    if "update_share" in coverage.column_names:
        return "update_share", "squared update"
    return "gradient_share", "squared gradient"


def losses_known(ledger: pa.Table) -> bool:
    """Whether of any step it is known what the validation loss fell by."""
    return bool(known_residual_shares(ledger).size)


def _pays(of: Contents) -> bool:
    return of.run.extra == "paid_out"


def _helped(of: Contents) -> list[str]:
    value = of.values["value"].to_numpy()
    sums = totals(of.run.ledger())
    said = [
        f"{_share(value > 0)} of the samples lowered the validation loss, by "
        f"{value[value > 0].sum():.4g} together. All samples together lowered it by "
        f"{value.sum():.4g}{_how(of, sums)}; momentum, as far as it is no sample's, took off "
        f"{sums['momentum']:.4g}."
    ]
    by_size = np.sort(np.abs(value))[::-1]
    if by_size.sum() > 0:
        half = int(np.searchsorted(np.cumsum(by_size), by_size.sum() / 2)) + 1
        said.append(
            f"Half of the size of all values belongs to {half:,} samples ({half / len(value):.1%})."
        )
    said += _groups(of, value, best=True)
    return said


def _how(of: Contents, sums: Mapping[str, float]) -> str:
    if not _pays(of):
        return " in their own steps"
    return f", {sums['paid_out']:.4g} of it through momentum in the steps after their own"


def _hurt(of: Contents) -> list[str]:
    value = of.values["value"].to_numpy()
    said = [
        f"{_share(value < 0)} of the samples raised the validation loss, by "
        f"{-value[value < 0].sum():.4g} together."
    ]
    said += _groups(of, value, best=False)
    said += _surely(of)
    contradicting = _contradicting(of)
    if contradicting:
        said.append(f"{contradicting:,} contents come under more than one label.")
    return said


def _surely(of: Contents) -> list[str]:
    """How many samples are harmful with confidence, and how many of those are not, by it."""
    sure = of.ranked.confidence[np.isfinite(of.ranked.confidence)]
    if not len(sure):
        return [f"With fewer than {FEWEST} visits no single sample can be called harmful."]
    called = sure[sure >= SURE]
    if not len(called):
        return [f"No sample is harmful with a confidence of {SURE:.0%} over its visits."]
    return [
        f"{len(called):,} samples are harmful with a confidence of {SURE:.0%} or more over their "
        f"visits. By these confidences about {(1 - called).sum():,.0f} of them are not: a false "
        f"discovery rate of {(1 - called).mean():.1%}."
    ]


def _trust(of: Contents) -> list[str]:
    ledger = of.run.ledger()
    shares = known_residual_shares(ledger)
    said = [
        f"The books: what the values leave unexplained of a step is {np.median(shares):.2%} of its "
        f"entries in the median and {shares.max():.1%} at most."
        if losses_known(ledger)
        else "The books have no residual: what the values leave unexplained was not measured, "
        "since by how much a step lowered the validation loss is not known. "
        + " ".join(dict.fromkeys(n for n in ledger["note"].to_pylist() if n))
    ]
    said += judge_notes(of.run, of.table)
    said += agreement(of.run, of.table).sentences()
    said += _sampled(of)
    said.append(_audited(of))
    try:
        coverage = of.run.coverage()
    except StoreError:
        said.append("The run was not flushed to its end, so its coverage is not known.")
    else:
        column, whole = covered_column(coverage)
        covered = [r[column] for r in coverage.to_pylist() if r["status"] == "captured"]
        said.append(f"The values cover {sum(covered):.1%} of the {whole}.")
    names, counts = np.unique(ledger["estimator"].to_pylist(), return_counts=True)
    steps = ", ".join(f"{name} in {count:,}" for name, count in zip(names, counts, strict=True))
    said.append(
        f"Estimator, by steps: {steps}. "
        + (
            "What a sample's gradient did later, through momentum, is in its value for as many "
            "steps as the run paid it out."
            if _pays(of)
            else "A value is the effect within the sample's own steps; what its gradient does "
            "later, through momentum, is booked apart."
        )
    )
    if of.outlier.any():
        size = np.abs(of.values["value"].to_numpy())
        said.append(
            f"{int(of.outlier.sum()):,} samples are outliers, of more than {TIMES:.0f} times the "
            f"median size; they make {size[of.outlier].sum() / size.sum():.1%} of the size of all "
            "values."
        )
    return said


def _sampled(of: Contents) -> list[str]:
    if of.run.extra != "standard_error":
        return []
    ledger, values = of.run.ledger(), of.values
    weight = float(np.mean(ledger["weight"].to_numpy()))
    error = relative_error(values["value"].to_numpy(), values["standard_error"].to_numpy() ** 2)
    return [
        f"Only some steps were scored, each standing for {weight:.3g}: totals are unbiased, and "
        f"their standard error is {error:.0%} of their size. Samples that were in none "
        "of the scored steps have no value."
    ]


def _audited(of: Contents) -> str:
    try:
        found = audit_report(of.run.audit())
    except StoreError:
        return (
            "This run was not audited: how near its values come to exact Shapley values was not "
            "measured. attribution.audit(seconds=60, steps=...) before the loop does it."
        )
    said = (
        f"Audit: at {found.checks} random steps, values and exact Shapley values correlate with "
        f"R {found.pearson:.3f} (median; from six steps on a 95 % interval)."
    )
    return " ".join([said, *(f"{cause.name}: {cause.evidence}." for cause in found.causes)])


def _share(chosen: np.ndarray) -> str:
    return f"{chosen.mean():.1%}"


def _groups(of: Contents, value: np.ndarray, best: bool) -> list[str]:
    """A sentence each for label and source: the level whose mean is furthest out, if by no chance.

    Of L levels with `FEW` samples or more, one is named only where its mean differs from that of
    all samples beyond a two-sided 95 % limit for L comparisons.
    """
    said = []
    for name, cells in grouping_columns(of.table):
        if name not in ("label", "source"):
            continue
        levels, row, count = np.unique(cells, return_inverse=True, return_counts=True)
        mean = np.bincount(row, value, len(levels)) / count
        spread = np.sqrt(np.bincount(row, (value - mean[row]) ** 2) / np.maximum(count - 1, 1))
        large = count >= FEW
        away = (mean - value.mean()) / np.maximum(spread / np.sqrt(count), 1e-300)
        limit = norm.ppf(1 - 0.025 / max(1, large.sum()))
        out = np.flatnonzero(large & ((away > limit) if best else (away < -limit)))
        if len(out):
            at = out[mean[out].argmax() if best else mean[out].argmin()]
            said.append(
                f"By {name}, the {'most' if best else 'least'} helpful on average is {levels[at]}: "
                f"{mean[at]:+.3g} a sample, where the mean of all is {value.mean():+.3g}."
            )
        elif best:
            said.append(
                f"By {name}, no group is more helpful on average than chance would make it."
            )
    return said


def _contradicting(of: Contents) -> int:
    if "label" not in of.table.column_names:
        return 0
    labels: dict[int, set[object]] = {}
    pairs = zip(of.copies.tolist(), of.table["label"].to_pylist(), strict=True)
    for number, label in pairs:
        if number >= 0:
            labels.setdefault(number, set()).add(label)
    return sum(len(found) > 1 for found in labels.values())
