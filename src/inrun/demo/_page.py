"""The demo's report: the run's own, with what is known here because the wrong labels were made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import scipy  # scipy.stats, a second to import, loads on first use

from inrun.demo import _digits as digits
from inrun.demo._experiment import (
    BALANCED,
    BEST,
    DROPPED_SHARE,
    LOSS,
    RANDOM,
    Findings,
    Trained,
)
from inrun.ledger import Run, known_residual_shares
from inrun.report import Figure, Paragraph, Section, Told, charts, write_report

SHOWN = 24


def describe(run: Run, data: digits.Digits, found: Findings) -> None:
    """Tells the run what its samples and its validation rows are."""
    images, labels = data.validation
    ranks = scipy.stats.rankdata(-found.scores[BEST], method="min")
    run.describe(
        {
            "sample_id": list(range(digits.TRAINING)),
            "image": [image[0].numpy() for image in data.images],
            "label": data.labels.tolist(),
            "suggested_label": found.suggested.tolist(),
            "doubt_rank": ranks.astype(int).tolist(),
            "true label": data.truth.tolist(),
            "wrong": data.wrong.tolist(),
        },
        {
            "sample_id": list(range(len(labels))),
            "image": [image[0].numpy() for image in images],
            "label": labels.tolist(),
        },
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
        figures=_figures(run, trained, found, retraining),
        summary=[_known(data, found)],
        sections=[_detection(data, found), _truth(run, trained), _retraining(retraining)],
        footer=(
            f"Attribution took {trained.overhead:.1f} times the time of plain training here: the "
            f"{len(data.validation[1])} validation images, in {digits.CLASSES} targets, are passed "
            f"forward and backward at every step, for a training batch of {digits.BATCH}."
        ),
    )
    write_report(run, path, told=told)


def _figures(
    run: Run, trained: Trained, found: Findings, retraining: dict[str, list[float]]
) -> list[Figure]:
    gain = np.mean(retraining[f"without the worst by {BEST}"]) - np.mean(retraining[RANDOM])
    unexplained = float(np.median(known_residual_shares(run.ledger())))
    return [
        Figure(f"{found.auc[BEST]:.3f}", "AUC of the label doubts for wrong labels"),
        Figure(f"{found.right_suggestions:.0%}", "of wrong labels: the true one is suggested"),
        Figure(f"{unexplained:.2%}", "of a step's entries in the books unexplained (median)"),
        Figure(
            f"{trained.report.pearson.median:.4f}",
            "Pearson R with exact Shapley values, median over the audited steps",
        ),
        Figure(
            f"{100 * gain:+.1f} points",
            "of test accuracy by pruning the doubtful labels, against random pruning",
        ),
    ]


def _known(data: digits.Digits, found: Findings) -> Paragraph:
    hits = int(data.wrong[found.best_first[:SHOWN].copy()].sum())
    return Paragraph(
        "Wrong labels",
        [
            f"Of the {SHOWN} labels that are most doubtful, {hits} are wrong.",
            "An image that is labelled 8 and looks like a 3 raises the validation loss of the "
            "threes: the class that a sample harms says, with what the model saw while it "
            "trained, which label it should have. That label is the true one for "
            f"{found.right_suggestions:.0%} of the wrong labels here.",
        ],
    )


def _detection(data: digits.Digits, found: Findings) -> Section:
    return Section(
        "How well wrong labels are found",
        [
            "AUC: the chance that a wrong label is ranked above a right one. Label doubts "
            f"(inrun.label_doubts) put the harm profile and the loss together; here they have "
            f"{found.auc[BEST]:.3f}, the mean loss alone {found.auc[LOSS]:.3f}. The loss cannot "
            "say which label a sample should have: the suggestion is the true one for "
            f"{found.right_suggestions:.0%} of the {int(data.wrong.sum())} wrong labels. Total "
            "values say what a sample did, not whether its label is wrong.",
        ],
        charts=[
            charts.bars(
                sorted(found.auc.items(), key=lambda item: -item[1]),
                "AUC for wrong labels",
                (0.5, 1.0),
            )
        ],
    )


def _truth(run: Run, trained: Trained) -> Section:
    table, audit = run.audit(), trained.report
    return Section(
        "Agreement with exact Shapley values",
        [
            f"At {audit.checks} random steps of this run the batch was put into "
            f"{table['players'][-1]} random groups, and all coalitions of them and of the past "
            "were played out on copies, each a real AdamW step and a real validation loss. Pearson "
            f"R of the groups' values with their exact Shapley values: {audit.pearson:.4f} "
            "(median, 95 % interval). The command inrun audit says more."
        ],
        charts=[charts.scatter(_dots(table), "exact Shapley value", "value by inrun")],
    )


def _dots(audit: pa.Table) -> list[tuple[float, float, str]]:
    """Truth and value of every group, over their step's largest: steps differ in size."""
    dots = []
    for check in audit.to_pylist():
        size = max(map(abs, check["truth"])) or 1.0
        dots += [
            (truth / size, value / size, "over their step's largest")
            for truth, value in zip(check["truth"], check["values"], strict=True)
        ]
    return dots


def _retraining(retraining: dict[str, list[float]]) -> Section:
    seeds = len(retraining[RANDOM])
    means = {name: f"{np.mean(numbers):.1%}" for name, numbers in retraining.items()}
    return Section(
        "What pruning gains",
        [
            f"{DROPPED_SHARE:.0%} of the samples were dropped and the model was trained again from "
            f"{seeds} other starts. Ticks are single runs, bars 95 % intervals of the mean.",
            f"Without the most doubtful labels: {means[f'without the worst by {BEST}']}. By "
            f"total value, the same share of every label, which is what `inrun prune` drops: "
            f"{means[f'without the worst by {BALANCED}']}. Random control: {means[RANDOM]}; all "
            f"samples {means['all samples']}; without exactly the wrong labels "
            f"{means['without exactly the wrong labels']}.",
        ],
        charts=[charts.with_error_bars(list(retraining.items()), "accuracy on unseen test images")],
    )
