"""How far a group's sum would move with other rows of its kind, and whose labels to look at.

An interval says how far a group's sum, or its share, would move had it delivered other rows like
its own; it says nothing of how far another training would have moved it. Near duplicates are no
independent draws, so that clusters of them are what is drawn. With r_cg = S_cg - n_cg S_g / n_g,
what the n_cg rows of cluster c in group g have beyond their number's part of the group's sum S_g,
and s_g = S_g / S,

    variance of S_g                        = m/(m-1) * sum over c of r_cg^2
    variance of s_g                        = m/(m-1) * sum over c of (r_cg - s_g r_c)^2 / S^2
    variance of S_g / n_g - S / n          = m/(m-1) * sum over c of (r_cg / n_g - r_c / n)^2

where r_c sums r_cg over groups and m is the number of clusters. Intervals are Student's, at
1 - 0.05 / G, so that those of all G groups hold together in 95 % of cases (Bonferroni).

A source of wrong labels is seen better by its labels than by its sum, which a few large values
decide. Where labels were ranked by doubt, a group stands out if more of its samples are among the
`DOUBTFUL` most doubtful than chance would put there, by Fisher's exact test at 0.05 / G.
Letters: n samples, C clusters, G groups.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import scipy

from inrun.uses._near import near_groups

DOUBTFUL = 0.1  # of all samples


def clusters_of(table: pa.Table, column: str | None) -> np.ndarray:
    """(n,) what was drawn together: a column's level, else near duplicates."""
    if column is not None:
        level = [f"{value}" for value in table[column].to_pylist()]
        return np.unique(level, return_inverse=True)[1]
    near = near_groups(table)
    own = near.max(initial=-1) + 1 + np.arange(len(near))
    return np.unique(np.where(near >= 0, near, own), return_inverse=True)[1]


def intervals(
    value: np.ndarray, group: np.ndarray, groups: int, cluster: np.ndarray
) -> list[dict[str, Any]]:
    """By group: its sum's interval, its share's, and whether it is told from the mean of all.

    `value`, `group` and `cluster` (n,) are each sample's value and numbers.
    """
    n, sums, total = np.bincount(group), np.bincount(group, value, groups), float(value.sum())
    beyond = value - (sums / n)[group]
    r_C = np.bincount(cluster, beyond)
    found = []
    for g in range(groups):
        own = group == g
        r_Cg = np.bincount(cluster[own], beyond[own], len(r_C))
        m = len(np.unique(cluster[own]))
        share, away = sums[g] / total if total else np.nan, sums[g] / n[g] - total / len(value)
        times = (
            scipy.stats.t.ppf(1 - 0.025 / groups, m - 1) * np.sqrt(m / (m - 1)) if m > 1 else np.nan
        )
        half = times * np.linalg.norm(r_Cg)
        half_share = times * np.linalg.norm(r_Cg - share * r_C) / abs(total) if total else np.nan
        certain = abs(away) > times * np.linalg.norm(r_Cg / n[g] - r_C / len(value))
        found.append(
            {
                "low": sums[g] - half,
                "high": sums[g] + half,
                "share_low": share - half_share,
                "share_high": share + half_share,
                "told": ("above" if away > 0 else "below") if certain and groups > 1 else None,
            }
        )
    return found


def doubted_by_group(table: pa.Table, group: np.ndarray, groups: int) -> list[dict[str, Any]]:
    """By group: the share of its samples among the most doubtful, and whether it stands out."""
    if "doubt_rank" not in table.column_names:
        return [{"doubtful": None, "doubted": None}] * groups
    ranks = table["doubt_rank"].cast(pa.float64()).fill_null(np.inf).to_numpy()
    first = ranks <= DOUBTFUL * len(ranks)
    found = []
    for g in range(groups):
        own, k = int((group == g).sum()), int(first[group == g].sum())
        chance = scipy.stats.hypergeom.sf(k - 1, len(ranks), first.sum(), own)
        found.append({"doubtful": k / own, "doubted": bool(groups > 1 and chance < 0.05 / groups)})
    return found


def look_at_labels(name: object, doubtful: float) -> str:
    """A sentence on a group whose labels stand out."""
    return (
        f"Look at the labels of {name}: {doubtful:.0%} of its samples are among the {DOUBTFUL:.0%} "
        "with the most doubtful labels, which is more than chance."
    )
