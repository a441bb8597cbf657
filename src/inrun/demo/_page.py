"""The demo's report: the run's own, with what is known here because the wrong labels were made."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from inrun.demo import _digits as digits
from inrun.demo._experiment import PLAYERS, Trained
from inrun.demo._findings import DROPPED_SHARE, Findings
from inrun.ledger import Run, residual_shares
from inrun.report import Figure, Paragraph, Section, Table, Told, charts, write_report
from inrun.truth import agreement

SHOWN = 24


def describe(run: Run, data: digits.Digits) -> None:
    """Tells the run what its samples are."""
    run.describe(
        {
            "sample_id": list(range(digits.TRAINING)),
            "image": [image[0].numpy() for image in data.images],
            "label": data.labels.tolist(),
            "true label": data.truth.tolist(),
            "wrong": data.wrong.tolist(),
        }
    )


def write_page(
    path: Path,
    run: Run,
    data: digits.Digits,
    trained: Trained,
    found: Findings,
    retraining: dict[str, list[float]],
) -> None:
    """Writes the report of a run that was described."""
    told = Told(
        title="What each digit did to the model",
        lead=(
            f"A small CNN was trained with AdamW on {digits.TRAINING} handwritten digits, "
            f"{int(data.wrong.sum())} of them with a wrong label. Attached to the training, inrun "
            "wrote down what every image did to the loss on a clean validation set, class by "
            "class. Every number here was computed in this run."
        ),
        figures=_figures(trained, found, retraining),
        summary=[_known(data, found)],
        sections=[_detection(data, found), _truth(trained), _retraining(retraining)],
        footer=(
            f"Attribution took {trained.overhead:.1f} times the time of plain training here: the "
            f"{len(data.validation[1])} validation images, in {digits.CLASSES} targets, are passed "
            f"forward and backward at every step, for a training batch of {digits.BATCH}."
        ),
    )
    write_report(run, path, told=told)


def _figures(trained: Trained, found: Findings, retraining: dict[str, list[float]]) -> list[Figure]:
    gain = np.mean(retraining["without the worst by harm profile"]) - np.mean(
        retraining["without random ones (control)"]
    )
    unexplained = float(np.median(residual_shares(trained.ledger)))
    r = np.median([agreement(c.values, c.exact).pearson for c in trained.checked])
    return [
        Figure(f"{found.auc['harm profile']:.3f}", "AUC of the harm profile for wrong labels"),
        Figure(f"{found.right_suggestions:.0%}", "of wrong labels: the true one is suggested"),
        Figure(f"{unexplained:.2%}", "of a step's entries in the books unexplained (median)"),
        Figure(f"{r:.4f}", "Pearson R with exact Shapley values, median over checked steps"),
        Figure(
            f"{100 * gain:+.1f} points",
            "of test accuracy by pruning the most harmful, against random pruning",
        ),
    ]


def _known(data: digits.Digits, found: Findings) -> Paragraph:
    hits = int(data.wrong[found.best_first[:SHOWN].copy()].sum())
    return Paragraph(
        "Wrong labels",
        [
            f"Of the {SHOWN} samples that harmed some class most, {hits} have a wrong label.",
            "An image that is labelled 8 and looks like a 3 raises the validation loss of the "
            "threes: the class that a sample harms most is the label that it should have. That is "
            f"so for {found.right_suggestions:.0%} of the wrong labels here.",
        ],
    )


def _detection(data: digits.Digits, found: Findings) -> Section:
    best = max(found.auc, key=lambda name: found.auc[name])
    return Section(
        "How well wrong labels are found",
        [
            "AUC: the chance that a wrong label is ranked above a right one. "
            + (
                f"Here {best} ranks best. "
                + ("No value beats the plain loss at finding them; " if "loss" in best else "")
            )
            + "what the loss cannot say is which label a sample should have: the harm profile "
            f"names the true one for {found.right_suggestions:.0%} of the "
            f"{int(data.wrong.sum())} wrong labels.",
        ],
        charts=[
            charts.bars(
                sorted(found.auc.items(), key=lambda item: -item[1]),
                "AUC for wrong labels",
                (0.5, 1.0),
            )
        ],
    )


def _truth(trained: Trained) -> Section:
    rows, dots = [], []
    for check in trained.checked:
        a = agreement(check.values, check.exact)
        rows.append(
            [f"{check.step}", f"{a.pearson:.4f}", f"{a.sum_ratio:.3f}", f"{a.relative_error:.1%}"]
        )
        dots += [
            (float(x), float(y), f"step {check.step}")
            for x, y in zip(check.exact, check.values, strict=True)
        ]
    return Section(
        "Agreement with exact Shapley values",
        [
            f"At three steps of this run, copies of model and optimizer took the step with "
            f"{PLAYERS} of its samples, and all {2 ** (PLAYERS + 1)} coalitions of them and of the "
            "past were played out, each a real AdamW step and a real validation loss.",
        ],
        charts=[charts.scatter(dots, "exact Shapley value", "value by inrun")],
        tables=[Table(["step", "Pearson R", "ratio of sums", "relative error"], rows)],
    )


def _retraining(retraining: dict[str, list[float]]) -> Section:
    seeds = len(next(iter(retraining.values())))
    means = {name: float(np.mean(numbers)) for name, numbers in retraining.items()}
    own, control = "without the worst by harm profile", "without random ones (control)"
    pruned = [n for n in means if n.startswith("without the worst")]
    best = max(pruned, key=lambda name: means[name])
    return Section(
        "What pruning gains",
        [
            f"{DROPPED_SHARE:.0%} of the samples were dropped and the model was trained again from "
            f"{seeds} other starts. Ticks are single runs, bars 95 % intervals of the mean.",
            f"Pruning by harm profile: {means[own]:.1%}; random control {means[control]:.1%}; all "
            f"samples {means['all samples']:.1%}. The best pruning here is {best}, with "
            f"{means[best]:.1%}.",
        ],
        charts=[charts.with_error_bars(list(retraining.items()), "accuracy on unseen test images")],
    )
