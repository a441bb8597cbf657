"""Whether values say what happens when many samples go: trained again without them, and compared.

Two measures of the field, on a recorded run (same start, order and random numbers):

    LDS      many random subsets are left out; rank correlation, over the subsets, of what the
             values say (the sum over the samples that went) with what the loss then did; the mean
             over targets. The linear datamodeling score of Park et al. 2023 (TRAK).
             Halves are drawn in pairs, one and what it leaves. The two sums of a pair add up to a
             constant, so a sum's ranks are odd under the exchange of the two, and its score is
             at most the root of the odd part of the losses' ranks: that is the ceiling, whatever
             the values.
    removal  the samples with the highest values are left out; how far the loss then rises, beside
             random removals of as many samples.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from inrun.answers import Answer
from inrun.errors import MisuseError
from inrun.truth._game import agreement
from inrun.truth._retrain import Retrainable, Retraining, Tick, untold
from inrun.utility import Utility


class DatamodelingScore(Answer):
    """What `inrun.truth.lds` returns.

    Attributes:
        table: by method `score`, the mean over targets of the rank correlation; `low` and `high`, a
            95 % interval (over targets and subsets alike); `targets`, `subsets`.
        losses: (subsets, targets), the targets' losses after each training.
        left_out: by subset, the ids that were left out.
        ceiling: what no values at all can score above on these trainings, as they are sums: 1 where
            losses are additive in the samples. None where other shares than halves were left out.
    """

    def __init__(
        self,
        table: pa.Table,
        losses: np.ndarray,
        left_out: list[list[Any]],
        ceiling: float | None = None,
    ):
        self.table, self.losses, self.left_out, self.ceiling = table, losses, left_out, ceiling

    def sentences(self) -> list[str]:
        """The best method and its score, and what no sum could score above."""
        best = max(self.table.to_pylist(), key=lambda row: row["score"])
        most = (
            []
            if self.ceiling is None
            else [f"No values whatever, summed, could score above {self.ceiling:.3f} here."]
        )
        return [
            f"Linear datamodeling score over {best['subsets']} trainings without "
            f"{len(self.left_out[0]):,} samples and {best['targets']} targets: {best['method']} "
            f"{best['score']:.3f} [{best['low']:.3f}, {best['high']:.3f}].",
            *most,
        ]


class RemovalCurve(Answer):
    """What `inrun.truth.removal_curve` returns.

    Attributes:
        table: by method and share `samples`, how many went; `rise` of the validation loss without
            them; `random`, the mean rise of random removals of as many, and `random_high`, the
            highest of them.
    """

    def __init__(self, table: pa.Table, controls: int):
        self.table, self._controls = table, controls

    def sentences(self) -> list[str]:
        """By method, where it raised the loss above every random removal."""
        rows = self.table.to_pylist()
        beats = [r for r in rows if r["rise"] > r["random_high"]]
        names = ", ".join(f"{r['method']} {r['share']:.0%}" for r in beats) or "none"
        return [f"Above all of {self._controls} random removals of as many samples: {names}."]


def lds(
    run: Retrainable,
    utility: Utility,
    values: Mapping[str, Any],
    *,
    subsets: int = 60,
    share: float = 0.5,
    seed: int = 0,
    removal: str = "renormalise",
    processes: int = 0,
    store: str | os.PathLike[str] | None = None,
    tick: Tick = untold,
) -> DatamodelingScore:
    """The linear datamodeling score of values, by training again without random subsets.

    Args:
        run: a recorded run, such as `inrun.Trajectory`.
        utility: the validation loss; each target is a query of its own.
        values: by method, a table with `sample_id` and one column per target (`value` where there
            is one target), positive where the sample lowers the loss, as `values()` returns it.
            All tables have the same samples.
        subsets: how many trainings, at least 10. Of halves, an even number, so that each has its
            complement among them.
        share: of the samples, what each training leaves out.
        seed: of the subsets.
        removal: see `inrun.truth.retrain`.
        processes: see `inrun.truth.retrain`.
        store: see `inrun.truth.retrain`.
        tick: `tick(done, all)` is called before the first training and after each.

    Raises:
        StoreError: the file is of another question.
        MisuseError: tables of different samples, a missing column, or numbers out of range.
    """
    if subsets < 10:
        raise MisuseError(f"subsets is {subsets}; a rank correlation needs at least 10 trainings.")
    ids, arrays = _columns(values, utility)
    count = _count(share, len(ids))
    halves = abs(2 * count - len(ids)) <= 1
    if halves and subsets % 2:
        raise MisuseError(f"subsets is {subsets}; halves are drawn in pairs: pass an even number.")
    drawn = _drawn(len(ids), count, subsets, seed, in_pairs=halves)
    question = {"subsets": [len(ids), count, seed], "in_pairs": halves}
    again = Retraining(run, utility, removal, processes, store, question)
    left_out = [[ids[i] for i in rows] for rows in drawn]
    groups = {("subset", n): group for n, group in enumerate(left_out)}
    losses = np.array(again.without(groups, tick))
    rises = losses - np.array(again.full)
    table = []
    for method, array in arrays.items():
        said = np.stack([array[rows].sum(0) for rows in drawn])
        score = _score(said, rises, together=1 + halves)
        extent = {"targets": rises.shape[1], "subsets": subsets}
        table.append({"method": method, **score, **extent})
    ceiling = _ceiling(rises) if halves else None
    return DatamodelingScore(pa.Table.from_pylist(table), losses, left_out, ceiling)


def removal_curve(
    run: Retrainable,
    utility: Utility,
    values: Mapping[str, Any],
    *,
    shares: Sequence[float] = (0.01, 0.05),
    controls: int = 5,
    seed: int = 0,
    removal: str = "renormalise",
    processes: int = 0,
    store: str | os.PathLike[str] | None = None,
    tick: Tick = untold,
) -> RemovalCurve:
    """How far the loss rises without the samples that helped most, beside random removals.

    Args:
        run: a recorded run.
        utility: the validation loss; of several targets their weighted sum.
        values: see `lds`.
        shares: of the samples, what is left out: those with the highest values.
        controls: random removals of each share, at least 2.
        seed: of the random removals.
        removal: see `inrun.truth.retrain`.
        processes: see `inrun.truth.retrain`.
        store: see `inrun.truth.retrain`.
        tick: `tick(done, all)` is called before the first training and after each.

    Raises:
        StoreError: the file is of another question.
        MisuseError: see `lds`.
    """
    if controls < 2:
        raise MisuseError(f"controls is {controls}; at least 2 random removals are needed.")
    ids, arrays = _columns(values, utility)
    weights = np.array([float(weight) for weight in utility.weights])
    rng = np.random.default_rng(seed)
    groups: dict[Any, list[Any]] = {}
    for share in shares:
        count = _count(share, len(ids))
        for n in range(controls):
            rows = rng.permutation(len(ids))[:count]
            groups["random", share, n] = [ids[i] for i in rows]
        for method, array in arrays.items():
            rows = np.argsort(-(array @ weights), kind="stable")[:count]
            groups["top", share, method] = [ids[i] for i in rows]
    # what a method ranks first is part of the question: other values are another file
    named = {str(key): group for key, group in groups.items()}
    again = Retraining(run, utility, removal, processes, store, {"removals": named})
    losses = np.array(again.without(groups, tick)) @ weights
    rises = dict(zip(groups, losses - float(np.array(again.full) @ weights), strict=True))
    table = []
    for share in shares:
        chance = [rises["random", share, n] for n in range(controls)]
        by_chance = {"random": float(np.mean(chance)), "random_high": float(np.max(chance))}
        for method in arrays:
            count, rise = len(groups["top", share, method]), float(rises["top", share, method])
            row = {"method": method, "share": share, "samples": count, "rise": rise}
            table.append({**row, **by_chance})
    return RemovalCurve(pa.Table.from_pylist(table), controls)


def _drawn(
    samples: int, count: int, subsets: int, seed: int, *, in_pairs: bool
) -> list[np.ndarray]:
    """Rows of each subset; in pairs, each is followed by what it leaves."""
    rng = np.random.default_rng(seed)
    found: list[np.ndarray] = []
    while len(found) < subsets:
        order = rng.permutation(samples)
        found += [np.sort(order[:count]), *([np.sort(order[count:])] if in_pairs else [])]
    return found


def _ceiling(done: np.ndarray) -> float:
    """What no sum can score above; (subsets, targets), each half followed by its complement."""
    from scipy.stats import rankdata  # a second to import, and attaching needs none of it

    ranks = rankdata(done, axis=0) - (len(done) + 1) / 2
    odd = (ranks[::2] - ranks[1::2]) / 2
    whole = np.square(ranks).sum(0)
    shares = 2 * np.square(odd).sum(0) / np.where(whole > 0, whole, 1)
    return float(np.sqrt(shares).mean())


def _count(share: float, samples: int) -> int:
    count = round(share * samples)
    if not 0 < count < samples:
        raise MisuseError(
            f"A share of {share} of {samples} samples is {count} samples; at least one must go and "
            "one must stay."
        )
    return count


def _columns(
    values: Mapping[str, Any], utility: Utility
) -> tuple[list[Any], dict[str, np.ndarray]]:
    """The ids of all tables, in the first one's order, and by method their values, (n, targets)."""
    names = utility.targets if len(utility.targets) > 1 else ("value",)
    ids: list[Any] = []
    found: dict[str, np.ndarray] = {}
    for method, table in values.items():
        missing = [c for c in ("sample_id", *names) if c not in table.column_names]
        if missing:
            raise MisuseError(f"The values of {method!r} have no column {missing[0]!r}.")
        own = table["sample_id"].to_pylist()
        ids = ids or own
        if set(own) != set(ids) or len(own) != len(ids):
            raise MisuseError(f"The values of {method!r} are of other samples than the first ones.")
        place = {who: row for row, who in enumerate(own)}
        rows = [place[who] for who in ids]
        array = np.stack([np.asarray(table[c], dtype=np.float64)[rows] for c in names], 1)
        if not np.isfinite(array).all():
            raise MisuseError(f"The values of {method!r} are not finite for every sample.")
        found[method] = array
    if not ids:
        raise MisuseError("values names no method and no sample to compare.")
    return ids, found


def _score(said: np.ndarray, done: np.ndarray, together: int) -> dict[str, float]:
    """Mean rank correlation over targets of (subsets, targets), and its 95 % interval.

    Its standard error adds what the targets differ by to what the subsets differ by (leaving out
    one at a time, or as many as were drawn `together`): rather too large than too small.
    """
    of_targets = _rank_correlations(said, done)
    n, targets = len(done) // together, done.shape[1]
    keep = ~np.repeat(np.eye(n, dtype=bool), together, axis=1)
    each = [float(np.mean(_rank_correlations(said[k], done[k]))) for k in keep]
    variance = (n - 1) * float(np.var(each))
    if targets > 1:
        variance += float(np.var(of_targets, ddof=1)) / targets
    score, error = float(np.mean(of_targets)), float(np.sqrt(variance))
    low, high = max(-1.0, score - 1.96 * error), min(1.0, score + 1.96 * error)
    return {"score": score, "low": low, "high": high}


def _rank_correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(targets,) Spearman's; 0 where one side does not differ at all: it ranks nothing."""
    found = [agreement(x, y).spearman for x, y in zip(a.T, b.T, strict=True)]
    return np.nan_to_num(np.array(found, dtype=np.float64))
