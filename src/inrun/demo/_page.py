"""The demo's report: the findings as a page."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from inrun.demo import _digits as digits
from inrun.demo._experiment import PLAYERS, Trained
from inrun.demo._findings import DROPPED_SHARE, Findings
from inrun.ledger import residual_shares, totals
from inrun.report import Figure, Page, Picture, Section, Table, charts
from inrun.truth import agreement

SHOWN = 24
COLORS = {"right label": charts.GOOD, "wrong label": charts.BAD}


def write_page(
    path: Path,
    data: digits.Digits,
    trained: Trained,
    found: Findings,
    retraining: dict[str, list[float]],
) -> None:
    """Writes the report."""
    sections = [
        _most_harmful(data, found),
        _books(trained),
        _over_the_run(data, trained),
        _detection(data, found),
        _truth(trained),
        _retraining(retraining),
        _reading(),
        _coverage(trained),
    ]
    gain = np.mean(retraining["without the worst by harm profile"]) - np.mean(
        retraining["without random ones (control)"]
    )
    unexplained = float(np.median(residual_shares(trained.ledger)))
    r = np.median([agreement(c.values, c.exact).pearson for c in trained.checked])
    Page(
        title="What each digit did to the model",
        lead=(
            f"A small CNN was trained with AdamW on {digits.TRAINING} handwritten digits, "
            f"{int(data.wrong.sum())} of them with a wrong label. Attached to the training, inrun "
            "wrote down what every image did to the loss on a clean validation set, class by "
            "class. Every number here was computed in this run."
        ),
        figures=[
            Figure(f"{found.auc['harm profile']:.3f}", "AUC of the harm profile for wrong labels"),
            Figure(f"{found.right_suggestions:.0%}", "of wrong labels: the true one is suggested"),
            Figure(f"{unexplained:.2%}", "of a step's entries in the books unexplained (median)"),
            Figure(f"{r:.4f}", "Pearson R with exact Shapley values, median over checked steps"),
            Figure(
                f"{100 * gain:+.1f} points",
                "of test accuracy by pruning the most harmful, against random pruning",
            ),
        ],
        sections=sections,
        footer=(
            f"Attribution took {trained.overhead:.1f} times the time of plain training here: the "
            f"{len(data.validation[1])} validation images, in {digits.CLASSES} targets, are passed "
            f"forward and backward at every step, for a training batch of {digits.BATCH}."
        ),
    ).write(path)


def _most_harmful(data: digits.Digits, found: Findings) -> Section:
    pictures = []
    for i in found.best_first[:SHOWN]:
        label, truth, suggestion = (int(t[i]) for t in (data.labels, data.truth, found.suggested))
        verdict = "label is right" if label == truth else f"truly a {truth}"
        pictures.append(
            Picture(
                data.images[i, 0].numpy(),
                [f"labelled {label}", f"harms the {suggestion}s most: a {suggestion}?", verdict],
                alt=f"Digit labelled {label}; {verdict}",
            )
        )
    hits = int(data.wrong[found.best_first[:SHOWN].copy()].sum())
    return Section(
        "The most harmful samples",
        [
            f"Of the {SHOWN} samples that harmed some class most, {hits} have a wrong label. An "
            "image that is labelled 8 and looks like a 3 raises the validation loss of the threes: "
            "the class that a sample harms most is the label that it should have.",
        ],
        pictures=pictures,
    )


def _books(trained: Trained) -> Section:
    sums = totals(trained.ledger)
    shares = residual_shares(trained.ledger)
    names = ("samples", "momentum", "weight_decay", "residual")
    fall = sums["opening_loss"] - sums["closing_loss"]
    return Section(
        "The books",
        [
            "At every step, opening loss - closing loss = samples + momentum + weight decay + "
            "residual. The stack is what each entry took off the validation loss so far, the "
            "dashed line how far the loss really fell.",
            f"Over the run the loss fell by {fall:.4f}. The residual of a step is "
            f"{np.median(shares):.2%} of its entries in the median, {shares.max():.1%} at most: it "
            "is the first answer to whether the values can be trusted.",
        ],
        charts=[charts.books(trained.ledger), charts.residuals(trained.ledger)],
        tables=[
            Table(
                ["entry", "validation loss taken off"],
                [[name.replace("_", " "), f"{sums[name]:+.4f}"] for name in names],
            )
        ],
    )


def _over_the_run(data: digits.Digits, trained: Trained) -> Section:
    groups = np.where(data.wrong.numpy(), "wrong label", "right label")
    values = trained.values["value_normalised"].to_pylist()
    return Section(
        "Values over the run",
        [
            "Each dot is one visit of one sample. Values are large in the first steps, where the "
            "loss falls fastest: raw totals add up to the books, but they favour what came early. "
            "For ranking, each step's values are divided by their mean size.",
        ],
        charts=[
            charts.values_by_step(trained.visits, dict(enumerate(groups.tolist())), COLORS),
            charts.value_distribution(values, groups.tolist(), COLORS, "normalised total value"),
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


def _reading() -> Section:
    return Section(
        "How to read a value",
        [
            "A value is a contribution to the reduction of the validation loss, in units of that "
            "loss: positive helped, negative harmed. It is the sample's Shapley value in the game "
            "of its own optimizer step, with the optimizer's state as it was.",
            "It is the immediate effect. Under Adam a gradient also acts later, through momentum: "
            "that part stands in the books under momentum, not with the samples.",
        ],
    )


def _coverage(trained: Trained) -> Section:
    rows = [
        [r["parameter"], r["shape"], r["status"], r["captured_as"], f"{r['gradient_share']:.1%}"]
        for r in trained.coverage.to_pylist()
    ]
    head = ["parameter", "shape", "status", "captured as", "share of squared gradient norm"]
    return Section("Coverage", ["Which parameters the values cover."], tables=[Table(head, rows)])
