"""The page's tables."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.fidelity.cell import Setting
from benchmarks.fidelity.reading import OWN_GAME, Cells, Record, pooled, tasks, values
from benchmarks.markdown import long_table

SHORT = ("path, attached", "path-given", "path-smoothed", "linearized", "sgd")


def number(found: np.ndarray, how: Any = np.median, digits: int = 4) -> str:
    """One number of several, if there are any."""
    finite = found[np.isfinite(found)]
    return f"{how(finite):.{digits}f}" if len(finite) else "none"


def agreement(cells: Cells) -> str:
    """Every model and estimator."""
    rows = []
    for task in tasks(cells):
        records = pooled(cells, task)
        for estimator in OWN_GAME:
            if not any(estimator in record["agreement"] for record in records):
                continue
            three = values(records, estimator, "pearson", 3)
            rows.append([
                task,
                f"`{estimator}`",
                number(values(records, estimator, "pearson", 1, 2), np.mean),
                _over_seeds(cells, task, estimator),
                number(values(records, estimator, "spearman", 5), np.mean, 3),
                f"{np.mean(three >= 0.99):.0%}",
                number(three, np.min, 3),
                number(values(records, estimator, "relative_error", 5), digits=3),
                number(values(records, estimator, "sum_ratio", 5), digits=3),
            ])  # fmt: skip
    head = [
        "model", "estimator", "R, steps 1 and 2 (mean)", "R from step 5 (median; a seed's range)",
        "Spearman from step 5 (mean)", "steps from 3 with R >= 0.99", "lowest R from step 3",
        "relative error (median)", "ratio of sums (median)",
    ]  # fmt: skip
    return long_table("fidelity", "Every model and estimator", head, rows)


def summary(cells: Cells) -> str:
    """Median R from step 5 on, of the estimators that are compared most."""
    rows = []
    for task in tasks(cells):
        records = pooled(cells, task)
        given = [values(records, estimator, "pearson", 5) for estimator in SHORT]
        rows.append([task, *(number(found) for found in given)])
    head = ["model", *(f"`{estimator}`" for estimator in SHORT)]
    return long_table("fidelity_median", "Median R by model", head, rows)


def _over_seeds(cells: Cells, task: str, estimator: str) -> str:
    """The median over all, and the lowest and the highest seed's own median."""
    own = [
        np.nanmedian(values(records, estimator, "pearson", 5))
        for setting, records in cells.items()
        if setting.task == task
    ]
    middle = number(values(pooled(cells, task), estimator, "pearson", 5))
    return f"{middle} ({min(own):.4f} to {max(own):.4f})"


def targets(cells: Cells) -> str:
    """What was aimed at, and what came of it, for each model."""
    rows = []
    for task in tasks(cells):
        records = pooled(cells, task)
        from_three = values(records, "path, attached", "pearson", 3)
        row = [
            (number(values(records, "path, attached", "pearson", 5)), 0.999),
            (number(values(records, "path-given", "pearson", 5)), 0.999),
            (f"{np.mean(from_three >= 0.99):.2f}", 0.95),
            (number(values(records, "path-smoothed", "pearson", 1, 2), np.mean), 0.97),
            (number(values(records, "path", "pearson", 5, game="given")), 0.99),
        ]
        rows.append([task, *(_judged(found, aim) for found, aim in row)])
    head = [
        "model", "`path, attached` from step 5 >= 0.999", "`path-given` from step 5 >= 0.999",
        "share of steps from 3 with R >= 0.99, >= 0.95", "`path-smoothed`, steps 1 and 2 >= 0.97",
        "`path` in the papers' game >= 0.99",
    ]  # fmt: skip
    return long_table("fidelity_aims", "Aims by model", head, rows)


def _judged(found: str, aim: float) -> str:
    return found if found == "none" else f"{found} {'yes' if float(found) >= aim else '**no**'}"


def games(cells: Cells) -> str:
    """Each of three estimators in both games."""
    rows = []
    for task in tasks(cells):
        records = pooled(cells, task)
        row = [task]
        for estimator in ("path", "path-smoothed", "path-given"):
            row += [
                number(values(records, estimator, "pearson", 5, game=game))
                for game in ("shared", "given")
            ]
        rows.append(row)
    heads = [
        f"`{estimator}`, {game}"
        for estimator in ("path", "path-smoothed", "path-given")
        for game in ("shared", "given")
    ]
    return long_table(
        "fidelity_games", "Median R from step 5 on, in both games", ["model", *heads], rows
    )


def trained_otherwise(cells: Cells) -> str:
    """Other optimizers, schedules and precisions."""
    rows = []
    for setting, records in cells.items():
        if setting.rate != 1.0 or setting.seed or setting.task not in ("mlp-mnist", "gpt2-brown"):
            continue
        what = [setting.optimizer]
        what += [] if setting.clip else ["no clipping"]
        what += [] if setting.schedule == "constant" else ["warm-up and cosine"]
        what += {
            "float32": [],
            "bf16": ["training in bf16 autocast"],
            "bf16-both": ["training and validation in bf16 autocast"],
        }[setting.precision]
        name = ", ".join(what) + (" (as above)" if setting == Setting(setting.task) else "")
        row = [setting.task, name]
        row += [number(values(records, e, "pearson", 5)) for e in SHORT]
        row.append(number(values(records, "path, attached", "relative_error", 5), digits=3))
        rows.append([*row, f"{len(records)}"])
    head = ["model", "trained with", *(f"`{e}`" for e in SHORT)]
    head += ["its relative error, `path, attached`", "checked steps"]
    return long_table("fidelity_trained_otherwise", "Optimizers, schedules, precisions", head, rows)


def dips(cells: Cells) -> str:
    """Steps at which R is low."""
    rows = []
    for setting, records in cells.items():
        for record in records:
            own = {e: record["agreement"][e]["shared"] for e in ("path", "path, attached")}
            if record["step"] >= 3 and own["path"]["pearson"] < 0.99:
                rows.append(_dip(setting, record, own))
    if not rows:
        return "There was none."
    head = [
        "model", "seed", "step", "R of `path`", "R of `path, attached`", "its relative error",
        "spread of the true values", "residual of `path`",
    ]  # fmt: skip
    return long_table("fidelity_dips", "Steps from 3 on with R of `path` below 0.99", head, rows)


def _dip(setting: Setting, record: Record, own: dict[str, Record]) -> list[str]:
    truth = np.array(record["truth"]["shared"])
    attached = own["path, attached"]
    return [
        setting.task,
        str(setting.seed),
        str(record["step"]),
        f"{own['path']['pearson']:.4f}",
        f"{attached['pearson']:.4f}",
        f"{attached['relative_error']:.3f}",
        f"{truth.std() / np.abs(truth).mean():.2f}",
        f"{record['estimates']['path']['residual']:.2%}",
    ]
