"""A run in sentences, from which the first screen and the evidence are made; all is computed."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import scipy

from inrun.errors import StoreError
from inrun.ledger import (
    expectation,
    known_residual_shares,
    relative_error,
    totals,
    windows_in,
)
from inrun.report._payload import Contents, grouping_columns
from inrun.truth import report as audit_report
from inrun.uses import FEWEST, TIMES, agreement, confounds, doubted_by_group, look_at_labels

SURE = 0.95
FEW = 5


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


def helped(of: Contents) -> list[str]:
    """How many samples lowered the loss, how many raised it, and how few are how much of it."""
    value = of.values["value"].to_numpy()
    said = [
        f"{_share(value > 0)} of the samples lowered it, by {value[value > 0].sum():.3g} together; "
        f"{_share(value < 0)} of the samples raised it, by {-value[value < 0].sum():.3g}."
    ]
    by_size = np.sort(np.abs(value))[::-1]
    if by_size.sum() > 0:
        half = int(np.searchsorted(np.cumsum(by_size), by_size.sum() / 2)) + 1
        said.append(
            "Half of the size of all values belongs to "
            f"{half:,} of the samples ({half / len(value):.1%})."
        )
    return said


def surely(of: Contents) -> list[str]:
    """How many samples are harmful with confidence, and how many of those are not, by it."""
    sure = of.ranked.confidence[np.isfinite(of.ranked.confidence)]
    if not len(sure):
        return [f"With fewer than {FEWEST} visits no single sample can be called harmful."]
    called = sure[sure >= SURE]
    if not len(called):
        return [f"No sample is harmful with a confidence of {SURE:.0%} over its visits."]
    who = "One sample is" if len(called) == 1 else f"{len(called):,} samples are"
    return [
        f"{who} harmful with a confidence of {SURE:.0%} or more over all visits. By these "
        f"confidences about {(1 - called).sum():,.0f} of them are not: a false discovery rate of "
        f"{(1 - called).mean():.1%}."
    ]


def evidence(of: Contents) -> list[str]:
    """How the values were measured, and what of them is how far known."""
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
    said += agreement(of.run, of.table).sentences()
    windows = expectation(windows_in(ledger))
    if windows:
        said.append(f"{windows[0].upper()}{windows[1:]}.")
    said += [*_sampled(of), *_audited(of), *confounds(of.run, samples=of.table).correlations()]
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


def _audited(of: Contents) -> list[str]:
    """What an audit found the matter to be, where there was one."""
    try:
        found = audit_report(of.run.audit())
    except StoreError:
        return []
    return [f"Audit: {cause.name}: {cause.evidence}." for cause in found.causes]


def _share(chosen: np.ndarray) -> str:
    return f"{chosen.mean():.1%}"


def groups(of: Contents, best: bool) -> tuple[list[str], list[str]]:
    """A sentence each for label and source on the level whose mean is furthest out, and its name.

    Of L levels with `FEW` samples or more, one is in a sentence only where its mean differs from
    that of all samples beyond a two-sided 95 % limit for L comparisons. Its name is given only
    where it lies on its side of 0 beyond that limit too: what helps less than others does no harm.
    """
    said, named, value = [], [], of.values["value"].to_numpy()
    for name, cells in grouping_columns(of.table):
        if name not in ("label", "source"):
            continue
        levels, row, count = np.unique(cells, return_inverse=True, return_counts=True)
        mean = np.bincount(row, value, len(levels)) / count
        spread = np.sqrt(np.bincount(row, (value - mean[row]) ** 2) / np.maximum(count - 1, 1))
        large = count >= FEW
        sign, error = 1 if best else -1, np.maximum(spread / np.sqrt(count), 1e-300)
        limit = scipy.stats.norm.ppf(1 - 0.025 / max(1, large.sum()))
        out = np.flatnonzero(large & (sign * (mean - value.mean()) / error > limit))
        if len(out):
            at = out[(sign * mean[out]).argmax()]
            if sign * mean[at] / error[at] > limit:
                named.append(f"{name} {levels[at]}")
            said.append(
                f"By {name}, the {'most' if best else 'least'} helpful on average is {levels[at]}: "
                f"{mean[at]:+.3g} per sample, where the mean of all is {value.mean():+.3g}."
            )
    return said, named


def doubted_sources(of: Contents) -> list[tuple[str, str]]:
    """A sentence and a name for each source whose labels are more doubtful than by chance."""
    found = []
    for name, cells in grouping_columns(of.table):
        if name == "source":
            levels, row = np.unique(cells, return_inverse=True)
            doubted = doubted_by_group(of.table, row, len(levels))
            found += [
                (look_at_labels(level, at["doubtful"]), f"source {level}, by its labels")
                for level, at in zip(levels.tolist(), doubted, strict=True)
                if at["doubted"]
            ]
    return found
