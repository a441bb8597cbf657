"""Why an audit's agreement is low: each likely cause is named from evidence in the checks.

A check is low where the values are off by more than 30 % of their length, or by more than 10 % with
R below 0.95. Where R is low and the values are right, they hardly differ, and R says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

LOW_R = 0.95
SOME_ERROR, LARGE_ERROR = 0.1, 0.3
YOUNG = 10
LARGE_RESIDUAL = 0.05
FEW_ROWS = 16
FEWEST_AGAINST, MOSTLY = 5, 0.9  # checks, and the share of them
KNOWN_LABELS = 0.6
LARGE_FORECAST_ERROR = 0.1
LARGE_NOISE = 0.01
UNJUDGED, MANY_UNJUDGED = "Classes without validation rows", 0.05
LARGE_SHARE_ERROR, LARGE_ROUNDING = 0.01, 0.1  # in single precision or better, and below

Check = Mapping[str, Any]


class Cause(NamedTuple):
    """What is likely wrong, what shows it, and what to change."""

    name: str
    evidence: str
    remedy: str


Causes = Iterator[Cause]


def likely_causes(checks: Sequence[Check]) -> tuple[Cause, ...]:
    """The causes that the checks speak for, of low agreement first.

    Where a check's loss is not repeatable, or its step was not judged by all rows at its weights,
    that explains it, and nothing else can be told from it.
    """
    every_low = [c for c in checks if _is_low(c)]
    noisy = [c for c in every_low if c["loss_noise"] > LARGE_NOISE]
    calm = [c for c in every_low if c["loss_noise"] <= LARGE_NOISE]
    elsewhere = [c for c in calm if np.isnan(c["residual"])]
    low = [c for c in calm if not np.isnan(c["residual"])]
    found = [
        *(() if noisy else _owners(checks)), *_noise(noisy), *_judges(elsewhere, checks),
        *_optimizer(low, checks), *_settings(low),
    ]  # fmt: skip
    if low and not found:
        steps = ", ".join(str(c["step"]) for c in low[:5])
        found.append(Cause(
            "Cause unknown",
            f"{len(low)} checks agree badly (steps {steps}), and nothing that is known to spoil "
            "agreement shows in them.",
            "Do not trust these values. Play such a step out by hand with inrun.truth.StepGame.",
        ))  # fmt: skip
    others = _against(checks), _labels(checks), _unjudged(checks), _extent(checks), _alike(checks)
    return tuple(found + [cause for causes in others for cause in causes])


def _judges(elsewhere: Sequence[Check], checks: Sequence[Check]) -> Causes:
    """Values by some of the rows, or by a gradient of earlier weights, and the truth by neither."""
    older = [c for c in elsewhere if c.get("judged") == "older gradients"]
    part = len(elsewhere) - len(older)
    if part:
        yield Cause(
            "Parts of the rows",
            f"At {part} of {len(checks)} checks agreement is low, and the step was judged by a "
            "part of the validation rows (validation_parts, Budget), the truth by all of them.",
            "Totals over a run average parts out; single steps do not. To audit single steps "
            "attach with scoring=inrun.EveryStep().",
        )
    if older:
        yield Cause(
            "Older gradients",
            f"At {len(older)} of {len(checks)} checks agreement is low, and the step was judged by "
            "the validation gradient of an earlier step (validation_every), the truth by its own.",
            "This is an error of the values, which totals do not average out: lower "
            "validation_every, or attach with scoring=inrun.EveryStep().",
        )


def _against(checks: Sequence[Check]) -> Causes:
    """All samples of a step together raise what judges, nearly always."""
    raised = sum(sum(c["truth"]) < 0 for c in checks if c.get("truth"))
    if len(checks) >= FEWEST_AGAINST and raised >= MOSTLY * len(checks):
        yield Cause(
            "Training against what judges",
            f"At {raised} of {len(checks)} checks all samples of the step together raised the "
            "validation loss, so that nearly every sample is harmful.",
            "Does the loop minimise the loss that judges, with the same sign, classes and labels? "
            "If it does, the model overfits: stop earlier, or read only the steps in which the "
            "loss fell.",
        )


def _labels(checks: Sequence[Check]) -> Causes:
    """Labels of the validation rows that the model does not know, and learns no more."""
    in_order = sorted(checks, key=lambda c: c["step"])
    gain = in_order[-1].get("label_gain")
    raised = [sum(c.get("truth") or [0.0]) < 0 for c in in_order[len(in_order) // 2 :]]
    if gain is not None and gain < (KNOWN_LABELS if 3 * sum(raised) > len(raised) else 0):
        little = f"take only {gain:.0%} off" if gain > 0 else "cost more than"
        yield Cause(
            "Validation labels",
            f"At the last check the validation rows' own labels {little} the loss that shuffled "
            "labels have, and the loss falls no more.",
            "Either they cannot be learnt from this data, or many validation labels are wrong or "
            "of other classes than those that are trained on, or the loss has the wrong sign. Look "
            "at these rows before the values.",
        )


def _unjudged(checks: Sequence[Check]) -> Causes:
    """Rows are trained on whose class no validation row has."""
    known = [c for c in checks if c.get("unjudged") is not None]
    samples = [c["samples"] for c in known]
    share = float(np.average([c["unjudged"] for c in known], weights=samples)) if known else 0.0
    if known and share >= MANY_UNJUDGED:
        yield Cause(
            UNJUDGED,
            f"{share:.0%} of the rows trained on in the checked steps are of classes that no "
            f"validation row has ({known[0]['validation_classes']} classes judge). Their values "
            "know only what they did to other classes.",
            "Add validation rows of every class that is trained on, or say nothing of these "
            "samples.",
        )


def _owners(checks: Sequence[Check]) -> Causes:
    """Not only of low checks: groups may hide what single samples show."""
    off: dict[int, float] = {}
    for check in checks:
        error = check.get("share_error") or 0.0
        if error > (LARGE_ROUNDING if check["low_precision"] else LARGE_SHARE_ERROR):
            off[check["step"]] = error
    if off:
        step = max(off, key=lambda s: off[s])
        yield Cause(
            "Owners",
            f"At {len(off)} of {len(checks)} checks the captured shares are not the samples' own "
            f"gradients, computed one sample at a time (off by up to {off[step]:.0%}, step "
            f"{step}): slots are taken for another sample's, samples mix inside the model out of "
            "sight, or it draws random numbers that are not PyTorch's (numpy, Python).",
            "See attribution.coverage() for how owners are known; say with rows= or slots= of "
            "attribution.batch whose the data is. Until then do not trust these values.",
        )


def _optimizer(low: Sequence[Check], checks: Sequence[Check]) -> Causes:
    """It acts like a sign of the gradient, or its steps are long."""
    signs = _acts_like_signs(checks)
    young = [] if signs else [c for c in low if _is_young(c)]
    if young:
        later = [c["pearson"] for c in checks if not _is_young(c)]
        then = f"; from then on the median R is {np.nanmedian(later):.4f}" if later else ""
        yield Cause(
            "First steps",
            f"{len(young)} of {len(low)} checks with low agreement lie in the optimizer's first "
            f"{YOUNG} steps, where it acts like a sign of the gradient{then}.",
            "Warm the learning rate up, keep smoothed_steps with capture='hold', or leave these "
            "steps out with attribution.paused().",
        )
    straight = [c for c in low if (signs or _is_sign(c)) and c["estimator"] != "path-smoothed"]
    if straight:
        yield Cause(
            "Signs",
            f"At {len(straight)} of {len(low)} checks with low agreement the optimizer acted like "
            "a sign, as Lion, Rprop and Muon do in every step, and Adam and its variants where the "
            "second moment is an average over few steps, 1 / (1 - b2); and the step was not "
            "smoothed.",
            "Keep smoothed_steps with capture='hold'; smoothing stops where samples times "
            "parameters make it dear. Otherwise sums are right, and single samples rough.",
        )
    yield from _estimator(low)
    bent = [c for c in low if c["residual"] > LARGE_RESIDUAL and c not in young]
    if bent:
        yield Cause(
            "Large learning rate",
            f"At {len(bent)} of {len(low)} checks with low agreement the books leave more than "
            f"{LARGE_RESIDUAL:.0%} unexplained (up to {max(c['residual'] for c in bent):.0%}): the "
            "validation loss bends within one step.",
            "Lower the learning rate, warm it up, or clip the gradient; the step is too long for "
            "any method that reads the loss at its two ends.",
        )


def _estimator(low: Sequence[Check]) -> Causes:
    names = sorted({c["estimator"] for c in low} - {"path", "path-given", "path-smoothed"})
    if names:
        yield Cause(
            "Estimator",
            f"{', '.join(names)} follows the optimizer only to first order, or not at all.",
            "Attach with estimator='path'.",
        )


def _settings(low: Sequence[Check]) -> Causes:
    """Clipping that was not foreseen, and half precision."""
    missed = [c for c in low if c["forecast_error"] > LARGE_FORECAST_ERROR]
    if missed:
        yield Cause(
            "Clipping under stream",
            f"At {len(missed)} of {len(low)} checks with low agreement the clip coefficient was "
            f"more than {LARGE_FORECAST_ERROR:.0%} from that of the step before, by which "
            "capture='stream' forms its directions.",
            "Attach with capture='hold', or clip at a norm that is rarely reached.",
        )
    if any(c["low_precision"] for c in low):
        yield Cause(
            "Low precision",
            "Half precision took part in the steps that were checked, and rounds away small "
            "differences between coalitions, in the truth too.",
            "Compute the validation loss in float32 (loss_fn without autocast), on more rows.",
        )


def _noise(noisy: Sequence[Check]) -> Causes:
    if noisy:
        yield Cause(
            "Validation loss that is not repeatable",
            f"At {len(noisy)} checks with low agreement two validation losses at the same weights "
            f"differ by up to {max(c['loss_noise'] for c in noisy):.0%} of what sets samples "
            "apart. PyTorch's random numbers are held still, so they come from elsewhere: numpy, "
            "Python, a generator of one's own, or kernels that are not deterministic.",
            "Take random numbers out of loss_fn and out of the model in evaluation mode. Until "
            "then neither values nor truth, nor whose gradient is whose, can be told at these "
            "checks.",
        )


def _extent(checks: Sequence[Check]) -> Causes:
    """Layers that are in no value, and few validation rows."""
    covered = min(c["covered"] for c in checks)
    if covered < 0.99:
        yield Cause(
            "Uncovered layers",
            f"Only {covered:.0%} of the squared update is captured; the rest is in no value.",
            "See attribution.coverage() for the parameters and the reason.",
        )
    rows = min((c["validation_rows"] for c in checks if c["validation_rows"]), default=FEW_ROWS)
    if rows < FEW_ROWS:
        yield Cause(
            "Small validation batch",
            f"It has {rows} rows: other rows like them would rank the samples of a step otherwise.",
            "Values are right for these rows. What they say of others grows with the number of "
            "rows, and with the number of visits that a total adds up.",
        )


def _alike(checks: Sequence[Check]) -> Causes:
    alike = [c for c in checks if not c["pearson"] >= LOW_R and c["relative_error"] <= SOME_ERROR]
    if alike:
        yield Cause(
            "Values that hardly differ",
            f"At {len(alike)} checks R is below {LOW_R} though the values are off by at most "
            f"{max(c['relative_error'] for c in alike):.1%}: the groups' true values are nearly "
            "the same there, and R says little.",
            "Nothing to change; read the relative error.",
        )


def _is_low(check: Check) -> bool:
    error = check["relative_error"]
    return error > LARGE_ERROR or (error > SOME_ERROR and not check["pearson"] >= LOW_R)


def _is_young(check: Check) -> bool:
    return check["age"] is not None and check["age"] < YOUNG and not _is_sign(check)


def _acts_like_signs(checks: Sequence[Check]) -> bool:
    """Whether the optimizer still acts like a sign at the last check that can tell: it always does.

    In a run's first steps Adam's moments are as young as those of a rule that keeps none.
    """
    late = [c for c in checks if c["age"] is not None and c["step"] > YOUNG]
    return bool(late) and _is_sign(max(late, key=lambda c: c["step"]))


def _is_sign(check: Check) -> bool:
    """Whether the rule still acts like a sign in a later step: then it always does."""
    age, steps = check["age"], check["step"] - 1
    return age is not None and steps > 0 and age < min(YOUNG, max(1, steps / 2))
